"""Which form an example has, and the conversation or the labelled text in it."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from numbers import Integral, Real
from typing import Any

from client_sdk.errors import ContributionError
from client_sdk.training.row_forms.messages import Turn, messages_of, side
from client_sdk.training.row_forms.tools import tools_of
from client_sdk.training.row_forms.values import checked_text, is_absent, is_empty, is_list, only

CHARACTERS_MAX = 1 << 20  # of one example: about a second of a tokenizer's time
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
        example = record_of(example)
    if not isinstance(example, Mapping):
        read: Conversation | LabelledText = _pair(example)
    else:
        present = {name: example[name] for name in _NAMED if name in example}
        present = {name: value for name, value in present.items() if not is_absent(value)}
        form = _form(present, example)
        _check_beside(form, present)
        read = _labelled(present) if form == _CLASSIFIED else _conversation(form, present)
    _check_length(read)
    return read


def record_of(example: Any) -> Any:
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
    changing = [name for name in _CHANGE[form] if name in present and not is_empty(present[name])]
    if changing:
        raise ContributionError(
            "example-form",
            f"An example has {', '.join(changing)} beside {form}, which would be passed over.",
            found=changing,
            remedy="Write it into the text, or take the column away.",
        )
    if form == _CLASSIFIED:
        return
    if any(name in present and not is_empty(present[name]) for name in _PREFERRED):
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
        label = only(label)  # of an array or tensor without axes
    whole = isinstance(label, Integral) and not isinstance(label, bool)
    if not isinstance(text, str) or not whole or label < 0:
        raise ContributionError(
            "example-form",
            "A labelled example is a text and the number of its class.",
            expected="text and a whole number from 0 on",
            found=(type(text).__name__, type(label).__name__),
        )
    return LabelledText(checked_text(text, "A text"), int(label))


def _pair(example: Any) -> Conversation:
    if not is_list(example) or len(example) != 2 or not all(isinstance(p, str) for p in example):
        raise ContributionError(
            "example-form",
            "An example is neither a (prompt, answer) pair nor a mapping of a known form.",
            found=type(example).__name__,
            remedy=FORMS,
        )
    return Conversation((*side(example[0], "user"), *side(example[1], "assistant")))


def _conversation(form: str, present: Mapping[str, Any]) -> Conversation:
    if form in ("messages", "conversations"):
        turns = learnt = messages_of(present[form])
    elif form == "instruction and output":
        learnt = side(present["output"], "assistant")
        turns = [*_instruction(present), *learnt]
    else:
        answer = "answer" if form == "prompt and answer" else "completion"
        before = [replace(turn, counts=False) for turn in side(present["prompt"], "user")]
        learnt = side(present[answer], "assistant")
        turns = [*before, *learnt]
    if not any(turn.is_answer for turn in learnt):
        raise ContributionError("example-form", "A conversation has no answer of the assistant.")
    return Conversation((*_system(present, turns), *turns), tools_of(present.get("tools")))


def _instruction(present: Mapping[str, Any]) -> list[Turn]:
    parts = [present["instruction"], present.get("input", "")]
    if not all(isinstance(part, str) for part in parts):
        raise ContributionError(
            "example-form",
            "An instruction or its input is not text.",
            found=[type(part).__name__ for part in parts],
        )
    return side("\n".join(part for part in parts if part), "user")


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
    return [Turn({"role": "system", "content": checked_text(system, "The system's")}, False)]


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
