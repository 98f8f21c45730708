"""The forms of an example: what apps and public data sets bring, read as one conversation.

=========================  =============================================================
pair                       ``(prompt, answer)``
``prompt``, ``answer``     two texts
``prompt``,                two texts, or lists of messages, of which the completion's answers
``completion``             alone count
``messages``               ``role``, ``content`` (a text or text parts; null beside
                           ``tool_calls``), ``weight`` 0 or 1; ``tools`` beside them
``conversations``          ``from``, ``value`` (ShareGPT), or messages
``instruction``,           Alpaca; ``input``, where there is one, on a line of its own after the
``output``                 instruction
``text``, ``label``        for a classifier: the class a whole number from 0 on
=========================  =============================================================

A text ``system`` beside any of them but the last comes first. Other columns are passed over, unless
they would change what is taught. Null and not-a-number are as if absent: tables have them where
a record has no such field. Nothing here needs a tokenizer, and no sentence quotes an example.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from numbers import Integral, Real
from typing import Any, TypeVar

from client_sdk.errors import ContributionError

_T = TypeVar("_T")

CHARACTERS_MAX = 1 << 20  # of one example: about a second of a tokenizer's time
MESSAGES_MAX = 1 << 14  # of one example; a template writes some characters around each
_SENDER_SHOWN = 40  # characters
DEPTH_MAX = 64  # of lists and mappings in tools and their calls

FORMS = (
    'Give (prompt, answer), {"prompt": ..., "answer": ...}, {"prompt": ..., "completion": ...}, '
    '{"messages": [...]}, {"conversations": [...]} or {"instruction": ..., "output": ...}; '
    'for a classifier {"text": ..., "label": 0}, its class a whole number from 0 on.'
)
_CONVERSATIONS = {
    "messages": ("messages",),
    "conversations": ("conversations",),
    "prompt and answer": ("prompt", "answer"),
    "prompt and completion": ("prompt", "completion"),
    "instruction and output": ("instruction", "output"),
}
_LABELLED = ("text", "label")
_CLASSIFIED = "text and label"
# Beside a form these change what it says, and a row without them would teach otherwise.
_MEDIA = ("image", "images", "audio", "audios", "video", "videos")
_CHANGE_IT = (*_MEDIA, "chat_template_kwargs", "functions", "history", "system_prompt")
_CHANGE = {
    "messages": _CHANGE_IT,
    "conversations": _CHANGE_IT,
    "prompt and answer": (*_CHANGE_IT, "instruction", "input", "context"),
    "prompt and completion": (*_CHANGE_IT, "instruction", "input", "context"),
    "instruction and output": (*_CHANGE_IT, "context"),
    _CLASSIFIED: (*_MEDIA, "text_pair", "context"),
}
_PREFERRED = ("chosen", "rejected")
_JUDGED = ("true", "false", "0", "1", "0.0", "1.0")  # as tables write a judgement
_NAMED = frozenset(
    {*itertools.chain(*_CONVERSATIONS.values()), *_LABELLED, *itertools.chain(*_CHANGE.values())}
    | {"system", "tools", "input_ids", "labels", *_PREFERRED, "response"}
    | {"question", "query", "conversation", "role", "content", "from", "value"}
)
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


@dataclass(frozen=True)
class Conversation:
    """Attributes:
    tools: JSON schemas of functions, as chat templates take them.
    """

    turns: tuple[Turn, ...]
    tools: tuple[dict[str, Any], ...] = ()


@dataclass(frozen=True)
class LabelledText:
    text: str
    label: int


def read_example(example: Any) -> Conversation | LabelledText:
    """One example in whichever of the forms it has.

    Raises:
        ContributionError: ``example-form``, ``example-ambiguous``, ``example-packed``,
            ``example-role``, ``example-text``, ``example-weight``, ``example-long``; what a lazy
            record raises comes as it is.
    """
    if not isinstance(example, Mapping):
        example = _record(example)
    if not isinstance(example, Mapping):
        read: Conversation | LabelledText = _pair(example)
    else:
        present = {name: example[name] for name in _NAMED if name in example}
        present = {name: value for name, value in present.items() if not _absent(value)}
        form = _form(present, example)
        _check_beside(form, present)
        read = _labelled(present) if form == _CLASSIFIED else _conversation(form, present)
    _check_length(read)
    return read


def _record(example: Any) -> Any:
    """Rows of tables and databases have names without being mappings; by place they may be swapped.

    What has no names comes back as it is.
    """
    if callable(getattr(example, "_asdict", None)):
        return example._asdict()
    if callable(getattr(example, "keys", None)):
        return {name: example[name] for name in example.keys()}  # noqa: SIM118  (no mapping)
    return example


def _form(present: Mapping[str, Any], example: Mapping[Any, Any]) -> str:
    """The name of the example's form."""
    found = [form for form, keys in _CONVERSATIONS.items() if all(key in present for key in keys)]
    labelled = all(key in present for key in _LABELLED)
    if labelled and not {"messages", "conversations"} & present.keys():
        found.append(_CLASSIFIED)
    if len(found) > 1:
        raise ContributionError(
            "example-ambiguous",
            f"An example has more than one form: {' beside '.join(found)}.",
            expected="one of them",
            found=sorted(present),
            remedy="Take the columns of the others away.",
        )
    if found:
        return found[0]
    if "input_ids" in example:
        raise ContributionError(
            "example-packed",
            "An example has tokens instead of text.",
            expected="text",
            found=sorted(present),
            remedy="Give one conversation per example; rows that are tokenised or packed already "
            "would make the row, not the conversation, the unit of privacy.",
        )
    if any(name in present for name in _PREFERRED):
        raise _preference(present)
    named = f" Of the keys that are known it has {', '.join(sorted(present))}." if present else ""
    raise ContributionError(
        "example-form",
        f"An example's keys are of none of the known forms.{named}",
        found=sorted(map(str, itertools.islice(example, 20))),
        remedy=FORMS,
    )


def _preference(present: Mapping[str, Any]) -> ContributionError:
    return ContributionError(
        "example-form",
        "An example is a choice between answers, which is not learnt here.",
        expected="one answer",
        found=sorted(present),
        remedy="Give the chosen answer alone, as completion, without the columns chosen and "
        "rejected.",
    )


def _check_beside(form: str, present: Mapping[str, Any]) -> None:
    """Refuse what stands beside a form, is passed over, and would change what is taught."""
    changing = [name for name in _CHANGE[form] if name in present and not _is_empty(present[name])]
    if changing:
        raise ContributionError(
            "example-form",
            f"An example has {', '.join(changing)} beside {form}, which would be passed over.",
            found=changing,
            remedy="Write it into the text, or take the column away.",
        )
    if form == _CLASSIFIED:
        return
    if any(name in present and not _is_empty(present[name]) for name in _PREFERRED):
        raise _preference(present)
    if _is_judged(form, present.get("label")):
        raise ContributionError(
            "example-form",
            "An example is a judgement of an answer, which is not learnt here.",
            expected="answers that are to be learnt",
            found=sorted(present),
            remedy="Give the good ones alone, without the column label.",
        )


def _is_judged(form: str, label: Any) -> bool:
    """True or false; beside a prompt also as numbers or words, which tables make of it."""
    if type(label).__name__ in ("bool", "bool_"):
        return True
    if not form.startswith("prompt") or label is None:
        return False
    if isinstance(label, str):
        return label.strip().lower() in _JUDGED
    return isinstance(label, Real) and label in (0, 1)


def _labelled(present: Mapping[str, Any]) -> LabelledText:
    text, label = present["text"], present["label"]
    if not isinstance(label, Integral) and callable(getattr(label, "item", None)):
        label = _only(label)  # of an array or tensor without axes
    whole = isinstance(label, Integral) and not isinstance(label, bool)
    if not isinstance(text, str) or not whole or label < 0:
        raise ContributionError(
            "example-form",
            "A labelled example is a text and the number of its class.",
            expected="text and a whole number from 0 on",
            found=(type(text).__name__, type(label).__name__),
        )
    return LabelledText(_text(text, "A text"), int(label))


def _only(value: Any) -> Any:
    try:
        return value.item()
    except Exception:
        return value


def _pair(example: Any) -> Conversation:
    if not _is_list(example) or len(example) != 2 or not all(isinstance(p, str) for p in example):
        raise ContributionError(
            "example-form",
            "An example is neither a (prompt, answer) pair nor a mapping of a known form.",
            found=type(example).__name__,
            remedy=FORMS,
        )
    return Conversation((*_side(example[0], "user"), *_side(example[1], "assistant")))


def _is_list(value: Any) -> bool:
    """A list, or an array with a first axis."""
    ordered = isinstance(value, Sequence) and not isinstance(value, str | bytes)
    return ordered or bool(getattr(value, "shape", ()))


def _conversation(form: str, present: Mapping[str, Any]) -> Conversation:
    if form in ("messages", "conversations"):
        turns = learnt = _messages(present[form])
    elif form == "instruction and output":
        learnt = _side(present["output"], "assistant")
        turns = [*_instruction(present), *learnt]
    else:
        answer = "answer" if form == "prompt and answer" else "completion"
        before = [replace(turn, counts=False) for turn in _side(present["prompt"], "user")]
        learnt = _side(present[answer], "assistant")
        turns = [*before, *learnt]
    if not any(turn.is_answer for turn in learnt):
        raise ContributionError("example-form", "A conversation has no answer of the assistant.")
    return Conversation((*_system(present, turns), *turns), _tools(present.get("tools")))


def _side(value: Any, role: str) -> list[Turn]:
    """Prompt or answer: a text, or messages."""
    if isinstance(value, str):
        return [Turn({"role": role, "content": _text(value, f"The {role}'s")}, role == "assistant")]
    return _messages(value)


def _instruction(present: Mapping[str, Any]) -> list[Turn]:
    parts = [present["instruction"], present.get("input", "")]
    if not all(isinstance(part, str) for part in parts):
        raise ContributionError(
            "example-form",
            "An instruction or its input is not text.",
            found=[type(part).__name__ for part in parts],
        )
    return _side("\n".join(part for part in parts if part), "user")


def _system(present: Mapping[str, Any], turns: Sequence[Turn]) -> list[Turn]:
    system = present.get("system", "")
    if not isinstance(system, str):
        raise ContributionError(
            "example-form", "The column system is not text.", found=type(system).__name__
        )
    first = turns[0].message
    if not system or (first["role"] == "system" and first["content"] == system):
        return []
    if first["role"] == "system":
        raise ContributionError(
            "example-ambiguous",
            "An example has a system message and another one in the column system.",
            remedy="Keep one of them.",
        )
    return [Turn({"role": "system", "content": _text(system, "The system's")}, False)]


def _messages(value: Any) -> list[Turn]:
    return [_turn(message, place) for place, message in enumerate(_read_once(value))]


def _read_once(messages: Any, whose: str = "Messages") -> list[Any]:
    """An iterator would be empty the second time, and one without an end would hold up the rest.

    Columns of messages, which older data sets have, are read as records.
    """
    if isinstance(messages, Mapping):
        return _records(messages, whose)
    if isinstance(messages, str | bytes) or not isinstance(messages, Iterable):
        is_json = isinstance(messages, str) and messages.lstrip()[:1] in ("[", "{")
        raise ContributionError(
            "example-form",
            f"{whose} are {'JSON text, ' if is_json else ''}not a list.",
            found=type(messages).__name__,
            remedy="Read the text first, with json.loads, and give what it holds."
            if is_json
            else None,
        )
    return _at_most(messages, whose)


def _at_most(items: Iterable[_T], whose: str) -> list[_T]:
    found = list(itertools.islice(items, MESSAGES_MAX + 1))
    if len(found) > MESSAGES_MAX:
        raise ContributionError(
            "example-long",
            f"{whose} are too many to be tokenised beside other examples.",
            expected=f"at most {MESSAGES_MAX}",
        )
    return found


def _records(columns: Mapping[Any, Any], whose: str) -> list[dict[Any, Any]]:
    if columns and not all(_is_list(column) for column in columns.values()):
        raise ContributionError(
            "example-form",
            f"{whose} are one mapping, not a list.",
            expected="a list, even of one item",
            found=type(columns).__name__,
            remedy="Put it into a list.",
        )
    lists = {name: _read_once(column, whose) for name, column in columns.items()}
    lengths = {len(column) for column in lists.values()}
    if len(lengths) != 1:
        raise ContributionError(
            "example-form",
            f"Columns of {whose.lower()} differ in length.",
            found=sorted(lengths),
        )
    return [{name: column[i] for name, column in lists.items()} for i in range(lengths.pop())]


def _turn(message: Any, place: int) -> Turn:
    if not isinstance(message, Mapping):
        raise ContributionError(
            "example-form",
            "A message is not a mapping of role and content.",
            found=type(message).__name__,
        )
    names = ("from", "value") if _get(message, "role") is None else ("role", "content")
    named = _get(message, names[0])
    if not isinstance(named, str) or not named.strip():
        raise ContributionError(
            "example-form", "A message's role is not text.", found=type(named).__name__
        )
    known = _text(named, "A role's").strip().lower()
    if names[0] == "from" and known not in _ROLES:
        raise ContributionError(
            "example-role",
            f"Message {place} (from 0) has a sender that is not known.",
            expected=sorted(_ROLES),
            found=named[:_SENDER_SHOWN],
            remedy=f"Name who sent it by one of {', '.join(sorted(_ROLES))}.",
        )
    role = _ROLES.get(known, named)
    content = _get(message, names[1])
    written = {name: _get(message, name) for name in _WRITTEN}
    written = {n: _json_value(value) for n, value in written.items() if value is not None}
    calls = _calls(message) if role == "assistant" else []
    if known == "function_call":
        calls, content = [_call(_parsed(content))], None
    if calls:
        written["tool_calls"] = calls
        content = "" if content is None else content
    counts = role == "assistant" and _weight(message)
    return Turn({"role": role, "content": _content(content), **written}, counts)


def _content(value: Any) -> str:
    if isinstance(value, str):
        return _text(value, "A message's")
    if not isinstance(value, Iterable) or isinstance(value, bytes | Mapping):
        raise ContributionError(
            "example-form",
            "A message's content is not text.",
            expected="text, text parts, or null beside tool_calls",
            found=type(value).__name__,
        )
    parts = _at_most(value, "A message's parts")
    for part in parts:
        kind = _get(part, "type") if isinstance(part, Mapping) else None
        if kind != "text" or not isinstance(_get(part, "text"), str):
            media = kind if kind in ("image", "image_url", "audio", "video", "file") else "other"
            raise ContributionError(
                "example-form",
                f"A message has parts that are not text ({media}).",
                expected='parts {"type": "text", "text": ...}',
                remedy="Models of text alone are trained here: leave such conversations out.",
            )
    return "".join(_text(part["text"], "A message's") for part in parts)


def _weight(message: Mapping[Any, Any]) -> bool:
    """OpenAI's: 0 for an answer that is not learnt."""
    weight = _get(message, "weight")
    if weight is None:
        return True
    if not isinstance(weight, Real) or weight not in (0, 1):
        raise ContributionError(
            "example-weight", "A message's weight is neither 0 nor 1.", expected="0 or 1"
        )
    return bool(weight)


def _calls(message: Mapping[Any, Any]) -> list[Any]:
    calls, older = _get(message, "tool_calls"), _get(message, "function_call")
    found = [] if calls is None else [_call(call) for call in _read_once(calls, "Calls of tools")]
    return found or ([] if older is None else [_call(older)])


def _call(call: Any) -> Any:
    """As templates take it, which write the arguments of a call as JSON: not twice."""
    call = _json_value(call)
    if not isinstance(call, dict):
        raise ContributionError(
            "example-form", "A call of a tool is not a mapping.", found=type(call).__name__
        )
    if "name" in call and "function" not in call:
        call = {"type": "function", "function": call}
    function = call.get("function")
    if isinstance(function, dict) and isinstance(function.get("arguments"), str):
        try:
            arguments = json.loads(function["arguments"])
        except (ValueError, RecursionError):
            arguments = None
        if isinstance(arguments, dict):
            call = {**call, "function": {**function, "arguments": arguments}}
    return call


def _tools(value: Any) -> tuple[dict[str, Any], ...]:
    """A list of schemas, or that list as JSON text, which tables of records hold."""
    if value is None or _is_empty(value):
        return ()
    tools = [_json_value(tool) for tool in _read_once(_parsed(value), "Tools")]
    if not all(isinstance(tool, dict) for tool in tools):
        raise ContributionError(
            "example-form", "Tools are not a list of schemas.", expected="JSON schemas of functions"
        )
    return tuple(tools)


def _parsed(value: Any) -> Any:
    if not isinstance(value, str):
        return value
    try:
        return json.loads(value)
    except (ValueError, RecursionError) as error:
        raise ContributionError(
            "example-form", "A tool or a call of one is text that is not JSON."
        ) from error


def _json_value(value: Any, depth: int = 0) -> Any:
    """Plain lists, dictionaries and numbers, without what is absent."""
    if depth > DEPTH_MAX:
        raise ContributionError(
            "example-form", "Tools are nested too deeply.", expected=f"at most {DEPTH_MAX} levels"
        )
    if isinstance(value, str):
        return _text(value, "A tool's")
    if value is None or isinstance(value, bool | int | float):
        return value
    if isinstance(value, Mapping):
        items = _at_most(value.items(), "A tool's keys")
        return {
            _text(str(k), "A tool's"): _json_value(v, depth + 1) for k, v in items if not _absent(v)
        }
    if isinstance(value, Real) and callable(getattr(value, "item", None)):
        return _only(value)
    if isinstance(value, Iterable) and not isinstance(value, bytes):
        return [_json_value(item, depth + 1) for item in _at_most(value, "A tool's items")]
    raise ContributionError(
        "example-form", "A tool or a message holds what is not JSON.", found=type(value).__name__
    )


def _get(message: Mapping[Any, Any], name: str) -> Any:
    value = message.get(name)
    return None if _absent(value) else value


def _absent(value: Any) -> bool:
    """Null, or what tables write where a record has no such field."""
    if value is None or type(value).__name__ in ("NAType", "NaTType"):
        return True
    return isinstance(value, Real) and value != value


def _is_empty(value: Any) -> bool:
    return hasattr(value, "__len__") and len(value) == 0


def _text(value: str, whose: str) -> str:
    """Raises: ContributionError ``example-text``: half of a surrogate pair is not a character."""
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise ContributionError(
            "example-text",
            f"{whose} text is not Unicode: it has bytes that are not UTF-8, or half of a surrogate "
            "pair.",
            remedy="Read the source with its own encoding, and save it as UTF-8.",
        ) from error
    return str(value)


def _check_length(read: Conversation | LabelledText) -> None:
    characters = sum(map(len, _texts(read)))
    if characters > CHARACTERS_MAX:
        raise ContributionError(
            "example-long",
            f"An example is too long to be tokenised beside others: {characters} characters of at "
            f"most {CHARACTERS_MAX}.",
            expected=f"at most {CHARACTERS_MAX} characters",
            found=characters,
        )


def _texts(value: Any) -> Iterator[str]:
    """Every text and key in an example."""
    if isinstance(value, LabelledText):
        yield value.text
    elif isinstance(value, Conversation):
        yield from _texts([part for turn in value.turns for part in turn.message.values()])
        yield from _texts(list(value.tools))
    elif isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for key, item in value.items():
            yield key
            yield from _texts(item)
    elif isinstance(value, list):
        for item in value:
            yield from _texts(item)
