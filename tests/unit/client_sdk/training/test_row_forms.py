"""Each form in which examples come is read as the conversation that it is, or refused by name."""

from __future__ import annotations

import collections
import json
import math
from collections import UserDict
from typing import Any

import numpy as np
import pytest
import torch

from client_sdk.errors import ContributionError
from client_sdk.training.row_forms import (
    CHARACTERS_MAX,
    MESSAGES_MAX,
    Conversation,
    LabelledText,
    read_example,
)

PAIR = [("user", "q", False), ("assistant", "a", True)]
USER, ANSWER = {"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}
SYSTEM = {"role": "system", "content": "s"}
SCHEMA = {"type": "function", "function": {"name": "f", "parameters": {}}}
PART = {"type": "text", "text": "q"}


def turns(example: Any) -> list[tuple[str, str, bool]]:
    read = read_example(example)
    assert isinstance(read, Conversation)
    return [(turn.message["role"], turn.text, turn.counts) for turn in read.turns]


Named = collections.namedtuple("Named", ["answer", "prompt"])


class Series:
    """As a row of pandas or sqlite3 is: names, values in their order, no mapping."""

    def __init__(self, **values: Any) -> None:
        self._values = values

    def __repr__(self) -> str:
        return f"Series({self._values})"

    def keys(self) -> list[str]:
        return list(self._values)

    def __getitem__(self, name: str) -> Any:
        return self._values[name]

    def __iter__(self) -> Any:
        return iter(self._values.values())

    def __len__(self) -> int:
        return len(self._values)


@pytest.mark.parametrize(
    "example",
    [
        ("q", "a"),
        ["q", "a"],
        np.array(["q", "a"]),
        {"prompt": "q", "answer": "a"},
        {"prompt": np.str_("q"), "answer": np.str_("a")},
        {"prompt": "q", "completion": "a", "id": 7, "source": None, "score": math.nan},
        {"prompt": [USER], "completion": [ANSWER]},
        {"prompt": "q", "completion": [ANSWER]},
        {"prompt": [USER], "completion": "a"},
        {"messages": [USER, ANSWER]},
        {"messages": (UserDict(USER), UserDict(ANSWER))},
        {"messages": np.array([USER, ANSWER])},
        {"messages": {"role": ["user", "assistant"], "content": ["q", "a"]}},
        {"messages": [USER, ANSWER], "label": 1},
        {"messages": [USER, ANSWER], "input": "q", "context": "c", "response": "a"},
        {"prompt": "q", "completion": "a", "input": "", "image": None, "label": "maths"},
        {"prompt": "q", "answer": "a", "label": 7, "chosen": None, "rejected": ""},
        {"conversations": [{"from": "Human", "value": "q"}, {"from": "chatbot", "value": "a"}]},
        {"messages": [USER, ANSWER], "text": "Q: q A: a", "label": 1},
        {"messages": [USER, ANSWER], "prompt": "q", "prompt_id": "x"},
        {"messages": [USER, ANSWER], "chosen": [], "rejected": [], "images": []},
        {"messages": [{**USER, "weight": None, "name": None}, {**ANSWER, "tool_calls": None}]},
        {"messages": [{**USER, "content": [{"type": "text", "text": "q"}]}, ANSWER]},
        {"messages": [{**USER, "role": "User "}, {**ANSWER, "role": "Assistant"}]},
        {"messages": None, "prompt": "q", "answer": "a"},
        {"conversations": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}]},
        {"conversations": [USER, ANSWER]},
        {"instruction": "q", "input": "", "output": "a"},
        {"instruction": "q", "input": None, "output": "a", "text": "Below is an instruction."},
        {"instruction": "q", "output": "a", "history": [], "system": ""},
        UserDict(prompt="q", answer="a"),
        Named(answer="a", prompt="q"),
        Series(answer="a", prompt="q"),
    ],
    ids=repr,
)
def test_a_question_and_its_answer_in_every_form(example: Any) -> None:
    assert turns(example) == PAIR


def test_an_input_stands_on_a_line_of_its_own() -> None:
    assert turns({"instruction": "i", "input": "x", "output": "a"})[0][1] == "i\nx"


@pytest.mark.parametrize(
    "example",
    [
        {"messages": [SYSTEM, USER, ANSWER]},
        {"messages": [USER, ANSWER], "system": "s"},
        {"messages": [SYSTEM, USER, ANSWER], "system": "s"},
        {"instruction": "q", "output": "a", "system": "s"},
        {"conversations": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}]}
        | {"system": "s"},
        {"conversations": [{"from": n, "value": n[0]} for n in ("system",)] + [USER, ANSWER]},
    ],
    ids=repr,
)
def test_a_system_message_comes_first(example: Any) -> None:
    assert turns(example) == [("system", "s", False), *PAIR]


def test_calls_of_tools_are_as_templates_take_them() -> None:
    """Arguments as text would be written as JSON twice."""
    function = {"name": "f", "arguments": {"x": 1}}
    text = {"name": "f", "arguments": '{"x": 1}'}
    call = {"type": "function", "function": function}
    for message in (
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "assistant", "tool_calls": [{"type": "function", "function": text}]},
        {"role": "assistant", "content": "", "function_call": text},
        {"from": "function_call", "value": '{"name": "f", "arguments": {"x": 1}}'},
    ):
        read = read_example({"messages": [USER, message]})
        assert isinstance(read, Conversation)
        assert read.turns[1].message == {"role": "assistant", "content": "", "tool_calls": [call]}
        assert read.turns[1].counts


def test_parts_of_text_are_joined() -> None:
    parts = [{"type": "text", "text": "q", "image_url": None}, {"type": "text", "text": "r"}]
    assert turns({"messages": [{"role": "user", "content": parts}, ANSWER]})[0][1] == "qr"


@pytest.mark.parametrize("label", [2, np.int64(2), np.uint8(2), np.array(2), torch.tensor(2)])
def test_a_class_is_a_whole_number_of_any_library(label: Any) -> None:
    assert read_example({"text": "t", "label": label}) == LabelledText("t", 2)


@pytest.mark.parametrize(
    ("example", "reason", "said"),
    [
        ({"question": "q", "response": "a"}, "example-form", "question, response"),
        ({"prompt": "q"}, "example-form", "prompt"),
        ({"prompt": "q", "answer": None}, "example-form", "prompt"),
        ({"prompt": "q", "answer": math.nan}, "example-form", "prompt"),
        ({"prompt": "q", "chosen": "a", "rejected": "b"}, "example-form", "choice"),
        ({"prompt": "q", "completion": "a", "label": False}, "example-form", "judgement"),
        ({"prompt": "q", "completion": "a", "label": np.bool_(True)}, "example-form", "judgement"),
        *(
            ({"prompt": "q", key: "a", "label": label}, "example-form", "judgement")
            for key in ("answer", "completion")
            for label in (0, 1, 0.0, np.int64(1), "True", "false", "0", True)
        ),
        ({"messages": [USER, ANSWER], "label": True}, "example-form", "judgement"),
        ({"messages": [USER, ANSWER], "chosen": [ANSWER]}, "example-form", "choice"),
        ({"prompt": "q", "answer": "a", "rejected": "b"}, "example-form", "choice"),
        ({"instruction": "q", "output": "a", "chosen": "b"}, "example-form", "choice"),
        *(
            ({"prompt": "q", "completion": "a", key: "x"}, "example-form", f"has {key} beside")
            for key in ("input", "context", "instruction", "system_prompt", "image", "audio")
        ),
        ({"prompt": "q", "answer": "a", "input": "x"}, "example-form", "has input beside"),
        ({"instruction": "q", "output": "a", "context": "x"}, "example-form", "has context beside"),
        ({"messages": [USER, ANSWER], "system_prompt": "s"}, "example-form", "system_prompt"),
        ({"messages": [USER, ANSWER], "video": "v"}, "example-form", "has video beside"),
        ({"text": "t", "label": 1, "image": b"i"}, "example-form", "has image beside"),
        ({"text": "t", "label": 1, "text_pair": "u"}, "example-form", "has text_pair beside"),
        ({"prompt": [USER, ANSWER], "completion": [USER]}, "example-form", "no answer"),
        (
            {"conversations": [{"from": "human", "value": "q"}, {"from": "alice", "value": "a"}]},
            "example-role",
            "Message 1 (from 0)",
        ),
        ({"messages": '[{"role": "user"}]'}, "example-form", "Messages are JSON text, not a list"),
        ({"messages": USER}, "example-form", "Messages are one mapping, not a list"),
        ({"messages": [USER, ANSWER], "tools": SCHEMA}, "example-form", "Tools are one mapping"),
        (
            {"messages": [USER, ANSWER], "tools": json.dumps(SCHEMA)},
            "example-form",
            "Tools are one mapping",
        ),
        (
            {"messages": [USER, {**ANSWER, "tool_calls": {"name": "f", "arguments": "{}"}}]},
            "example-form",
            "Calls of tools are one mapping",
        ),
        (
            {
                "messages": [USER, ANSWER],
                "tools": [dict.fromkeys(map(str, range(MESSAGES_MAX + 1)), 1)],
            },
            "example-long",
            "keys are too many",
        ),
        (
            {"messages": [USER, ANSWER], "tools": [{"enum": [0] * (MESSAGES_MAX + 1)}]},
            "example-long",
            "items are too many",
        ),
        (
            {"messages": [{**USER, "content": [PART] * (MESSAGES_MAX + 1)}, ANSWER]},
            "example-long",
            "parts are too many",
        ),
        ({"prompt": "q", "answer": "a", "completion": "b"}, "example-ambiguous", "completion"),
        ({"messages": [USER, ANSWER], "prompt": "q", "answer": "b"}, "example-ambiguous", "prompt"),
        ({"messages": [USER, ANSWER], "conversations": [USER]}, "example-ambiguous", "messages"),
        ({"text": "t", "label": 1, "prompt": "q", "answer": "a"}, "example-ambiguous", "label"),
        ({"messages": [SYSTEM, USER, ANSWER], "system": "x"}, "example-ambiguous", "system"),
        ({"messages": [USER, ANSWER], "images": ["x"]}, "example-form", "images"),
        ({"messages": [USER, ANSWER], "functions": [{}]}, "example-form", "functions"),
        ({"instruction": "q", "output": "a", "history": [["x", "y"]]}, "example-form", "history"),
        ({"input_ids": [1], "labels": [1]}, "example-packed", "tokens"),
        ({"messages": "USER: q"}, "example-form", "not a list"),
        ({"messages": 5}, "example-form", "not a list"),
        ({"messages": []}, "example-form", "no answer"),
        ({"messages": [USER]}, "example-form", "no answer"),
        ({"messages": ["q", "a"]}, "example-form", "not a mapping"),
        ({"messages": {"role": ["user"], "content": []}}, "example-form", "differ in length"),
        ({"messages": {}}, "example-form", "differ in length"),
        ({"messages": [{"content": "q"}, ANSWER]}, "example-form", "role"),
        ({"messages": [USER, {**ANSWER, "content": None}]}, "example-form", "content"),
        ({"messages": [USER, {"role": "assistant", "tool_calls": []}]}, "example-form", "content"),
        ({"messages": [USER, {**ANSWER, "content": b"a"}]}, "example-form", "content"),
        ({"messages": [USER, {**ANSWER, "weight": 0.5}]}, "example-weight", "weight"),
        ({"messages": [USER, {**ANSWER, "weight": "0"}]}, "example-weight", "weight"),
        ({"messages": [USER, ANSWER], "tools": "f(x)"}, "example-form", "not JSON"),
        ({"messages": [USER, ANSWER], "tools": [5]}, "example-form", "schemas"),
        ({"messages": [USER, {**ANSWER, "tool_calls": ["f"]}]}, "example-form", "call"),
        ({"messages": [USER, {**ANSWER, "tool_calls": [{"x": object()}]}]}, "example-form", "JSON"),
        ({"instruction": 5, "output": "a"}, "example-form", "instruction"),
        ({"prompt": ["q"], "completion": "a"}, "example-form", "not a mapping"),
        ({"prompt": b"q", "answer": "a"}, "example-form", "not a list"),
        ([USER, ANSWER], "example-form", "neither a"),
        ({"q"}, "example-form", "neither a"),
        ("qa", "example-form", "neither a"),
        (None, "example-form", "neither a"),
        (["q", "a", "b"], "example-form", "neither a"),
        (("q", "\ud800"), "example-text", "surrogate"),
        (("q", "a" * CHARACTERS_MAX), "example-long", str(CHARACTERS_MAX)),
    ],
    ids=lambda value: repr(value)[:60],
)
def test_any_other_is_refused_with_what_was_found(example: Any, reason: str, said: str) -> None:
    with pytest.raises(ContributionError) as refused:
        read_example(example)
    assert refused.value.reason == reason
    assert said in refused.value.message


def test_a_way_out_is_named() -> None:
    for example, remedy in (
        ({"messages": '[{"role": "user"}]'}, "json.loads"),
        ({"messages": [USER, ANSWER], "tools": SCHEMA}, "into a list"),
        ({"conversations": [{"from": "alice", "value": "q"}]}, "human"),
        ({"prompt": "q", "completion": "a", "label": 0}, "without the column label"),
    ):
        with pytest.raises(ContributionError) as refused:
            read_example(example)
        assert remedy in str(refused.value.remedy)


@pytest.mark.parametrize("kind", ["image", "image_url", "input_audio", None])
def test_parts_that_are_no_text_are_refused(kind: str | None) -> None:
    content = [{"type": "text", "text": "what is this"}, {"type": kind, "text": None}]
    with pytest.raises(ContributionError, match="not text") as refused:
        read_example({"messages": [{"role": "user", "content": content}, ANSWER]})
    assert refused.value.reason == "example-form"


def test_an_example_of_a_million_characters_is_read() -> None:
    assert turns(("q" * 48_000, "a" * 1_000_000))[1][1] == "a" * 1_000_000


def test_tools_that_are_nested_without_an_end_are_refused() -> None:
    schema: dict[str, Any] = {}
    for _ in range(100_000):
        schema = {"items": schema}
    with pytest.raises(ContributionError, match="too deeply"):
        read_example({"messages": [USER, ANSWER], "tools": [schema]})
