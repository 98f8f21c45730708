"""Rules of the test suite itself: its limits of time, and which tests a mutation run takes."""

from __future__ import annotations

import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
MUTMUT = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["mutmut"]


def test_a_test_that_hangs_ends_with_its_stack(pytestconfig: pytest.Config) -> None:
    """The second limit ends the process, so it lies behind the first."""
    assert pytestconfig.pluginmanager.hasplugin("timeout")
    first = float(pytestconfig.getini("timeout"))
    assert 0 < first < float(pytestconfig.getini("faulthandler_timeout"))
    assert pytestconfig.getini("faulthandler_exit_on_timeout")


@pytest.mark.parametrize("name", MUTMUT["pytest_add_cli_args_test_selection"])
def test_a_mutation_run_names_folders_of_tests(name: str) -> None:
    """A list of files would miss the next one, and keep those that are gone."""
    assert list((ROOT / name).rglob("test_*.py"))


@pytest.mark.parametrize("name", [*MUTMUT["only_mutate"], *MUTMUT["also_copy"]])
def test_a_mutation_run_names_what_is_there(name: str) -> None:
    assert list(ROOT.glob(name))


def test_a_mutation_run_leaves_slow_tests_out(pytestconfig: pytest.Config) -> None:
    options = MUTMUT["pytest_add_cli_args"]
    assert options[options.index("-m") + 1] == "not slow"
    assert any(marker.startswith("slow:") for marker in pytestconfig.getini("markers"))
