"""RFC 6962 Merkle trees: roots, inclusion and consistency proofs over any source of hashes.

A *subtree reader* returns the hash of the complete subtree over the leaves
[index * 2^level, (index + 1) * 2^level). A list of leaves is one such source (:class:`Tree`), a
folder of tiles another (:mod:`dp.tlog.tiles`).
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence

from dp.errors import LeafUnproven, LedgerError, LogForked

SubtreeReader = Callable[[int, int], bytes]

HASH_BYTES = 32
EMPTY_ROOT = hashlib.sha256(b"").digest()


def leaf_hash(entry: bytes) -> bytes:
    """SHA-256(0x00 || entry); RFC 6962, section 2.1."""
    return hashlib.sha256(b"\x00" + entry).digest()


def node_hash(left: bytes, right: bytes) -> bytes:
    """SHA-256(0x01 || left || right); RFC 6962, section 2.1."""
    return hashlib.sha256(b"\x01" + left + right).digest()


class Tree:
    """An append-only tree in memory; all complete subtrees are kept, so proofs cost O(log n)."""

    def __init__(self, leaf_hashes: Sequence[bytes] = ()) -> None:
        self._levels: list[list[bytes]] = [[]]
        for hashed in leaf_hashes:
            self.append(hashed)

    @property
    def size(self) -> int:
        return len(self._levels[0])

    def append(self, hashed: bytes) -> int:
        """Add a leaf by its hash; returns its index."""
        index = self.size
        level = 0
        self._levels[0].append(hashed)
        while len(self._levels[level]) % 2 == 0:
            if level + 1 == len(self._levels):
                self._levels.append([])
            left, right = self._levels[level][-2:]
            self._levels[level + 1].append(node_hash(left, right))
            level += 1
        return index

    def subtree(self, level: int, index: int) -> bytes:
        return self._levels[level][index]


class Frontier:
    """The first leaves of a log as the roots of their largest complete subtrees, from the left.

    At most one hash for each bit of ``size``; leaves are added without those before.
    """

    def __init__(self, size: int = 0, hashes: Sequence[bytes] = ()) -> None:
        """
        Raises:
            LedgerError: ``proof-range``: so many leaves have another number of subtrees.
        """
        if size < 0 or len(hashes) != size.bit_count():
            raise LedgerError(
                "proof-range",
                "A frontier has a subtree for each bit of its size.",
                expected=max(size, 0).bit_count(),
                found=len(hashes),
            )
        self.size = size
        self._hashes = list(hashes)

    @property
    def hashes(self) -> tuple[bytes, ...]:
        return tuple(self._hashes)

    def append(self, hashed: bytes) -> None:
        """Add a leaf by its hash."""
        carry = self.size
        while carry & 1:
            hashed = node_hash(self._hashes.pop(), hashed)
            carry >>= 1
        self._hashes.append(hashed)
        self.size += 1

    def root(self) -> bytes:
        """Merkle tree hash of the leaves."""
        if not self._hashes:
            return EMPTY_ROOT
        *others, hashed = self._hashes
        for left in reversed(others):
            hashed = node_hash(left, hashed)
        return hashed


def _split(size: int) -> int:
    """The largest power of two smaller than ``size``."""
    return 1 << ((size - 1).bit_length() - 1)


def _range_hash(subtree: SubtreeReader, start: int, end: int) -> bytes:
    size = end - start
    if size & (size - 1) == 0:
        level = size.bit_length() - 1
        return subtree(level, start >> level)
    middle = start + _split(size)
    return node_hash(_range_hash(subtree, start, middle), _range_hash(subtree, middle, end))


def root(subtree: SubtreeReader, size: int) -> bytes:
    """Merkle tree hash of the first ``size`` leaves."""
    return EMPTY_ROOT if size == 0 else _range_hash(subtree, 0, size)


def inclusion_proof(subtree: SubtreeReader, index: int, size: int) -> list[bytes]:
    """Audit path of a leaf; RFC 6962, section 2.1.1.

    Raises:
        LedgerError: ``proof-range``.
    """
    if not 0 <= index < size:
        raise LedgerError(
            "proof-range", "No such leaf in a tree of this size.", expected=size, found=index
        )
    path: list[bytes] = []
    start, end = 0, size
    while end - start > 1:
        middle = start + _split(end - start)
        if index < middle:
            path.append(_range_hash(subtree, middle, end))
            end = middle
        else:
            path.append(_range_hash(subtree, start, middle))
            start = middle
    return path[::-1]


def consistency_proof(subtree: SubtreeReader, old_size: int, size: int) -> list[bytes]:
    """Proof that the first ``old_size`` leaves are a prefix; RFC 6962, section 2.1.2.

    Empty for ``old_size`` 0 or ``size``.

    Raises:
        LedgerError: ``proof-range``.
    """
    if not 0 <= old_size <= size:
        raise LedgerError(
            "proof-range",
            "A tree is not a prefix of a smaller one.",
            expected=f"<= {size}",
            found=old_size,
        )
    if old_size in (0, size):
        return []
    path: list[bytes] = []
    start, end, whole = 0, size, True  # whole: the old tree is a complete subtree at the end
    while old_size != end:
        middle = start + _split(end - start)
        if old_size <= middle:
            path.append(_range_hash(subtree, middle, end))
            end = middle
        else:
            path.append(_range_hash(subtree, start, middle))
            start = middle
            whole = False
    if not whole:
        path.append(_range_hash(subtree, start, end))
    return path[::-1]


def verify_inclusion(
    hashed: bytes, index: int, size: int, proof: Sequence[bytes], root_hash: bytes
) -> None:
    """Check an audit path; RFC 9162, section 2.1.3.2 (same trees as RFC 6962).

    Raises:
        LeafUnproven: ``inclusion-proof``.
    """
    if not 0 <= index < size:
        raise LeafUnproven(
            "inclusion-proof", "The leaf lies outside the tree.", found=(index, size)
        )
    fn, sn = index, size - 1
    computed = hashed
    for step in proof:
        if sn == 0:
            raise LeafUnproven("inclusion-proof", "The inclusion proof is too long.")
        if fn & 1 or fn == sn:
            computed = node_hash(step, computed)
            while not fn & 1 and fn != 0:
                fn, sn = fn >> 1, sn >> 1
        else:
            computed = node_hash(computed, step)
        fn, sn = fn >> 1, sn >> 1
    if sn != 0 or computed != root_hash:
        raise LeafUnproven(
            "inclusion-proof",
            "The leaf is not in the tree.",
            expected=root_hash.hex(),
            found=computed.hex(),
        )


def verify_consistency(
    old_size: int, size: int, old_root: bytes, root_hash: bytes, proof: Sequence[bytes]
) -> None:
    """Check a consistency proof; RFC 9162, section 2.1.4.2.

    Raises:
        LogForked: ``consistency-proof``.
    """

    def fail(message: str) -> LogForked:
        error = LogForked("consistency-proof", message, expected=(old_size, old_root.hex()))
        error.proof = tuple(proof)
        return error

    if not 0 <= old_size <= size:
        raise fail("The log became shorter.")
    if old_size == 0 and (proof or old_root != EMPTY_ROOT):
        raise fail("An empty tree is a prefix of every tree, by an empty proof.")
    if old_size == size:
        if proof or old_root != root_hash:
            raise fail("Two trees of the same size differ.")
        return
    if old_size == 0:
        return
    path = list(proof)
    if old_size & (old_size - 1) == 0:
        path.insert(0, old_root)
    if not path:
        raise fail("The consistency proof is empty.")
    fn, sn = old_size - 1, size - 1
    while fn & 1:
        fn, sn = fn >> 1, sn >> 1
    old_computed = new_computed = path[0]
    for step in path[1:]:
        if sn == 0:
            raise fail("The consistency proof is too long.")
        if fn & 1 or fn == sn:
            old_computed = node_hash(step, old_computed)
            new_computed = node_hash(step, new_computed)
            while not fn & 1 and fn != 0:
                fn, sn = fn >> 1, sn >> 1
        else:
            new_computed = node_hash(new_computed, step)
        fn, sn = fn >> 1, sn >> 1
    if sn != 0 or old_computed != old_root or new_computed != root_hash:
        raise fail("The older tree is not a prefix of this one: the log was rewritten or forked.")
