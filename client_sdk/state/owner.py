"""Whose state folder it is: remembered in the folder, sealed, and checked whenever one is opened.

A folder of an earlier version does not remember it. Its unfinished session tells; without one it
belongs to the first device that opens it.
"""

from __future__ import annotations

import contextlib
from pathlib import Path

from client_sdk.errors import StateError
from client_sdk.state.journal import Journal
from client_sdk.state.keystore import StorageKey

_NAME = "owner"


def own_journal(folder: Path, key: StorageKey, identity_key: bytes) -> Journal:
    """The journal of this device's state folder; call it under the folder's lock.

    ``identity_key``: Ed25519, 32 bytes. On disk when it returns.

    Raises:
        StateError: ``state-of-another-device``; nothing was written. ``state-damaged``.
    """
    journal = Journal(folder, key)
    remembered = journal.load_blob(_NAME)
    owner = remembered or _of_session(journal) or identity_key
    if owner != identity_key:
        raise StateError(
            "state-of-another-device",
            f"The state folder {folder} belongs to another device.",
            expected=identity_key.hex(),
            found=owner.hex(),
            remedy="Name this device's own folder, or a new one: its account is found again in "
            "the ledger.",
        )
    if remembered is None:
        journal.save_blob(_NAME, identity_key)
    return journal


def _of_session(journal: Journal) -> bytes | None:
    with contextlib.suppress(StateError):  # whoever resumes or resets it says so
        session = journal.load_session()
        return None if session is None else session.identity_key
    return None
