"""From an app's examples to token rows: one conversation, one row, one unit of privacy.

An example is a (prompt, answer) pair, ``{"prompt": ..., "answer": ...}`` or
``{"messages": [{"role": ..., "content": ...}, ...]}``; for a classifier it is
``{"text": ..., "label": ...}``, the class a number from 0 on.
Rows that were packed or tokenised elsewhere are refused: in a packed row the pack, not the
conversation, would be what the noise protects.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from numbers import Integral
from typing import TYPE_CHECKING, Any

from client_sdk.errors import ContributionError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_FORMS = 'Give (prompt, answer), {"prompt": ..., "answer": ...} or {"messages": [...]}, all text.'
CHARACTERS_MAX = 1 << 20  # of one example: about a second of a tokenizer's time
MESSAGES_MAX = 1 << 14  # of one example; a template writes some characters around each


@dataclass(frozen=True)
class Unread:
    """What stands in the place of an example that a reader of files could not read, and why."""

    sentence: str


Example = Mapping[str, Any] | tuple[str, str] | Unread


@dataclass(frozen=True)
class Row:
    """Tokens of one conversation and, for each, whether it counts in the loss.

    Attributes:
        label: the class of a text for a classifier, where no token counts.
        index: the example's place in its data set, from 0; -1: in none.
    """

    tokens: tuple[int, ...]
    counts: tuple[bool, ...]
    label: int | None = None
    index: int = -1


def encode_example(tokenizer: PreTrainedTokenizerBase, example: Example, max_tokens: int) -> Row:
    """Tokenise one conversation; every assistant turn up to its end token counts in the loss.

    Rows are cut after ``max_tokens``; a row whose answers are all cut off has no loss and
    contributes zero.

    Raises:
        ContributionError: ``example-form``, ``example-packed``, ``example-template``,
            ``example-long``, ``example-unread``; what the tokenizer raises comes as it is.
    """
    if isinstance(example, Unread):
        raise ContributionError("example-unread", example.sentence)
    if isinstance(example, Mapping) and "label" in example:
        return _labelled(tokenizer, example, max_tokens)
    messages = _messages(example)
    _check_length(sum(len(m["role"]) + len(m["content"]) for m in messages))
    if not tokenizer.chat_template:
        tokens, counts = _plain(tokenizer, messages)
    else:
        tokens, counts = _templated(tokenizer, messages, max_tokens)
    return Row(tuple(tokens[:max_tokens]), tuple(counts[:max_tokens]))


def _labelled(
    tokenizer: PreTrainedTokenizerBase, example: Mapping[str, Any], max_tokens: int
) -> Row:
    text, label = example.get("text"), example["label"]
    whole = isinstance(label, Integral) and not isinstance(label, bool)
    if not isinstance(text, str) or not whole or label < 0:
        raise ContributionError(
            "example-form",
            "A labelled example is a text and the number of its class.",
            expected="text and a whole number from 0 on",
            found=(type(text).__name__, type(label).__name__),
        )
    _check_length(len(text))
    tokens = list(tokenizer(text)["input_ids"])[:max_tokens]
    return Row(tuple(tokens), (False,) * len(tokens), int(label))


def encode_prompt(tokenizer: PreTrainedTokenizerBase, prompt: str) -> list[int]:
    """The tokens after which the model is to answer ``prompt``."""
    messages = [{"role": "user", "content": prompt}]
    if not tokenizer.chat_template:
        return list(tokenizer(prompt + "\n")["input_ids"])
    return _apply(tokenizer, messages, add_generation_prompt=True)


def _messages(example: Example) -> list[dict[str, str]]:
    if isinstance(example, Mapping) and "prompt" in example and "answer" in example:
        example = (example["prompt"], example["answer"])
    if isinstance(example, Mapping):
        if "messages" not in example:
            packed = "input_ids" in example
            raise ContributionError(
                "example-packed" if packed else "example-form",
                "An example has no messages.",
                expected="messages, or prompt and answer",
                found=sorted(map(str, example)),
                remedy="Give one conversation per example; rows that are tokenised or packed "
                "already would make the row, not the conversation, the unit of privacy."
                if packed
                else _FORMS,
            )
        messages = _read_once(example["messages"])
    elif (
        isinstance(example, Sequence)
        and len(example) == 2
        and all(isinstance(part, str) for part in example)
    ):
        messages = [
            {"role": "user", "content": example[0]},
            {"role": "assistant", "content": example[1]},
        ]
    else:
        raise ContributionError(
            "example-form",
            "An example is neither a (prompt, answer) pair nor a mapping with messages.",
            found=type(example).__name__,
            remedy=_FORMS,
        )
    found = [{"role": _field(m, "role"), "content": _field(m, "content")} for m in messages]
    if not any(message["role"] == "assistant" for message in found):
        raise ContributionError("example-form", "A conversation has no answer of the assistant.")
    return found


def _read_once(messages: Any) -> list[Any]:
    """An iterator would be empty the second time, and one without an end would hold up the rest."""
    found = list(itertools.islice(messages, MESSAGES_MAX + 1))
    if len(found) > MESSAGES_MAX:
        raise ContributionError(
            "example-long",
            "A conversation has too many messages to be tokenised beside others.",
            expected=f"at most {MESSAGES_MAX} messages",
        )
    return found


def _field(message: Any, name: str) -> str:
    value = message.get(name) if isinstance(message, Mapping) else None
    if not isinstance(value, str):
        raise ContributionError(
            "example-form", f"A message's {name} is not text.", found=type(value).__name__
        )
    return value


def _check_length(characters: int) -> None:
    if characters > CHARACTERS_MAX:
        raise ContributionError(
            "example-long",
            "An example is too long to be tokenised beside others.",
            expected=f"at most {CHARACTERS_MAX} characters",
            found=characters,
        )


def _templated(
    tokenizer: PreTrainedTokenizerBase, messages: list[dict[str, str]], max_tokens: int
) -> tuple[list[int], list[bool]]:
    tokens = _apply(tokenizer, messages)
    counts = [False] * len(tokens)
    for i, message in enumerate(messages):
        if message["role"] != "assistant":
            continue
        start = len(_apply(tokenizer, messages[:i], add_generation_prompt=True))
        if start >= max_tokens:
            break  # cut off; else thousands of turns would each be encoded with all before
        upto = _apply(tokenizer, messages[: i + 1])
        if tokens[: len(upto)] != upto:
            raise ContributionError(
                "example-template",
                "The chat template changes earlier turns when later ones follow.",
                remedy="Give one (prompt, answer) pair per example.",
            )
        end = len(upto)
        while end > start and upto[end - 1] != tokenizer.eos_token_id:
            end -= 1  # what a template writes after the end token is not the answer's
        for t in range(start, end if end > start else len(upto)):
            counts[t] = True
    return tokens, counts


def _plain(
    tokenizer: PreTrainedTokenizerBase, messages: list[dict[str, str]]
) -> tuple[list[int], list[bool]]:
    """For tokenizers without a chat template: turns on lines of their own."""
    tokens: list[int] = []
    counts: list[bool] = []
    for message in messages:
        answer = message["role"] == "assistant"
        part = list(tokenizer(message["content"] + ("" if answer else "\n"))["input_ids"])
        if answer and tokenizer.eos_token_id is not None:
            part.append(tokenizer.eos_token_id)
        tokens += part
        counts += [answer] * len(part)
    return tokens, counts


def _apply(
    tokenizer: PreTrainedTokenizerBase,
    messages: list[dict[str, str]],
    add_generation_prompt: bool = False,
) -> list[int]:
    try:
        encoded: Any = tokenizer.apply_chat_template(
            messages, add_generation_prompt=add_generation_prompt, tokenize=True, return_dict=True
        )
    except Exception as error:
        if type(error).__module__.partition(".")[0] != "jinja2":
            raise
        own = str(error) in str(tokenizer.chat_template)  # else it may quote the conversation
        raise ContributionError(
            "example-template",
            f"The chat template refuses the conversation{f': {error}' if own else ''}.",
        ) from error
    return list(encoded["input_ids"])
