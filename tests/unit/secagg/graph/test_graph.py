"""The graph is symmetric, public, and spreads the sealing evenly."""

from __future__ import annotations

import pytest

from secagg.errors import ConfigurationError, LocalProtocolError
from secagg.graph import harary
from tests.kits.said import Case, refused


@pytest.mark.parametrize("size", [2, 3, 4, 5, 20, 127, 128])
def test_everyone_is_everyone_elses_neighbour(size: int) -> None:
    for index in range(size):
        found = harary.neighbours(index, size)
        assert found == tuple(sorted(set(range(size)) - {index}))
        assert all(index in harary.neighbours(other, size) for other in found)


@pytest.mark.parametrize("size", [2, 3, 4, 5, 20, 127, 128])
def test_each_edge_has_one_sealer_and_the_work_is_even(size: int) -> None:
    sealed = [0] * size
    for first in range(size):
        for second in range(first + 1, size):
            end = harary.sealer(first, second)
            assert end in (first, second)
            assert harary.sealer(second, first) == end
            sealed[end] += 1
    assert sum(sealed) == size * (size - 1) // 2
    assert max(sealed) - min(sealed) <= 1


def test_sealers_are_frozen() -> None:
    assert [harary.sealer(i, j) for i in range(4) for j in range(i + 1, 4)] == [0, 2, 0, 1, 3, 2]


@pytest.mark.parametrize(("index", "size"), [(-1, 3), (3, 3), (0, 0)])
def test_places_outside_the_roster_are_refused(index: int, size: int) -> None:
    with pytest.raises(LocalProtocolError) as caught:
        harary.neighbours(index, size)
    assert caught.value.reason == "roster-index"


def test_a_device_has_no_edge_to_itself() -> None:
    with pytest.raises(LocalProtocolError) as caught:
        harary.sealer(3, 3)
    assert caught.value.reason == "roster-index"


REFUSED = {
    "an odd degree": Case(
        lambda: harary.Graph(1000, 3),
        "graph-degree",
        "an even degree, or 0 for the complete graph",
        3,
        error=ConfigurationError,
    ),
    "an index beyond the roster": Case(
        lambda: harary.neighbours(9, 5), "roster-index", "below 5", 9, error=LocalProtocolError
    ),
    "an edge to oneself": Case(
        lambda: harary.sealer(3, 3), "roster-index", None, 3, error=LocalProtocolError
    ),
    "an edge that is none": Case(
        lambda: harary.Graph(5).sealer(3, 3), "graph-edge", None, (3, 3), error=LocalProtocolError
    ),
    "no roster digest": Case(
        lambda: harary.neighbours(0, 1000, 100),
        "graph-seed",
        "32 bytes",
        0,
        error=LocalProtocolError,
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_refusal_says_what_is_wrong(name: str) -> None:
    refused(REFUSED[name])
