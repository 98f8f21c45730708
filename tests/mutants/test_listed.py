"""The list of mutants fits the code: ``python -m tests.mutants`` takes them one by one."""

from __future__ import annotations

import re
from collections import Counter

import pytest

from tests.mutants.__main__ import main
from tests.mutants.listed import ROOT, Mutant, mutants


@pytest.mark.parametrize("mutant", mutants(), ids=lambda mutant: mutant.name)
def test_a_mutant_changes_one_place_and_names_tests_that_exist(mutant: Mutant) -> None:
    assert (ROOT / mutant.file).read_text().count(mutant.old) == 1
    assert mutant.new != mutant.old
    assert mutant.tests
    for test in mutant.tests:
        path, *names = test.split("::")
        text = (ROOT / path).read_text()
        for name in names:
            assert re.search(rf"(def|class) {name.partition('[')[0]}\b", text), test


def test_no_two_mutants_have_one_name() -> None:
    assert max(Counter(mutant.name for mutant in mutants()).values(), default=1) == 1


def test_a_pattern_without_a_mutant_runs_nothing(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A regular expression, for instance: it is not a name as in a shell."""
    monkeypatch.setattr("sys.argv", ["mutants", "^time-"])
    with pytest.raises(SystemExit) as refused:
        main()
    assert refused.value.code == 2
    assert "^time-" in capsys.readouterr().err
