"""RFC 6962 trees against the published vectors of Certificate Transparency."""

from __future__ import annotations

import hashlib
from collections.abc import Callable

import pytest

from dp.errors import LeafUnproven, LedgerError, LogForked
from dp.tlog import merkle
from dp.tlog.merkle import (
    EMPTY_ROOT,
    Tree,
    consistency_proof,
    inclusion_proof,
    leaf_hash,
    root,
    verify_consistency,
    verify_inclusion,
)
from tests.kits import nine_leaves
from tests.kits.nine_leaves import BEFORE, PROOF, ROOT, TREE
from tests.kits.said import Case, refused

# certificate-transparency, merkletree tests: leaves, roots of the first n, proofs.
LEAVES = [
    bytes.fromhex(text)
    for text in (
        "",
        "00",
        "10",
        "2021",
        "3031",
        "40414243",
        "5051525354555657",
        "606162636465666768696a6b6c6d6e6f",
    )
]
ROOTS = [
    "6e340b9cffb37a989ca544e6bb780a2c78901d3fb33738768511a30617afa01d",
    "fac54203e7cc696cf0dfcb42c92a1d9dbaf70ad9e621f4bd8d98662f00e3c125",
    "aeb6bcfe274b70a14fb067a5e5578264db0fa9b51af5e0ba159158f329e06e77",
    "d37ee418976dd95753c1c73862b9398fa2a2cf9b4ff0fdfe8b30cd95209614b7",
    "4e3bbb1f7b478dcfe71fb631631519a3bca12c9aefca1612bfce4c13a86264d4",
    "76e67dadbcdf1e10e1b74ddc608abd2f98dfb16fbce75277b5232a127f2087ef",
    "ddb89be403809e325750d3d263cd78929c2942b7942a34b77e122c9594a74c8c",
    "5dc9da79a70659a9ad559cb701ded9a2ab9d823aad2f4960cfe370eff4604328",
]
INCLUSION = {  # (index, size) -> audit path
    (0, 1): [],
    (0, 8): [
        "96a296d224f285c67bee93c30f8a309157f0daa35dc5b87e410b78630a09cfc7",
        "5f083f0a1a33ca076a95279832580db3e0ef4584bdff1f54c8a360f50de3031e",
        "6b47aaf29ee3c2af9af889bc1fb9254dabd31177f16232dd6aab035ca39bf6e4",
    ],
    (5, 8): [
        "bc1a0643b12e4d2d7c77918f44e0f4f79a838b6cf9ec5b5c283e1f4d88599e6b",
        "ca854ea128ed050b41b35ffc1b87b8eb2bde461e9e3b5596ece6b9d5975a0ae0",
        "d37ee418976dd95753c1c73862b9398fa2a2cf9b4ff0fdfe8b30cd95209614b7",
    ],
    (2, 3): ["fac54203e7cc696cf0dfcb42c92a1d9dbaf70ad9e621f4bd8d98662f00e3c125"],
}
CONSISTENCY = {  # (old size, size) -> proof
    (1, 1): [],
    (1, 8): [
        "96a296d224f285c67bee93c30f8a309157f0daa35dc5b87e410b78630a09cfc7",
        "5f083f0a1a33ca076a95279832580db3e0ef4584bdff1f54c8a360f50de3031e",
        "6b47aaf29ee3c2af9af889bc1fb9254dabd31177f16232dd6aab035ca39bf6e4",
    ],
    (6, 8): [
        "0ebc5d3437fbe2db158b9f126a1d118e308181031d0a949f8dededebc558ef6a",
        "ca854ea128ed050b41b35ffc1b87b8eb2bde461e9e3b5596ece6b9d5975a0ae0",
        "d37ee418976dd95753c1c73862b9398fa2a2cf9b4ff0fdfe8b30cd95209614b7",
    ],
    (2, 5): [
        "5f083f0a1a33ca076a95279832580db3e0ef4584bdff1f54c8a360f50de3031e",
        "bc1a0643b12e4d2d7c77918f44e0f4f79a838b6cf9ec5b5c283e1f4d88599e6b",
    ],
}


def published() -> Tree:
    return Tree([leaf_hash(leaf) for leaf in LEAVES])


def test_roots_are_the_published_ones() -> None:
    tree = published()
    assert [root(tree.subtree, size).hex() for size in range(1, 9)] == ROOTS
    assert root(tree.subtree, 0) == EMPTY_ROOT == hashlib.sha256().digest()


@pytest.mark.parametrize(("index", "size"), INCLUSION)
def test_inclusion_proofs_are_the_published_ones(index: int, size: int) -> None:
    proof = inclusion_proof(published().subtree, index, size)
    assert [step.hex() for step in proof] == INCLUSION[index, size]


@pytest.mark.parametrize(("old_size", "size"), CONSISTENCY)
def test_consistency_proofs_are_the_published_ones(old_size: int, size: int) -> None:
    proof = consistency_proof(published().subtree, old_size, size)
    assert [step.hex() for step in proof] == CONSISTENCY[old_size, size]


@pytest.mark.parametrize(("index", "size"), [(-1, 3), (3, 3), (0, 0)])
def test_no_proof_for_a_leaf_that_is_not_there(index: int, size: int) -> None:
    with pytest.raises(LedgerError, match="proof-range"):
        inclusion_proof(published().subtree, index, size)
    with pytest.raises(LedgerError, match="inclusion-proof"):
        verify_inclusion(leaf_hash(b""), index, size, [], EMPTY_ROOT)


def test_no_proof_towards_a_smaller_tree() -> None:
    with pytest.raises(LedgerError, match="proof-range"):
        consistency_proof(published().subtree, 5, 4)
    with pytest.raises(LedgerError, match="consistency-proof"):
        verify_consistency(5, 4, EMPTY_ROOT, EMPTY_ROOT, [])


def test_special_consistency_proofs_are_strict() -> None:
    first, second = bytes.fromhex(ROOTS[0]), bytes.fromhex(ROOTS[1])
    verify_consistency(0, 0, EMPTY_ROOT, EMPTY_ROOT, [])
    verify_consistency(0, 2, EMPTY_ROOT, second, [])
    verify_consistency(2, 2, second, second, [])
    for arguments in (
        (0, 2, first, second, []),
        (0, 2, EMPTY_ROOT, second, [first]),
        (0, 0, EMPTY_ROOT, second, []),
        (2, 2, first, second, []),
        (2, 2, second, second, [first]),
        (1, 2, first, second, []),
    ):
        with pytest.raises(LedgerError, match="consistency-proof"):
            verify_consistency(*arguments)


# RFC 6962, section 2.1, word for word and over lists: slow, and without any index arithmetic.


def split_point(size: int) -> int:
    return max(2**k for k in range(8) if 2**k < size)


def defined_root(leaves: list[bytes]) -> bytes:
    if len(leaves) == 1:
        return hashlib.sha256(b"\x00" + leaves[0]).digest()
    k = split_point(len(leaves))
    return hashlib.sha256(b"\x01" + defined_root(leaves[:k]) + defined_root(leaves[k:])).digest()


def defined_path(index: int, leaves: list[bytes]) -> list[bytes]:
    if len(leaves) == 1:
        return []
    k = split_point(len(leaves))
    if index < k:
        return [*defined_path(index, leaves[:k]), defined_root(leaves[k:])]
    return [*defined_path(index - k, leaves[k:]), defined_root(leaves[:k])]


def defined_proof(old: int, leaves: list[bytes], known: bool) -> list[bytes]:
    if old == len(leaves):
        return [] if known else [defined_root(leaves)]
    k = split_point(len(leaves))
    if old <= k:
        return [*defined_proof(old, leaves[:k], known), defined_root(leaves[k:])]
    return [*defined_proof(old - k, leaves[k:], False), defined_root(leaves[:k])]


SIZES = range(1, 20)
NUMBERED = [bytes([number]) for number in SIZES]


def test_every_proof_of_every_small_tree_is_the_one_that_is_defined() -> None:
    tree = Tree()
    for size in SIZES:
        leaves = NUMBERED[:size]
        assert tree.append(leaf_hash(leaves[-1])) == size - 1
        whole = root(tree.subtree, size)
        assert whole == defined_root(leaves)
        for index in range(size):
            path = inclusion_proof(tree.subtree, index, size)
            assert path == defined_path(index, leaves)
            verify_inclusion(leaf_hash(leaves[index]), index, size, path, whole)
        for old in range(1, size + 1):
            proof = consistency_proof(tree.subtree, old, size)
            assert proof == defined_proof(old, leaves, True)
            verify_consistency(old, size, defined_root(leaves[:old]), whole, proof)


def test_no_proof_serves_another_leaf_size_or_root() -> None:
    tree = Tree([leaf_hash(leaf) for leaf in NUMBERED])
    roots = [defined_root(NUMBERED[:size]) for size in SIZES]
    for size in (5, 8, 13, 19):
        for index in range(size):
            path, hashed = inclusion_proof(tree.subtree, index, size), tree.subtree(0, index)
            for shorter in (path[1:], path[:-1], [*path, path[0]]):
                with pytest.raises(LedgerError, match="inclusion-proof"):
                    verify_inclusion(hashed, index, size, shorter, roots[size - 1])
            with pytest.raises(LedgerError, match="inclusion-proof"):
                verify_inclusion(hashed, index, size, path, roots[size - 2])
        for old in range(1, size):
            proof = consistency_proof(tree.subtree, old, size)
            for before, wrong in (
                (roots[old - 1], [*proof, proof[0]]),
                (roots[old - 1], proof[:-1]),
                (roots[old], proof),
            ):
                with pytest.raises(LedgerError, match="consistency-proof"):
                    verify_consistency(old, size, before, roots[size - 1], wrong)
            with pytest.raises(LedgerError, match="consistency-proof"):
                verify_consistency(old, size, roots[old - 1], roots[size - 2], proof)


PATH = merkle.inclusion_proof(TREE.subtree, 3, 9)
OLD = (5, BEFORE.hex())


def consistency(
    old: int, size: int, proof: list[bytes], before: bytes = BEFORE
) -> Callable[[], None]:
    return lambda: merkle.verify_consistency(old, size, before, ROOT, proof)


REFUSED = {
    "a leaf that is not there": Case(
        lambda: merkle.inclusion_proof(TREE.subtree, 9, 9), "proof-range", 9, 9
    ),
    "a longer prefix": Case(
        lambda: merkle.consistency_proof(TREE.subtree, 10, 9), "proof-range", "<= 9", 10
    ),
    "a leaf outside": Case(
        lambda: merkle.verify_inclusion(nine_leaves.LEAVES[0], 9, 9, PATH, ROOT),
        "inclusion-proof",
        None,
        (9, 9),
        error=LeafUnproven,
    ),
    "a path too long": Case(
        lambda: merkle.verify_inclusion(nine_leaves.LEAVES[3], 3, 9, [*PATH, ROOT], ROOT),
        "inclusion-proof",
        error=LeafUnproven,
    ),
    "another root": Case(
        lambda: merkle.verify_inclusion(nine_leaves.LEAVES[3], 3, 9, PATH, BEFORE),
        "inclusion-proof",
        BEFORE.hex(),
        ROOT.hex(),
        error=LeafUnproven,
    ),
    "a path too short": Case(
        lambda: merkle.verify_inclusion(nine_leaves.LEAVES[0], 0, 9, [], nine_leaves.LEAVES[0]),
        "inclusion-proof",
        nine_leaves.LEAVES[0].hex(),
        nine_leaves.LEAVES[0].hex(),
        error=LeafUnproven,
    ),
    "a shorter log": Case(
        consistency(10, 9, PROOF), "consistency-proof", (10, BEFORE.hex()), error=LogForked
    ),
    "an empty log of another root": Case(
        consistency(0, 9, []), "consistency-proof", (0, BEFORE.hex()), error=LogForked
    ),
    "a proof of nothing": Case(
        consistency(0, 9, PROOF, merkle.EMPTY_ROOT),
        "consistency-proof",
        (0, merkle.EMPTY_ROOT.hex()),
        error=LogForked,
    ),
    "a log of the same size": Case(
        consistency(9, 9, []), "consistency-proof", (9, BEFORE.hex()), error=LogForked
    ),
    "no proof": Case(consistency(5, 9, []), "consistency-proof", OLD, error=LogForked),
    "a proof too long": Case(
        consistency(5, 9, [*PROOF, ROOT]), "consistency-proof", OLD, error=LogForked
    ),
    "a proof too short": Case(
        consistency(5, 9, PROOF[:-1]), "consistency-proof", OLD, error=LogForked
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_refusal_says_what_was_expected_and_what_was_found(name: str) -> None:
    refused(REFUSED[name], LedgerError)


@pytest.mark.parametrize(("size", "hashes"), [(0, 1), (3, 1), (4, 2), (5, 3), (-1, 0)])
def test_a_frontier_has_a_hash_for_each_bit_of_its_size(size: int, hashes: int) -> None:
    with pytest.raises(LedgerError) as caught:
        merkle.Frontier(size, [bytes(32)] * hashes)
    assert caught.value.reason == "proof-range"


def test_an_empty_frontier_has_the_root_of_nothing() -> None:
    assert merkle.Frontier().root() == EMPTY_ROOT
    assert merkle.Frontier().hashes == ()
