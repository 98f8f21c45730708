"""A log of nine entries with a signed checkpoint, and its root when it had five."""

from __future__ import annotations

from dp.tlog import merkle
from dp.tlog.notes import Checkpoint, parse_verifier, sign_checkpoint
from secagg.secret import Secret
from tests.kits.tasks import LEDGER_SEED, ORIGIN, VERIFIER

LEAVES = [merkle.leaf_hash(bytes([number])) for number in range(9)]
TREE = merkle.Tree(LEAVES)
ROOT, BEFORE = merkle.root(TREE.subtree, 9), merkle.root(TREE.subtree, 5)
LOG = parse_verifier(VERIFIER)
HEAD = Checkpoint(ORIGIN, 9, ROOT)
SIGNED = sign_checkpoint(HEAD, Secret(LEDGER_SEED))
PROOF = merkle.consistency_proof(TREE.subtree, 5, 9)
