"""Large libraries load without the garbage collector, which afterwards is as it was."""

from __future__ import annotations

import gc

import pytest

from secagg_cli.models.libraries import collector_paused


def test_the_collector_pauses_and_comes_back_whatever_happens() -> None:
    gc.unfreeze()
    enabled = []

    def load() -> None:
        with collector_paused():
            enabled.append(gc.isenabled())
            raise ImportError

    with pytest.raises(ImportError):
        load()
    assert enabled == [False]
    assert gc.isenabled()
    assert gc.get_freeze_count() > 0, "later walks are spared what was loaded"
    gc.unfreeze()


def test_a_pause_within_a_pause_does_not_end_it() -> None:
    with collector_paused():
        with collector_paused():
            pass
        assert not gc.isenabled()
    assert gc.isenabled()
    gc.unfreeze()
