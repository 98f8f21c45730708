"""Proofs hold for what is there and for nothing else; tiles and trees give the same proofs."""

from __future__ import annotations

import hashlib

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from dp.errors import LedgerError
from dp.tlog import merkle, tiles

MAX = 1200
HASHES = [hashlib.sha256(i.to_bytes(4, "big")).digest() for i in range(MAX)]
TREE = merkle.Tree(HASHES)
FILES = {
    tile.path: tiles.tile_bytes(TREE.subtree, tile)
    for size in (*range(1, 600), *range(1000, 1060), MAX)
    for tile in tiles.tiles_of(size)
}
sizes = st.one_of(st.integers(1, 599), st.integers(1000, 1059), st.just(MAX))


@given(sizes, st.data())
@settings(max_examples=200, deadline=None)
def test_every_leaf_is_included_and_no_other(size: int, data: st.DataObject) -> None:
    index = data.draw(st.integers(0, size - 1))
    root = merkle.root(TREE.subtree, size)
    proof = tiles.inclusion_proof(FILES.get, index, size)
    assert proof == merkle.inclusion_proof(TREE.subtree, index, size)
    merkle.verify_inclusion(HASHES[index], index, size, proof, root)
    other = data.draw(st.integers(0, size - 1))
    assume(other != index)
    with pytest.raises(LedgerError):
        merkle.verify_inclusion(HASHES[other], index, size, proof, root)
    with pytest.raises(LedgerError):
        merkle.verify_inclusion(HASHES[index], other, size, proof, root)


@given(sizes, st.data())
@settings(max_examples=200, deadline=None)
def test_every_prefix_is_consistent_and_no_other_tree(size: int, data: st.DataObject) -> None:
    old = data.draw(st.integers(0, size))
    old_root, root = merkle.root(TREE.subtree, old), merkle.root(TREE.subtree, size)
    proof = tiles.consistency_proof(FILES.get, old, size)
    assert proof == merkle.consistency_proof(TREE.subtree, old, size)
    merkle.verify_consistency(old, size, old_root, root, proof)
    assume(0 < old < size)
    forged = merkle.root(merkle.Tree([HASHES[-1], *HASHES[1:old]]).subtree, old)
    with pytest.raises(LedgerError):
        merkle.verify_consistency(old, size, forged, root, proof)


@given(sizes, st.data())
@settings(max_examples=200, deadline=None)
def test_a_changed_proof_fails(size: int, data: st.DataObject) -> None:
    assume(size > 2)
    root = merkle.root(TREE.subtree, size)
    index, old = data.draw(st.integers(0, size - 1)), data.draw(st.integers(1, size - 1))
    inclusion = merkle.inclusion_proof(TREE.subtree, index, size)
    consistency = merkle.consistency_proof(TREE.subtree, old, size)
    old_root = merkle.root(TREE.subtree, old)
    for proof, check in (
        (inclusion, lambda p: merkle.verify_inclusion(HASHES[index], index, size, p, root)),
        (consistency, lambda p: merkle.verify_consistency(old, size, old_root, root, p)),
    ):
        place = data.draw(st.integers(0, len(proof) - 1))
        for broken in (
            proof[:place] + proof[place + 1 :],
            [*proof[:place], bytes(32), *proof[place + 1 :]],
            [*proof, bytes(32)],
        ):
            with pytest.raises(LedgerError):
                check(broken)


@given(sizes, st.data())
@settings(max_examples=100, deadline=None)
def test_a_device_needs_only_the_paths_that_are_named_beforehand(
    size: int, data: st.DataObject
) -> None:
    index, old = data.draw(st.integers(0, size - 1)), data.draw(st.integers(0, size))
    paths = tiles.proof_paths(size, index=index, old_size=old)
    # A tree of 1,200 leaves: two levels of tiles, and the bundle.
    assert len(paths) <= 7
    fetched = {path: FILES[path] for path in paths if "entries" not in path}
    assert len(fetched) == len(paths) - 1
    tiles.inclusion_proof(fetched.get, index, size)
    tiles.consistency_proof(fetched.get, old, size)


@given(st.lists(st.binary(max_size=50), max_size=20), st.integers(0, 20))
@settings(max_examples=200, deadline=None)
def test_bundles_hold_their_entries(entries: list[bytes], width: int) -> None:
    data = tiles.bundle_bytes(entries)
    assert tiles.parse_bundle(data, len(entries)) == entries
    if width < len(entries):
        assert tiles.parse_bundle(data, width) == entries[:width]
    if width > len(entries):
        with pytest.raises(LedgerError):
            tiles.parse_bundle(data, width)


@given(st.binary(max_size=60), st.integers(0, 8))
@settings(max_examples=300, deadline=None)
def test_any_bytes_are_a_bundle_or_a_ledger_error(data: bytes, width: int) -> None:
    try:
        assert len(tiles.parse_bundle(data, width)) == width
    except LedgerError:
        return


@given(sizes, st.data())
@settings(max_examples=100, deadline=None)
def test_a_frontier_goes_on_from_any_size(size: int, data: st.DataObject) -> None:
    old = data.draw(st.integers(0, size))
    before = merkle.Frontier()
    for hashed in HASHES[:old]:
        before.append(hashed)
    assert before.root() == merkle.root(TREE.subtree, old)
    assert len(before.hashes) == old.bit_count()
    frontier = merkle.Frontier(old, before.hashes)
    for hashed in HASHES[old:size]:
        frontier.append(hashed)
    assert (frontier.size, frontier.root()) == (size, merkle.root(TREE.subtree, size))
    assert before.size == old
