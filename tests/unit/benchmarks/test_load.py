"""What the load benchmarks call right, and nginx's configuration as they use it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from benchmarks import fleet
from benchmarks.nginx import CONFIGURATION, rendered


def summed(numbers: list[int], length: int) -> np.ndarray:
    vector = np.full(length, float(len(numbers)), np.float32)
    vector[numbers] += 1
    return vector


@pytest.mark.parametrize("length", [5, 6, 200])
def test_a_sum_of_marked_vectors_names_its_members(length: int) -> None:
    assert fleet.members_of(summed([0, 2, 3], length), 5) == {0, 2, 3}


@pytest.mark.parametrize("where", [3, 5, 130, 199])
@pytest.mark.parametrize("wrong", [0.45, 2.0])
def test_one_wrong_coordinate_anywhere_is_seen(
    where: int, wrong: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fleet, "_SLICE", 64)
    vector = summed([0, 2, 3], 200)
    vector[where] += wrong
    with pytest.raises(ValueError, match="coordinates"):
        fleet.members_of(vector, 5)


def test_the_deployed_nginx_has_places_for_all_that_the_benchmark_puts_in() -> None:
    text = rendered(
        CONFIGURATION.read_text(), ["127.0.0.1:1", "127.0.0.1:2"], 3, Path("/somewhere")
    )
    assert text.count("max_fails") == 2
    assert "server 127.0.0.1:2 max_fails" in text
    assert "listen 127.0.0.1:3 ssl" in text
    assert not [word for word in ("10.0.0", "443", "/etc/") if word in text]
    with pytest.raises(ValueError, match="listen"):
        rendered(CONFIGURATION.read_text().replace("listen", "hear"), ["127.0.0.1:1"], 3, Path("/"))
