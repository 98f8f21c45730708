"""Whatever stands in a file or a row: rows, or a typed refusal that names the row."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from hypothesis import example, given, settings
from hypothesis import strategies as st

from client_sdk.errors import ContributionError
from client_sdk.training.dataset import Input, encode_rows, unread
from client_sdk.training.examples import encode_example, encode_prompt
from client_sdk.training.row_files import RowFile, read_file
from client_sdk.training.row_forms import Conversation, read_example
from tests.kits.word_tokenizers import ADDED, CHATML, TOOLS, WORDS, of_words

NAMES = (
    *("prompt", "answer", "completion", "messages", "conversations", "instruction", "input"),
    *("output", "text", "label", "system", "tools", "role", "content", "from", "value", "weight"),
    *("tool_calls", "function_call", "type", "input_ids", "chosen", "images", "history", "other"),
)
SCALARS = (
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=6)
) | st.sampled_from(["user", "assistant", "human", "gpt", "function_call", "text", "[]", "{}"])
VALUES = st.recursive(
    SCALARS,
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(NAMES), inner, max_size=5)
    ),
    max_leaves=12,
)
UNICODE = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)
TEXTS = UNICODE | st.sampled_from(["\u2028", "\u0085", "\v\f\x1c", "\ufeff", "\r", "\n", "\t"])
TAKES = Input(vocabulary=len(WORDS), context_tokens=16, classes=None)
LABELLED = Input(vocabulary=len(WORDS), context_tokens=16, classes=2)
SENTENCES = st.lists(st.sampled_from(["what", "is", "it", "a", "thing", "zz"]), max_size=4).map(
    " ".join
)


def file_of(data: bytes) -> RowFile:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "data.jsonl"
        path.write_bytes(data)
        return read_file(path)


def _refused(call: Callable[[], Any]) -> tuple[Any, str | None]:
    """What the call gives, or the reason of its typed refusal."""
    try:
        return call(), None
    except ContributionError as error:
        return None, error.reason


@given(
    st.lists(st.fixed_dictionaries({"prompt": TEXTS, "answer": TEXTS}), max_size=4),
    st.sampled_from([b"\n", b"\r\n"]),
    st.booleans(),
    st.booleans(),
    st.booleans(),
)
def test_rows_come_back_as_they_were_written(
    rows: list[dict[str, str]], end: bytes, mark: bool, escaped: bool, array: bool
) -> None:
    lines = [json.dumps(row, ensure_ascii=escaped).encode() for row in rows]
    data = b"[" + (b"," + end).join(lines) + b"]" if array else end.join(lines)
    found = file_of(b"\xef\xbb\xbf" * mark + data + end)
    assert list(found) == rows
    assert unread(found) == ()


@settings(max_examples=200)
@given(st.lists(st.binary(max_size=40) | VALUES.map(lambda v: json.dumps(v).encode()), max_size=4))
@example([b"[" * 50_000])
@example([b'{"prompt": "q", "answer": "a"}', b"\xff\xfe\x00"])
def test_any_bytes_are_rows_or_a_typed_refusal(lines: list[bytes]) -> None:
    rows, reason = _refused(lambda: file_of(b"\n".join(lines)))
    assert reason in {None, "data-encoding", "data-format"}
    for one in unread(rows or []):
        assert one.reason.startswith("example-")
        assert str(one)[0].isupper()
        assert " of data.jsonl: " in str(one)


@settings(max_examples=300)
@given(VALUES | st.dictionaries(st.sampled_from(NAMES), VALUES, max_size=6))
def test_any_value_is_a_conversation_a_label_or_a_typed_refusal(value: Any) -> None:
    read, reason = _refused(lambda: read_example(value))
    assert reason is None or reason.startswith("example-")
    if isinstance(read, Conversation):
        assert any(turn.is_answer for turn in read.turns)
        assert not any(turn.counts and not turn.is_answer for turn in read.turns)


@settings(max_examples=100, deadline=None)
@given(
    st.lists(VALUES | st.dictionaries(st.sampled_from(NAMES), VALUES, max_size=6), max_size=3),
    st.sampled_from([None, CHATML, TOOLS]),
    st.booleans(),
)
def test_every_row_is_encoded_or_told_by_its_place(
    values: list[Any], template: str | None, labelled: bool
) -> None:
    takes = LABELLED if labelled else TAKES
    rows, left_out = encode_rows(of_words("bos", template), values, 64, takes)
    assert [row.index for row in rows] == list(range(len(values)))
    assert [one.index for one in left_out] == [row.index for row in rows if not row.tokens]
    for one in left_out:
        assert str(one).startswith(f"Example {one.index}: ")


@settings(max_examples=100, deadline=None)
@given(
    st.lists(st.tuples(SENTENCES, SENTENCES), min_size=1, max_size=4),
    st.sampled_from(sorted(ADDED)),
    st.integers(1, 40),
)
def test_a_row_is_the_prompt_and_each_answer_with_one_end(
    turns: list[tuple[str, str]], added: str, max_tokens: int
) -> None:
    tokenizer = of_words(added)
    end = tokenizer.eos_token_id
    messages: list[dict[str, str]] = []
    tokens: list[int] = []
    counts: list[bool] = []
    for place, (prompt, answer) in enumerate(turns):
        messages += [
            {"role": "user", "content": prompt},
            {"role": "assistant", "content": answer},
        ]
        plain = tokenizer(prompt, add_special_tokens=False)["input_ids"]
        before = plain if place else encode_prompt(tokenizer, prompt)
        after = [*tokenizer(answer, add_special_tokens=False)["input_ids"], end]
        assert not before or before[-1] != end
        tokens += [*before, *after]
        counts += [False] * len(before) + [bool(answer)] * len(after)
    row = encode_example(tokenizer, {"messages": messages}, max_tokens)
    assert list(row.tokens) == tokens[:max_tokens]
    assert list(row.counts) == counts[:max_tokens]
