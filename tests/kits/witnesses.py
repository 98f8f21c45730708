"""A small log, its checkpoints, and requests to its witnesses."""

from __future__ import annotations

from pathlib import Path

from dp.tlog import merkle
from dp.tlog.notes import Checkpoint, sign_checkpoint, verifier_key
from dp.tlog.witness import AddCheckpoint
from secagg.keys import identity_public_key
from secagg.secret import Secret
from secagg_cli.witness.service import Witness

LOG_SEED = Secret(bytes(range(32)))
ORIGIN = "example.com/log"
LOG_KEY = verifier_key(ORIGIN, identity_public_key(LOG_SEED))

SEEDS = [Secret(bytes([number]) * 32) for number in range(1, 4)]

LEAVES = [merkle.leaf_hash(bytes([number])) for number in range(9)]


def tree(size: int, salt: bytes = b"") -> merkle.Tree:
    return merkle.Tree([merkle.leaf_hash(salt + leaf) for leaf in LEAVES[:size]])


def note(size: int, salt: bytes = b"", seed: Secret = LOG_SEED, origin: str = ORIGIN) -> bytes:
    root = merkle.root(tree(size, salt).subtree, size)
    return sign_checkpoint(Checkpoint(origin, size, root), seed)


def request(old: int, size: int, salt: bytes = b"") -> AddCheckpoint:
    proof = merkle.consistency_proof(tree(size, salt).subtree, old, size)
    return AddCheckpoint(old, tuple(proof), note(size, salt))


def witness(folder: Path, number: int = 0) -> Witness:
    path = folder / f"witness{number}.db"
    return Witness(path, f"w{number}.example", SEEDS[number], [LOG_KEY], lambda: 1_700_000_000)
