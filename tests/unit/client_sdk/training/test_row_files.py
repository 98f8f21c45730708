"""Files of examples: one reader for the command line, the trainer and evaluations."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pytest

from client_sdk.errors import ContributionError, TaskRefusal
from client_sdk.training.dataset import Input, encode_rows, unread
from client_sdk.training.evaluation import evaluate
from client_sdk.training.row_files import LINE_BYTES_MAX, read_file
from client_sdk.training.trainer import LoraTrainer
from secagg_cli.join.training_data import left_out, read_rows
from secagg_cli.models.corpus import load_clients
from tests.kits.tiny_training import job, tiny, tiny_task, trainer

PAIRS = load_clients(6)[4].train[:4]
ROW = {"prompt": "q", "answer": "a"}
LINE = json.dumps(ROW).encode()


def written(folder: Path, data: bytes, name: str = "data.jsonl") -> Path:
    path = folder / name
    path.write_bytes(data)
    return path


@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"])
@pytest.mark.parametrize("end", [b"\n", b"\r\n"])
def test_lines_end_at_lf_or_crlf_alone(tmp_path: Path, mark: bytes, end: bytes) -> None:
    text = "a\u2028b\u2029c\u0085d\x0be\x0cf\x1cg\x1dh\x1ei\rj"
    row = {"prompt": text, "answer": text}
    raw = json.dumps(row, ensure_ascii=False).encode()
    rows = read_file(written(tmp_path, mark + end.join([raw, b"", b" \t", raw]) + end))
    assert list(rows) == [row, row]
    assert rows.lines == (1, 4)


@pytest.mark.parametrize("layout", [{}, {"indent": 2}, {"separators": (",", ":")}])
def test_a_json_array_is_read(tmp_path: Path, layout: dict[str, Any]) -> None:
    array = json.dumps([ROW, ["q", "a"], {"other": 1}], **layout).encode()
    rows = read_file(written(tmp_path, b"\xef\xbb\xbf\r\n" + array))
    assert list(rows) == [ROW, ["q", "a"], {"other": 1}]
    (one,) = unread(rows)
    assert str(one).startswith("Example 2 of data.jsonl: ")


def test_one_object_over_several_lines_is_one_example(tmp_path: Path) -> None:
    assert list(read_file(written(tmp_path, json.dumps(ROW, indent=1).encode()))) == [ROW]


def test_a_line_of_a_pair_is_no_array(tmp_path: Path) -> None:
    assert list(read_file(written(tmp_path, b'["q", "a"]'))) == [["q", "a"]]
    assert list(read_file(written(tmp_path, b'["q", "a"]\n["r", "b"]'))) == [["q", "a"], ["r", "b"]]


@pytest.mark.parametrize(
    ("line", "said"),
    [
        (b'{"prompt": "q", "answer": "caf\xe9"}', "not UTF-8 (byte 31) and may be Latin-1"),
        (LINE + b",", "Extra data (character 31)"),
        (b"{'prompt': 'q'}", "not JSON"),
        (b"prompt,answer", "not JSON"),
        (b'"text"', "not an object"),
        (b"null", "not an object"),
        (b"5", "not an object"),
        (b"9" * 5_000, "too long"),
        (b'{"prompt": "q", "prompt": "r", "answer": "a"}', "twice"),
        (b'{"a": "' + b"x" * LINE_BYTES_MAX + b'"}', f"a line at most {LINE_BYTES_MAX}"),
        (b"[" * 100_000, "too deeply"),
        (b"", None),
    ],
    ids=lambda value: repr(value)[:40],
)
def test_a_line_that_is_no_example_says_what_it_is(
    tmp_path: Path, line: bytes, said: str | None
) -> None:
    rows = read_file(written(tmp_path, LINE + b"\n" + line + b"\n" + LINE))
    if said is None:
        assert unread(rows) == ()
        return
    (one,) = unread(rows)
    assert one.place == "line 2 of data.jsonl"
    assert said in one.sentence


def test_raw_tabs_are_read(tmp_path: Path) -> None:
    rows = read_file(written(tmp_path, b'{"prompt": "a\tb", "answer": "c"}'))
    assert list(rows) == [{"prompt": "a\tb", "answer": "c"}]


def test_an_item_of_an_array_fails_alone(tmp_path: Path) -> None:
    items = (
        b'{"prompt": "caf\xe9", "answer": "a"}',
        b'{"prompt": "q", "prompt": "r", "answer": "a"}',
        b'{"prompt": "q", "label": ' + b"9" * 5_000 + b"}",
        b"null",
    )
    for item in items:
        rows = read_file(written(tmp_path, b"[\n" + LINE + b",\n" + item + b",\n" + LINE + b"]"))
        assert [rows[0], rows[2]] == [ROW, ROW]
        assert [one.place for one in unread(rows)] == ["example 1 of data.jsonl"]


def test_an_array_that_is_not_whole_is_told(tmp_path: Path) -> None:
    for broken, said in (
        (b"[\n" + LINE + b",\n" + LINE, "Expecting ',' delimiter"),
        (b"[\n" + LINE + b",\n]", "line 3"),
    ):
        told = left_out(read_rows(written(tmp_path, broken)))
        assert told is not None
        assert "begins like a JSON array and is not one" in told
        assert said in told


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-16-be", "utf-32", "utf-32-le"])
def test_another_encoding_is_named(tmp_path: Path, encoding: str) -> None:
    with pytest.raises(ContributionError) as refused:
        read_file(written(tmp_path, LINE.decode().encode(encoding)))
    assert refused.value.reason == "data-encoding"
    assert str(refused.value.found) in encoding.upper()
    assert "UTF-8" in str(refused.value.remedy)


def test_another_format_is_named(tmp_path: Path) -> None:
    for data, name in ((gzip.compress(LINE), "gzip"), (b"PAR1" + bytes(9), "Parquet")):
        with pytest.raises(ContributionError) as refused:
            read_file(written(tmp_path, data))
        assert (refused.value.reason, refused.value.found) == ("data-format", name)


TEXT_FORMATS = [
    (b"prompt,completion\nq,a\n", "CSV"),
    (b'"prompt","completion"\r\n"a, b","two\nlines"\r\n', "CSV"),
    (b"id,text,label\r1,q,0\r2,r,1\r", "CSV"),
    (b"question;answer\nq;a\n", "CSV, with semicolons"),
    (b"text\tlabel\ncaf\xe9\t1\n", "TSV"),
    (b"version https://git-lfs.github.com/spec/v1\noid sha256:ab\nsize 5\n", "LFS"),
    (b"\n <!DOCTYPE html>\n<html>\n{}\n</html>\n", "HTML"),
    (b"<html><body>Log in</body></html>", "HTML"),
    (b"%PDF-1.7\n[]\n%%EOF\n", "PDF"),
    (LINE + b"\r" + LINE + b"\r", "CR alone"),
]


@pytest.mark.parametrize(("data", "found"), TEXT_FORMATS)
@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"])
def test_another_format_of_text_is_named(
    tmp_path: Path, data: bytes, found: str, mark: bytes
) -> None:
    with pytest.raises(ContributionError) as refused:
        read_file(written(tmp_path, mark + data))
    assert refused.value.reason == "data-format"
    assert found in str(refused.value.found)
    assert refused.value.remedy


@pytest.mark.parametrize(
    "line", [data.partition(b"\n")[0] for data, _ in TEXT_FORMATS] + [b"", b"a,b", b"nothing"]
)
def test_a_bad_line_alone_never_refuses_a_file(tmp_path: Path, line: bytes) -> None:
    """Whatever it looks like: the absence of the device would be seen by all."""
    rows = read_file(written(tmp_path, line + b"\n" + LINE + b"\n"))
    assert rows[-1] == ROW
    rows = read_file(written(tmp_path, LINE + b"\n" + line))
    assert rows[0] == ROW
    for prose in (b"nothing, really\nbad, too", b"a,b", b"q\ra", b"nothing\n" * 3):
        assert len(unread(read_file(written(tmp_path, prose)))) > 0


def test_an_array_with_a_mistake_is_told_with_its_place(tmp_path: Path) -> None:
    lines = (b"[", LINE + b",", LINE, LINE, b"]")
    for data, place in (
        (b"\n".join(lines), "(line 4, character 1)"),
        (b"[" + LINE + b" " + LINE + b"]", f"(character {len(LINE) + 3})"),
    ):
        (first, *_) = unread(read_file(written(tmp_path, data)))
        assert first.place == "line 1 of data.jsonl"
        assert place in first.sentence


def test_what_is_no_file_is_refused(tmp_path: Path) -> None:
    for path, reason in (
        (tmp_path / "none", "data-missing"),
        (tmp_path, "data-unreadable"),
        ("a\0b", "data-unreadable"),
    ):
        with pytest.raises(ContributionError) as refused:
            read_file(path)
        assert refused.value.reason == reason


class Dataset:
    """As ``datasets.Dataset``: columns and a length, rows by place, null where a row has none."""

    def __init__(self, rows: list[dict[str, Any]]) -> None:
        self.column_names = sorted({name for row in rows for name in row})
        self._rows = rows

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, place: int) -> dict[str, Any]:
        return {name: self._rows[place].get(name) for name in self.column_names}


class Table:
    """As a ``pandas.DataFrame``: names columns by what would name a row."""

    columns = ("prompt", "answer")

    def __len__(self) -> int:
        return 2

    def __getitem__(self, name: str) -> list[str]:
        return ["a", "b"]


def test_the_same_examples_by_every_way_give_the_same_rows(tmp_path: Path) -> None:
    named = [{"prompt": q, "completion": a} for q, a in PAIRS]
    chats = [
        {"messages": [{"role": "user", "content": q}, {"role": "assistant", "content": a}]}
        for q, a in PAIRS
    ]
    lines = written(tmp_path, b"\n".join(json.dumps(row).encode() for row in named))
    array = written(tmp_path, json.dumps(chats).encode(), "data.json")
    manifest = tiny_task()
    wanted = trainer(PAIRS).contribute(job(manifest))["gradient"]
    assert wanted.any()
    for dataset in (lines, str(array), Dataset(named + chats[:0]), Dataset(chats)):
        it = trainer(dataset)  # type: ignore[arg-type]
        assert (it.contribute(job(manifest))["gradient"] == wanted).all()
        assert it.left_out == ()


def test_tables_are_refused_with_how_to_give_them() -> None:
    with pytest.raises(ContributionError, match="to_dict") as refused:
        trainer(Table())  # type: ignore[arg-type]
    assert refused.value.reason == "dataset-form"


def test_a_trainer_names_the_line_of_a_row_that_counts_as_zero(tmp_path: Path) -> None:
    """Also of one that fails deep inside, in training."""
    lines = [b"", LINE, b'{"prompt": "q", "answer": ""}', b"nothing", LINE]
    it = trainer(written(tmp_path, b"\r\n".join(lines)))  # type: ignore[arg-type]
    it.contribute(job(tiny_task()))
    assert [(one.index, one.place) for one in it.left_out] == [
        (1, "line 3 of data.jsonl"),
        (2, "line 4 of data.jsonl"),
    ]
    work_row = it._encode(64)[0][3]
    from client_sdk.training.dataset import told

    it._left_out[work_row.index] = told(work_row.index, MemoryError())
    assert str(it.left_out[-1]) == "Line 5 of data.jsonl: The example raised MemoryError."


def test_a_refusal_in_the_open_names_the_first_line(tmp_path: Path) -> None:
    it = trainer(written(tmp_path, b"nothing\n"))  # type: ignore[arg-type]
    with pytest.raises(TaskRefusal, match="dataset-empty") as refused:
        it.contribute(job(tiny_task("none")))
    assert str(refused.value.remedy).startswith("Line 1 of data.jsonl: It is not JSON")


def test_a_row_without_anything_to_learn_is_in_no_mean(tmp_path: Path) -> None:
    """Cut off, weight 0, empty: without noise the update is the mean over the others."""
    answer = {"role": "assistant", "content": "a thing"}
    nothing: list[Any] = [
        ("What is AI? " * 200, "A field of science."),
        {"messages": [{"role": "user", "content": "q"}, {**answer, "weight": 0}]},
        ("q", ""),
    ]
    manifest = tiny_task("none", training={"weight_unit": 8, "batch_size": 8})
    it, other = trainer([*PAIRS, *nothing]), trainer(PAIRS)
    values, wanted = (each.contribute(job(manifest)) for each in (it, other))
    assert [one.index for one in it.left_out] == [4, 5, 6]
    assert [one.reason for one in it.left_out] == [
        "example-cut",
        "example-weight-zero",
        "example-answer-empty",
    ]
    for name in wanted:
        assert values[name] == pytest.approx(wanted[name], abs=1e-7)


def test_an_evaluation_tells_what_it_leaves_out_and_names_what_it_cannot_use(
    tmp_path: Path,
) -> None:
    model, tokenizer = tiny()
    wanted = evaluate(model, tokenizer, PAIRS)
    with pytest.warns(UserWarning, match="1 of 5 examples are left out. Example 4: No answer"):
        assert evaluate(model, tokenizer, [*PAIRS, ("q", "")]) == pytest.approx(wanted)
    with pytest.raises(ContributionError, match="Example 1: ") as refused:
        evaluate(model, tokenizer, [PAIRS[0], {"prompt": "q"}])
    assert refused.value.reason == "example-form"
    lines = b"\n".join(json.dumps({"prompt": q, "answer": a}).encode() for q, a in PAIRS)
    assert evaluate(model, tokenizer, written(tmp_path, lines)) == pytest.approx(wanted)
    with pytest.raises(ContributionError, match=r"Line 2 of data\.jsonl"):
        evaluate(model, tokenizer, written(tmp_path, LINE + b"\nnothing"))


def test_what_a_template_raises_is_told_with_the_row() -> None:
    _, tokenizer = tiny()
    tokenizer.chat_template = "{{ 1 // 0 }}"
    takes = Input(vocabulary=1024, context_tokens=None, classes=None)
    _, (one,) = encode_rows(tokenizer, [PAIRS[0]], 64, takes)
    assert str(one) == "Example 0: The example raised ZeroDivisionError."


def test_a_file_that_is_not_there_is_told_when_the_trainer_is_made(tmp_path: Path) -> None:
    with pytest.raises(ContributionError, match="data-missing"):
        LoraTrainer(*tiny(), tmp_path / "none.jsonl")
