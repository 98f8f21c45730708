"""Records of a rotation of the ledger's key, which the service reads and does not write."""

from __future__ import annotations

import rfc8785


def key_rotation_record(old_verifier: str, new_verifier: str, at: int) -> bytes:
    """From here on checkpoints carry a signature by the new key too; Unix seconds."""
    return rfc8785.dumps(
        {
            "type": "key-rotation",
            "version": 1,
            "old_verifier": old_verifier,
            "new_verifier": new_verifier,
            "at": at,
        }
    )
