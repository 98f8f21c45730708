"""The sparse graph: regular, symmetric, drawn without bias from the roster digest."""

from __future__ import annotations

import hashlib
from collections import Counter
from itertools import permutations

import pytest
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from secagg.errors import ConfigurationError, LocalProtocolError
from secagg.graph import harary
from secagg.graph.harary import Graph


def seed(number: int) -> bytes:
    return hashlib.sha256(b"%d" % number).digest()


@pytest.mark.parametrize(("size", "degree"), [(129, 2), (129, 64), (200, 100), (1001, 150)])
def test_everyone_has_exactly_k_neighbours_and_adjacency_is_mutual(size: int, degree: int) -> None:
    drawn = Graph(size, degree, seed(1))
    around = [drawn.neighbours(index) for index in range(size)]
    assert not drawn.is_complete
    for index, found in enumerate(around):
        assert len(set(found)) == degree == drawn.neighbour_count
        assert list(found) == sorted(found)
        assert index not in found
        assert all(index in around[other] for other in found)
    for other in range(size):
        assert drawn.adjacent(0, other) == (other in around[0])


@pytest.mark.slow
@pytest.mark.parametrize(("size", "degree"), [(129, 2), (200, 100), (1001, 150)])
def test_each_device_seals_exactly_half_of_its_edges(size: int, degree: int) -> None:
    drawn = Graph(size, degree, seed(2))
    sealed: Counter[int] = Counter()
    for index in range(size):
        for other in drawn.neighbours(index):
            end = drawn.sealer(index, other)
            assert end in (index, other)
            assert drawn.sealer(other, index) == end
            sealed[end] += 1
    assert set(sealed.values()) == {degree}, "each edge was counted from both of its ends"
    assert len(sealed) == size


def test_a_harary_graph_stays_connected_without_any_k_minus_one_devices_in_a_row() -> None:
    """k-regular and k-connected: cutting it takes k/2 devices on each side of an arc."""
    size, half = 150, 5
    drawn = Graph(size, 2 * half, seed(3))
    order, _ = harary._circle(seed(3), size)

    def reached(without: set[int]) -> int:
        start = next(index for index in range(size) if index not in without)
        seen, todo = {start}, [start]
        while todo:
            for other in drawn.neighbours(todo.pop()):
                if other not in without and other not in seen:
                    seen.add(other)
                    todo.append(other)
        return len(seen)

    arc = set(order[10 : 10 + half]) | set(order[60 : 60 + half - 1])
    assert reached(arc) == size - len(arc)
    arc = set(order[10 : 10 + half]) | set(order[60 : 60 + half])
    assert reached(arc) < size - len(arc)


def test_the_circle_is_the_one_of_the_specification() -> None:
    """The order written down again from the module's text, with nothing of its code."""
    size, root = 300, seed(4)
    label = b"secagg/1 graph order"
    info = len(label).to_bytes(8, "little") + label + (8).to_bytes(8, "little")
    info += size.to_bytes(8, "little")
    key = HKDF(algorithm=SHA256(), length=32, salt=None, info=info).derive(root)
    stream = Cipher(algorithms.AES(key), modes.CTR(bytes(16))).encryptor().update(bytes(40_000))
    words = [int.from_bytes(stream[at : at + 4], "little") for at in range(0, 40_000, 4)]
    order = list(range(size))
    for place in reversed(range(1, size)):
        while (word := words.pop(0)) >= 2**32 // (place + 1) * (place + 1):
            pass
        other = word % (place + 1)
        order[place], order[other] = order[other], order[place]
    at = order.index(17)
    expected = sorted(order[(at + step) % size] for step in range(-20, 21) if step)
    assert Graph(size, 40, root).neighbours(17) == tuple(expected)


def test_the_circle_is_frozen() -> None:
    order, _ = harary._circle(bytes(32), 1000)
    assert order[:8] == (822, 452, 133, 163, 627, 717, 438, 368)
    assert hashlib.sha256(repr(order).encode()).hexdigest()[:16] == "c131cae112be40b0"


def test_every_order_is_equally_likely() -> None:
    """Chi-squared over all orders of four, 23 degrees of freedom; fixed seeds, so never flaky."""
    draws = 4800
    counts = Counter(harary._circle(seed(number), 4)[0] for number in range(draws))
    assert set(counts) == set(permutations(range(4)))
    expected = draws / 24
    statistic = sum((count - expected) ** 2 / expected for count in counts.values())
    assert statistic < 49.7, "the 0.999 quantile"


def test_words_that_would_favour_some_places_are_skipped(monkeypatch: pytest.MonkeyPatch) -> None:
    """2^32 mod 3 = 1: the largest word has no two equals, so it is passed over."""
    drawn = iter([2**32 - 1, 2**32 - 3, 2**32 - 2])
    monkeypatch.setattr(harary, "_words", lambda seed, size: drawn)
    order, positions = harary._circle.__wrapped__(bytes(32), 3)
    assert next(drawn, None) is None, "one skipped, one for each place but the first"
    assert order == (2, 0, 1)
    assert positions == (1, 2, 0)


def test_another_roster_draws_another_circle() -> None:
    assert Graph(200, 20, seed(1)).neighbours(0) != Graph(200, 20, seed(2)).neighbours(0)


@pytest.mark.parametrize(
    ("size", "degree", "complete"),
    [
        (128, 10, True),
        (129, 10, False),
        (129, 128, True),
        (129, 126, False),
        (131, 130, True),
        (132, 130, False),
        (5000, 0, True),
    ],
)
def test_where_the_graph_is_complete(size: int, degree: int, complete: bool) -> None:
    assert Graph(size, degree, seed(0)).is_complete is complete
    assert harary.neighbour_count(size, degree) == (size - 1 if complete else degree)
    assert len(harary.neighbours(3, size, degree, seed(0))) == harary.neighbour_count(size, degree)


def test_the_complete_graph_keeps_its_orientation() -> None:
    assert Graph(128, 10, seed(0)).sealer(3, 7) == harary.sealer(3, 7)


@pytest.mark.parametrize("degree", [-2, 3, 101])
def test_odd_degrees_are_refused(degree: int) -> None:
    with pytest.raises(ConfigurationError) as caught:
        Graph(1000, degree, seed(0))
    assert caught.value.reason == "graph-degree"


def test_a_sparse_graph_without_a_roster_digest_is_refused() -> None:
    with pytest.raises(LocalProtocolError) as caught:
        harary.neighbours(0, 1000, 100)
    assert caught.value.reason == "graph-seed"


def test_strangers_have_no_sealer() -> None:
    drawn = Graph(200, 4, seed(5))
    stranger = next(other for other in range(1, 200) if not drawn.adjacent(0, other))
    for wrong, reason in [
        ((0, stranger), "graph-edge"),
        ((0, 0), "graph-edge"),
        ((0, 200), "roster-index"),
    ]:
        with pytest.raises(LocalProtocolError) as caught:
            drawn.sealer(*wrong)
        assert caught.value.reason == reason
