"""The quality benchmark: resumable, honest about what it did not run, and its shape is readable."""

from __future__ import annotations

import json
import xml.etree.ElementTree as ET

import pytest

from benchmarks import quality, quality_report
from benchmarks.quality_rows import ROWS, noise_for, task_of
from dp.accounting import headline, lines

FFA = next(row for row in ROWS if row.name == "FFA-LoRA")


def _result(folder, row, epsilon, seed, loss, rate=1.0, **more):
    fields = {
        "row": row,
        "epsilon": epsilon,
        "seed": seed,
        "rate": rate,
        "loss": loss,
        "before": 7.0,
        "bytes_up": 1_500_000,
        "bytes_down": 2_000,
        "device_seconds": 3.0,
        **more,
    }
    folder.mkdir(exist_ok=True)
    (folder / f"{row}-{epsilon}-{seed}-{rate}.json").write_text(json.dumps(fields))


def test_the_table_takes_the_best_rate_and_names_what_was_not_run(tmp_path):
    folder = tmp_path / "tiny-6x16"
    for seed, (good, bad) in enumerate([(5.0, 6.0), (5.2, 4.0), (5.4, 9.0)]):
        _result(folder, "FedAvg", None, seed, good, rate=2.0)
        _result(folder, "FedAvg", None, seed, bad, rate=4.0)
    made = quality_report.table(folder)
    line = next(text for text in made.splitlines() if text.startswith("| FedAvg |"))
    assert line.startswith("| FedAvg | 5.200 ± 0.200 | 181.3 | not run |")
    assert "1.5 MB" in line


def test_an_unfinished_rate_is_not_compared_with_a_finished_one(tmp_path):
    folder = tmp_path / "tiny-6x16"
    for seed in range(2):
        _result(folder, "FedAvg", 8.0, seed, 5.0, rate=2.0)
    _result(folder, "FedAvg", 8.0, 0, 1.0, rate=4.0)
    cell = quality_report.cells(folder)[("FedAvg", 8.0)]
    assert cell.rate == 2.0


def test_a_refused_combination_is_shown_as_none(tmp_path):
    folder = tmp_path / "tiny-6x16"
    _result(folder, "FedAvg", None, 0, 5.0)
    (folder / "x.json").write_text(
        json.dumps({"row": "exact product", "epsilon": 3.0, "refused": "no-example-privacy"})
    )
    line = next(
        t for t in quality_report.table(folder).splitlines() if t.startswith("| exact product")
    )
    assert "| none |" in line


def test_the_chart_is_well_formed_and_has_a_mark_for_each_cell(tmp_path):
    folder = tmp_path / "tiny-6x16"
    _result(folder, "FedAvg", None, 0, 5.0)
    _result(folder, "FedAvg", 3.0, 0, 6.0)
    root = ET.fromstring(quality_report.chart(folder))  # noqa: S314  (our own text)
    circles = [e for e in root.iter() if e.tag.endswith("circle")]
    assert len(circles) == 2 + 3  # marks, and the legend's


def test_the_report_replaces_only_what_is_between_its_marks(tmp_path):
    folder = tmp_path / "tiny-6x16"
    _result(folder, "FedAvg", None, 0, 5.0)
    page = tmp_path / "page.md"
    begin, end = (m.format(folder.name) for m in (quality_report.BEGIN, quality_report.END))
    page.write_text(f"before\n{begin}\nold\n{end}\nafter\n")
    quality_report.write_report(folder, page)
    text = page.read_text()
    assert text.startswith("before\n")
    assert text.endswith("\nafter\n")
    assert "old" not in text
    assert (tmp_path / "quality-tiny-6x16.svg").exists()


@pytest.mark.parametrize("epsilon", [8.0, 3.0])
def test_the_noise_is_the_least_that_keeps_the_promise(epsilon):
    manifest = task_of(FFA, "tiny", 3, 2, 0, 4.0, epsilon)
    cost = headline(lines(manifest, 2))
    assert 0.98 * epsilon < cost <= epsilon
    assert manifest.example_privacy.noise_multiplier == noise_for(FFA, "tiny", 3, 2, epsilon)


def test_a_run_with_its_file_is_not_repeated(tmp_path, monkeypatch):
    monkeypatch.setattr(quality, "RESULTS", tmp_path)
    run = quality.Run(FFA, "tiny", 2, 1, 0, 4.0, None)
    quality._one(run)
    found = json.loads(run.path.read_text())
    assert found["loss"] < found["before"]
    run.path.write_text("{}")
    quality._one(run)
    assert run.path.read_text() == "{}"
