"""The tlog-tiles layout, as c2sp.org/tlog-tiles gives it."""

from __future__ import annotations

import pytest

from dp.errors import LedgerError
from dp.tlog import merkle, tiles
from dp.tlog.tiles import Tile, TileTree, bundles_of, changed, parse_bundle, tiles_of
from tests.kits.said import Case, refused


def test_paths_of_the_specification() -> None:
    assert Tile(0, 1_234_067, 256).path == "tile/0/x001/x234/067"
    assert Tile(0, 1_234_067, 5).path == "tile/0/x001/x234/067.p/5"
    assert Tile(2, 0, 1).path == "tile/2/000.p/1"
    assert Tile(-1, 7, 256).path == "tile/entries/007"
    assert Tile(-1, 1000, 12).path == "tile/entries/x001/000.p/12"
    assert Tile(0, 999, 256).path == "tile/0/999"


def test_a_tree_of_70_000_has_the_tiles_of_the_specification() -> None:
    found = list(tiles_of(70_000))
    assert sum(t.level == 0 and t.width == 256 for t in found) == 273
    assert [(t.level, t.width) for t in found if t.width < 256] == [(0, 112), (1, 17), (2, 1)]
    assert sum(t.level == 1 and t.width == 256 for t in found) == 1
    assert len(list(bundles_of(70_000))) == 274
    assert [(t.level, t.width) for t in tiles_of(256)] == [(0, 256), (1, 1)]
    assert list(tiles_of(0)) == list(bundles_of(0)) == []


def test_only_new_tiles_are_written() -> None:
    assert {tile.path for tile in changed(255, 257)} == {
        "tile/0/000",
        "tile/0/001.p/1",
        "tile/1/000.p/1",
        "tile/entries/000",
        "tile/entries/001.p/1",
    }
    assert list(changed(257, 257)) == []


def test_entries_carry_their_length_as_16_bits_big_endian() -> None:
    assert tiles.bundle_bytes([b"abc", b""]) == b"\x00\x03abc\x00\x00"
    largest = bytes(65_535)
    assert parse_bundle(tiles.bundle_bytes([largest]), 1) == [largest]
    with pytest.raises(LedgerError, match="record-too-large"):
        tiles.bundle_bytes([bytes(65_536)])


@pytest.mark.parametrize("data", [b"\x00", b"\x00\x05abc", b"\x00\x01a\x00"])
def test_broken_bundles_are_refused(data: bytes) -> None:
    with pytest.raises(LedgerError, match="bundle-malformed"):
        parse_bundle(data, 2)


def test_a_full_tile_serves_where_the_partial_one_is_gone() -> None:
    hashes = [bytes([i]) * 32 for i in range(256)]
    tree = merkle.Tree(hashes)
    files = {"tile/0/000": b"".join(hashes)}
    assert tiles.inclusion_proof(files.get, 3, 100) == merkle.inclusion_proof(tree.subtree, 3, 100)
    entries = {"tile/entries/000": tiles.bundle_bytes([bytes([i]) for i in range(256)])}
    assert tiles.read_entry(entries.get, 99, 100) == bytes([99])


def test_missing_and_misshapen_tiles_are_ledger_errors() -> None:
    with pytest.raises(LedgerError, match="tile-missing"):
        tiles.inclusion_proof({}.get, 0, 3)
    with pytest.raises(LedgerError, match="tile-malformed"):
        tiles.inclusion_proof({"tile/0/000.p/3": bytes(95)}.get, 0, 3)
    with pytest.raises(LedgerError, match="proof-range"):
        TileTree({}.get, 3).subtree(1, 1)
    with pytest.raises(LedgerError, match="proof-range"):
        tiles.read_entry({}.get, 3, 3)


@pytest.mark.parametrize("size", [0, 1, 255, 256, 257, 65_536, 70_000])
@pytest.mark.parametrize("old", [0, 1, 255, 256, 257, 511, 65_535, 65_536])
def test_what_changed_is_what_the_older_log_has_not(old: int, size: int) -> None:
    before = {*tiles_of(old), *bundles_of(old)}
    assert old > size or set(changed(old, size)) == {*tiles_of(size), *bundles_of(size)} - before


def test_the_tiles_of_a_signed_size_are_not_listed_beforehand() -> None:
    assert next(tiles_of(10**18)).path == next(changed(0, 10**18)).path == "tile/0/000"
    assert next(bundles_of(10**18)).width == 256
    assert len(tiles.proof_paths(10**18 - 1, index=10**17, old_size=10**16)) < 40


REFUSED = {
    "an entry too large": Case(
        lambda: tiles.bundle_bytes([bytes(65_536)]), "record-too-large", "<= 65535 bytes", 65_536
    ),
    "a bundle cut inside an entry": Case(
        lambda: tiles.parse_bundle(b"\x00\x02a", 1), "bundle-malformed"
    ),
    "a bundle with an entry less": Case(
        lambda: tiles.parse_bundle(b"\x00\x01a", 2), "bundle-malformed", 2, 1
    ),
    "a tile that is gone": Case(
        lambda: tiles.fetch({}.get, Tile(0, 0, 3)), "tile-missing", None, "tile/0/000.p/3"
    ),
    "a subtree that is not there": Case(
        lambda: TileTree({}.get, 3).subtree(1, 1), "proof-range", None, (1, 1, 3)
    ),
    "an entry that is not there": Case(lambda: tiles.read_entry({}.get, 3, 3), "proof-range", 3, 3),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_refusal_says_what_was_expected_and_what_was_found(name: str) -> None:
    refused(REFUSED[name], LedgerError)


def test_a_tile_of_another_size_is_named() -> None:
    with pytest.raises(LedgerError) as caught:
        tiles.fetch({"tile/0/000.p/3": bytes(95)}.get, Tile(0, 0, 3))
    error = caught.value
    assert (error.reason, error.expected, error.found) == ("tile-malformed", 96, 95)
    assert error.message == "tile/0/000.p/3 has the wrong size."
