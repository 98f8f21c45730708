"""Cells of the database that are sealed, and names of devices that are hashed.

A sealed cell is a version byte, the id of its key (8 bytes), a nonce and XChaCha20-Poly1305 of the
plaintext, with table, row and column as associated data: a cell that was moved does not open. The
first of the keys seals, all of them open. An empty cell is one that was erased, and stays empty.

A device's identity key stands as a keyed hash where rows are looked up by it. Where somebody has to
read it again it stands sealed beside that.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import nacl.bindings
import nacl.exceptions

from secagg.errors import SecaggError
from secagg.hashing import derive, encode_parts
from secagg.secret import Secret

CELL_MOVED = "cell-moved"
_VERSION = b"\x01"
_ID_BYTES = 8
_NONCE_BYTES = nacl.bindings.crypto_aead_xchacha20poly1305_ietf_NPUBBYTES
_HEAD_BYTES = len(_VERSION) + _ID_BYTES + _NONCE_BYTES
OVERHEAD_BYTES = _HEAD_BYTES + nacl.bindings.crypto_aead_xchacha20poly1305_ietf_ABYTES


class Place(NamedTuple):
    """A sealed column, and the columns that name its row."""

    table: str
    column: str
    row: tuple[str, ...]


EVENT = Place("cohort_events", "payload", ("cohort", "seq"))
MESSAGE = Place("mail", "message", ("session", "number"))
ADVERT = Place("sessions", "advert", ("session",))
SESSION_DEVICE = Place("sessions", "device", ("session",))
BAN_DEVICE = Place("bans", "device", ("identity",))
BAN_EVIDENCE = Place("bans", "evidence", ("identity",))
STRIKE_DEVICE = Place("strikes", "device", ("identity", "cohort"))
REFUSAL_DEVICE = Place("refusals", "device", ("task", "identity", "target"))
REFUSAL_TARGET = Place("refusals", "target_device", ("task", "identity", "target"))
REVOKED_DEVICE = Place("revoked", "device", ("partner", "identity"))
NOT_DEALING_DEVICE = Place("not_dealing", "device", ("task", "identity"))
LIST = Place("revocation_lists", "signed", ("partner",))
SEALED = (
    EVENT,
    MESSAGE,
    ADVERT,
    SESSION_DEVICE,
    BAN_DEVICE,
    BAN_EVIDENCE,
    STRIKE_DEVICE,
    REFUSAL_DEVICE,
    REFUSAL_TARGET,
    REVOKED_DEVICE,
    NOT_DEALING_DEVICE,
    LIST,
)


class CellRefused(SecaggError):
    """A sealed cell that does not open."""


class Cells:
    """The keys of one service: what seals, opens and hashes."""

    def __init__(self, keys: Sequence[Secret], names: Secret) -> None:
        """``keys``: 32 bytes each; the first seals, and without any nothing is sealed or opened.
        ``names``: hashes identities."""
        self._keys = {key_id(key): key for key in keys}
        self._sealing = next(iter(self._keys), b"")
        self._names = names

    @property
    def sealing(self) -> str:
        """Id of the key that seals, hex."""
        return self._sealing.hex()

    @property
    def ids(self) -> tuple[str, ...]:
        """Ids of all keys, hex."""
        return tuple(each.hex() for each in self._keys)

    def name(self, identity: str) -> str:
        """Of an identity key in hex: 64 hex digits that nobody without the key can make; empty
        stays empty."""
        if not identity:
            return ""
        return derive(self._names.reveal(), "device name", bytes.fromhex(identity)).hex()

    def seal(self, place: Place, row: Sequence[object], plaintext: bytes) -> bytes:
        """``row``: values of the columns that name it, in the order of ``place.row``.

        Raises:
            CellRefused: ``sealing-key-missing``.
        """
        if not plaintext:
            return b""
        if not self._keys:
            raise CellRefused(
                "sealing-key-missing",
                "There is no key to seal with.",
                remedy="Restore sealing.keys.",
            )
        nonce = os.urandom(_NONCE_BYTES)
        head = _VERSION + self._sealing + nonce
        return head + nacl.bindings.crypto_aead_xchacha20poly1305_ietf_encrypt(
            plaintext, _bound_to(place, row), nonce, self._keys[self._sealing].reveal()
        )

    def open(self, place: Place, row: Sequence[object], cell: bytes) -> bytes:
        """
        Raises:
            CellRefused: ``cell-moved`` or ``sealing-key-missing``.
        """
        if not cell:
            return b""
        key = self._keys.get(cell[len(_VERSION) : len(_VERSION) + _ID_BYTES])
        where = f"{place.table}.{place.column}"
        if cell[: len(_VERSION)] == _VERSION and len(cell) > OVERHEAD_BYTES and key is None:
            raise CellRefused(
                "sealing-key-missing",
                f"A cell of {where} is sealed under a key that sealing.keys does not have.",
                expected=", ".join(self.ids),
                found=cell[len(_VERSION) : len(_VERSION) + _ID_BYTES].hex(),
                remedy="Put the key back into sealing.keys; it may go once `secagg db reseal` ran.",
            )
        try:
            if key is None:
                raise ValueError("no seal")
            return nacl.bindings.crypto_aead_xchacha20poly1305_ietf_decrypt(
                cell[_HEAD_BYTES:],
                _bound_to(place, row),
                cell[_HEAD_BYTES - _NONCE_BYTES : _HEAD_BYTES],
                key.reveal(),
            )
        except (nacl.exceptions.CryptoError, ValueError, TypeError) as error:
            raise CellRefused(
                CELL_MOVED,
                f"A cell of {where} was changed, or is another row's.",
                expected=f"what the service wrote for {_shown(place, row)}",
                found="a cell that does not open there",
                remedy="Somebody wrote into the database beside the service. Restore its newest "
                "backup, and find out who can write there.",
            ) from error

    def is_current(self, cell: bytes) -> bool:
        """Whether the first key sealed it, or nothing is in it."""
        return not cell or cell[len(_VERSION) : len(_VERSION) + _ID_BYTES] == self._sealing


def plain_size(cell: bytes) -> int:
    """Bytes of a sealed cell's plaintext."""
    return max(0, len(cell) - OVERHEAD_BYTES)


def key_id(key: Secret) -> bytes:
    return derive(key.reveal(), "sealing key id", length=_ID_BYTES)


def _bound_to(place: Place, row: Sequence[object]) -> bytes:
    parts = (place.table, place.column, *map(str, row))
    return encode_parts("cell", *(part.encode() for part in parts))


def _shown(place: Place, row: Sequence[object]) -> str:
    pairs: Mapping[str, object] = dict(zip(place.row, row, strict=True))
    return ", ".join(f"{name} {str(value)[:16]}" for name, value in pairs.items())
