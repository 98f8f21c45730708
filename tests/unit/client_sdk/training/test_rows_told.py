"""What a device's user is told of the examples: how many, which are cut, which count as zero."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from client_sdk.training.dataset import NOTHING_COUNTS, Cut, Input, cut_of, encode_rows, unread
from tests.kits.tiny_training import job, tiny_task, trainer
from tests.kits.word_tokenizers import CHATML, WORDS, of_words

TAKES = Input(vocabulary=len(WORDS), context_tokens=None, classes=None)
USER = {"role": "user", "content": "what is it"}
ANSWER = {"role": "assistant", "content": "a thing"}
CALL = {"role": "assistant", "content": None, "tool_calls": [{"function": {"name": "f"}}]}
LIMIT = 12


def rows_of(template: str | None, *examples: Any, takes: Input = TAKES) -> Any:
    return encode_rows(of_words("nothing", template), examples, LIMIT, takes)


@pytest.mark.parametrize("template", [None, CHATML])
def test_an_answer_that_is_cut_in_the_middle_is_told_and_learnt(template: str | None) -> None:
    long = ("what is it", "a thing and then " * 20)
    later = {"messages": [USER, ANSWER, {**USER, "content": "what " * 20}, ANSWER]}
    whole = ("what", "a thing")
    beyond_is_no_answer = {"messages": [USER, ANSWER, {**USER, "content": "it " * 20}]}
    unlearnt = {"messages": [*later["messages"][:3], {**ANSWER, "weight": 0}]}
    data = [whole, long, later, beyond_is_no_answer, unlearnt]
    rows, left_out = rows_of(template, *data)
    assert left_out == ()
    assert all(any(row.counts) for row in rows)
    cut = cut_of(data, rows)
    assert [(one.index, one.limit) for one in cut] == [(1, LIMIT), (2, LIMIT)]
    plain, _ = encode_rows(of_words("nothing", template), data, 1000, TAKES)
    assert [one.tokens for one in cut] == [len(plain[1].tokens), len(plain[2].tokens)]
    assert str(cut[0]) == (f"Example 1: only the first {LIMIT} of {cut[0].tokens} tokens are used.")


@pytest.mark.parametrize("words", [LIMIT - 2, LIMIT - 1])
def test_an_end_token_beyond_the_limit_is_a_cut_too(words: int) -> None:
    data = [("what", " ".join(["a"] * words))]
    rows, _ = rows_of(None, *data)
    assert [one.tokens for one in cut_of(data, rows)] == [LIMIT + 1] * (words == LIMIT - 1)


def test_a_text_of_a_classifier_that_is_cut_is_told() -> None:
    takes = Input(vocabulary=len(WORDS), context_tokens=None, classes=2)
    data = [{"text": "it " * n, "label": 1} for n in (LIMIT, LIMIT + 1)]
    rows, left_out = rows_of(None, *data, takes=takes)
    assert (left_out, cut_of(data, rows)) == ((), (Cut(1, LIMIT + 1, LIMIT),))


@pytest.mark.parametrize(
    ("example", "reason", "said"),
    [
        (("what " * 30, "a thing"), "example-cut", f"begin after {LIMIT} tokens"),
        ({"messages": [USER, {**ANSWER, "weight": 0}]}, "example-weight-zero", "weight 0"),
        (("what", " \n"), "example-answer-empty", "empty"),
        ({"messages": [ANSWER]}, "example-answer-first", "before every prompt"),
        ({"messages": [USER, CALL]}, "example-calls-unwritten", "writes no calls"),
        (
            {"messages": [USER, {**ANSWER, "weight": 0}, USER, {**ANSWER, "content": ""}]},
            "example-answer-empty",
            "the last is empty",
        ),
    ],
)
@pytest.mark.parametrize("template", [None, CHATML])
def test_each_cause_of_nothing_to_learn_has_its_own_reason_and_way_out(
    template: str | None, example: Any, reason: str, said: str
) -> None:
    (row,), (one,) = rows_of(template, example)
    assert row.tokens == ()
    assert one.reason == reason
    assert reason in NOTHING_COUNTS
    assert said in one.sentence
    assert one.sentence.count(". ") >= 1  # the way out
    if reason == "example-cut":
        assert "it has 3" in one.sentence  # about thirty tokens and some
        assert "max_tokens" in one.sentence


def test_an_answer_that_the_template_does_not_write() -> None:
    silent = CHATML.replace("m['content']", "(m['content'] if m['role'] == 'user' else '')")
    silent = silent.replace(" </s> ", " ")
    _, (one,) = rows_of(silent, ("what", "a thing"))
    assert one.reason == "example-answer-unwritten"


def test_a_trainer_says_how_many_it_has_and_which_are_cut(tmp_path: Path) -> None:
    """Cut examples still train: without the rest they would count as zero."""
    lines = [
        {"prompt": "What is AI?", "answer": "A field of science."},
        {"prompt": "What is AI?", "answer": "A field. " * 200},
        {"prompt": "q", "answer": ""},
    ]
    path = tmp_path / "data.jsonl"
    path.write_text("\n\n".join(map(json.dumps, lines)))
    it = trainer(path)  # type: ignore[arg-type]
    assert (it.examples, it.cut) == (None, ())
    manifest = tiny_task()
    it.contribute(job(manifest))
    assert manifest.training is not None
    (cut,) = it.cut
    assert (cut.index, cut.place) == (1, "line 3 of data.jsonl")
    assert cut.limit == manifest.training.max_tokens
    assert cut.tokens > 400
    assert it.examples == 3
    assert [one.index for one in it.left_out] == [2]
    short = trainer([("What is AI?", "A field. " * 200)] * 16)  # some are drawn
    assert short.contribute(job(manifest))["gradient"].any()


class Lazy:
    """Rows that are read when they are asked for, one of them from a file that is gone."""

    def __len__(self) -> int:
        return 3

    def __getitem__(self, place: int) -> Any:
        if place == 1:
            raise OSError("my secret")
        return ("q", "a")


def test_a_lazy_record_that_raises_is_told_by_its_place() -> None:
    (one,) = unread(Lazy())  # type: ignore[arg-type]
    assert (one.index, one.reason) == (1, "example-failed")
    assert "my secret" not in str(one)


def test_a_data_set_without_an_example_says_so() -> None:
    it = trainer([])
    with pytest.warns(UserWarning, match="noise alone"):
        it.contribute(job(tiny_task()))
    assert (it.examples, it.left_out, it.cut) == (0, (), ())
