"""Messages: who speaks, what is said, and whether it is an answer that is taught."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from numbers import Real
from typing import Any

from client_sdk.errors import ContributionError
from client_sdk.training.row_forms.tools import call_of, calls_of, parsed
from client_sdk.training.row_forms.values import at_most, checked_text, get, json_value, read_once

_SENDER_SHOWN = 40  # characters
_ROLES = {
    "system": "system",
    "user": "user",
    "human": "user",
    "developer": "developer",
    "assistant": "assistant",
    "gpt": "assistant",
    "ai": "assistant",
    "chatbot": "assistant",
    "chatgpt": "assistant",
    "bot": "assistant",
    "model": "assistant",
    "function_call": "assistant",
    "tool": "tool",
    "function": "tool",
    "observation": "tool",
    "function_response": "tool",
    "tool_response": "tool",
}
# What templates write of a message besides role and content.
_WRITTEN = ("name", "tool_call_id", "reasoning_content", "thinking")


@dataclass(frozen=True)
class Turn:
    """One message as chat templates take it, and whether it is an answer that is taught."""

    message: Mapping[str, Any]
    counts: bool

    @property
    def text(self) -> str:
        return str(self.message["content"])

    @property
    def is_answer(self) -> bool:
        return bool(self.message["role"] == "assistant")

    @property
    def calls_tools(self) -> bool:
        return "tool_calls" in self.message


def side(value: Any, role: str) -> list[Turn]:
    """Prompt or answer: a text, or messages."""
    if isinstance(value, str):
        text = checked_text(value, f"The {role}'s")
        return [Turn({"role": role, "content": text}, role == "assistant")]
    return messages_of(value)


def messages_of(value: Any) -> list[Turn]:
    return [_turn(message, place) for place, message in enumerate(read_once(value))]


def _turn(message: Any, place: int) -> Turn:
    if not isinstance(message, Mapping):
        raise ContributionError(
            "example-form",
            "A message is not a mapping of role and content.",
            found=type(message).__name__,
        )
    names = ("from", "value") if get(message, "role") is None else ("role", "content")
    named = get(message, names[0])
    if not isinstance(named, str) or not named.strip():
        raise ContributionError(
            "example-form", "A message's role is not text.", found=type(named).__name__
        )
    known = checked_text(named, "A role's").strip().lower()
    if names[0] == "from" and known not in _ROLES:
        raise ContributionError(
            "example-role",
            f"Message {place} (from 0) has a sender that is not known.",
            expected=sorted(_ROLES),
            found=named[:_SENDER_SHOWN],
            remedy=f"Name who sent it by one of {', '.join(sorted(_ROLES))}.",
        )
    role = _ROLES.get(known, named)
    content = get(message, names[1])
    written = {name: get(message, name) for name in _WRITTEN}
    written = {n: json_value(value) for n, value in written.items() if value is not None}
    calls = calls_of(message) if role == "assistant" else []
    if known == "function_call":
        calls, content = [call_of(parsed(content))], None
    if calls:
        written["tool_calls"] = calls
        content = "" if content is None else content
    counts = role == "assistant" and _weight(message)
    return Turn({"role": role, "content": _content(content), **written}, counts)


def _content(value: Any) -> str:
    if isinstance(value, str):
        return checked_text(value, "A message's")
    if not isinstance(value, Iterable) or isinstance(value, bytes | Mapping):
        raise ContributionError(
            "example-form",
            "A message's content is not text.",
            expected="text, text parts, or null beside tool_calls",
            found=type(value).__name__,
        )
    parts = at_most(value, "A message's parts")
    for part in parts:
        kind = get(part, "type") if isinstance(part, Mapping) else None
        if kind != "text" or not isinstance(get(part, "text"), str):
            media = kind if kind in ("image", "image_url", "audio", "video", "file") else "other"
            raise ContributionError(
                "example-form",
                f"A message has parts that are not text ({media}).",
                expected='parts {"type": "text", "text": ...}',
                remedy="Models of text alone are trained here: leave such conversations out.",
            )
    return "".join(checked_text(part["text"], "A message's") for part in parts)


def _weight(message: Mapping[Any, Any]) -> bool:
    """OpenAI's: 0 for an answer that is not learnt."""
    weight = get(message, "weight")
    if weight is None:
        return True
    if not isinstance(weight, Real) or weight not in (0, 1):
        raise ContributionError(
            "example-weight", "A message's weight is neither 0 nor 1.", expected="0 or 1"
        )
    return bool(weight)
