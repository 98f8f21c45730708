"""The device's storage key: seals everything that the SDK keeps on disk.

Either a key file that only its owner can read (the default: protects backups of other files, not
against who reads the whole folder), or Argon2id over a passphrase (RFC 9106) that only the app
knows, or a key in the operating system's keyring (:mod:`client_sdk.state.os_keyring`). Sealing is
XChaCha20-Poly1305 with random 192-bit nonces; each blob is bound to its name, so that blobs cannot
be swapped. An old copy of the whole folder still opens where its key is: a device that can be
rolled back counts as corrupt, no key can stop that.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Literal

import msgspec
import nacl.bindings
import nacl.exceptions
import nacl.pwhash.argon2id as argon2id

from client_sdk.errors import StateError
from client_sdk.state import os_keyring
from client_sdk.state.durable_files import (
    make_private_folder,
    read_state,
    remove_durably,
    write_durably,
)
from secagg.files.folders import demand_own_folder
from secagg.files.text import TextFile
from secagg.hashing import derive, encode_parts
from secagg.secret import Secret

FILE = "storage.key"
KEY_BYTES = 32
NONCE_BYTES = 24
_FILE = TextFile(
    "storage key", StateError, "state-unreadable", "keystore-damaged", private="keystore-open"
)
_CHECK_LABEL = "keystore check"
_MEMORY_MAX_BYTES = 1 << 31  # a damaged file must not ask for all memory
_OPERATIONS_MAX = 64


class _KeyFile(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """``check`` is an empty text sealed under the key: tells a wrong passphrase at once.

    ``salt``: of a key in a keyring, the name of its entry.
    """

    version: Literal[1] = 1
    kind: Literal["file", "argon2id", "keyring"]
    key: bytes = b""
    salt: bytes = b""
    operations: int = 0
    memory_bytes: int = 0
    check: bytes = b""


class StorageKey:
    """Seals and opens blobs by name."""

    def __init__(self, key: Secret) -> None:
        if len(key) != KEY_BYTES:
            raise ValueError(f"a storage key has {KEY_BYTES} bytes, not {len(key)}")
        self._key = key

    def seal(self, name: str, plaintext: bytes) -> bytes:
        """Nonce (24 bytes) and ciphertext; 40 bytes longer than ``plaintext``."""
        nonce = os.urandom(NONCE_BYTES)
        return nonce + nacl.bindings.crypto_aead_xchacha20poly1305_ietf_encrypt(
            plaintext, encode_parts("state", name.encode()), nonce, self._key.reveal()
        )

    def open(self, name: str, sealed: bytes) -> bytes:
        """The plaintext.

        Raises:
            StateError: ``state-damaged``: another key, another name, or changed bytes.
        """
        try:
            return nacl.bindings.crypto_aead_xchacha20poly1305_ietf_decrypt(
                sealed[NONCE_BYTES:],
                encode_parts("state", name.encode()),
                sealed[:NONCE_BYTES],
                self._key.reveal(),
            )
        except (nacl.exceptions.CryptoError, ValueError, TypeError) as error:
            raise StateError(
                "state-damaged",
                f"The sealed state {name!r} does not open.",
                remedy="Use the state folder that belongs to this device and passphrase.",
            ) from error

    def fingerprint(self, name: str, content: bytes) -> str:
        """32 hex digits that nobody without the key can make, or check a guess with."""
        return derive(self._key.reveal(), "state fingerprint", name.encode(), content)[:16].hex()


def open_storage_key(
    folder: Path,
    passphrase: str | None = None,
    *,
    keyring: bool = False,
    kept: tuple[str, ...] = ("lock", "forgetting"),
    operations: int = argon2id.OPSLIMIT_MODERATE,
    memory_bytes: int = argon2id.MEMLIMIT_MODERATE,
) -> StorageKey:
    """The storage key of a state folder; made on first use.

    ``operations`` and ``memory_bytes`` set the cost of Argon2id when the key file is made (256 MiB
    and about 0.7 s by default); later the file's own values count. ``kept``: what the folder may
    hold besides, where it has no key. ``keyring``: a new key goes to the system's keyring; one that
    is there already is found without a word.

    Raises:
        StateError: ``state-folder-taken`` (it holds other things and no key),
            ``keystore-open`` (others can read the key file), ``keystore-damaged``,
            ``keystore-kind`` (made with a passphrase and opened without, or the other way round),
            ``passphrase-wrong``; ``state-unwritable``, ``state-unreadable``;
            ``keyring-entry-gone``, or as :mod:`client_sdk.state.os_keyring`.
    """
    if keyring and passphrase is not None:
        raise StateError(
            "keystore-kind",
            "A state folder is sealed in one way.",
            expected="a passphrase or a keyring",
            found="both",
            remedy="Give one of the two.",
        )
    demand_own_folder(
        folder, "state folder", (FILE,), (*kept, f"{FILE}.new"), StateError, "state-folder-taken"
    )
    make_private_folder(folder)
    path = folder / FILE
    stored = _stored(path)
    if stored is None:
        return _create(path, passphrase, keyring, operations, memory_bytes)
    if (stored.kind == "argon2id") != (passphrase is not None):
        raise StateError(
            "keystore-kind",
            "The state folder is sealed in another way.",
            expected="a passphrase" if stored.kind == "argon2id" else "no passphrase",
            found="a passphrase" if passphrase is not None else "no passphrase",
        )
    if stored.kind == "keyring":
        return _open_with_keyring(folder, stored)
    if keyring:
        raise StateError(
            "keystore-kind",
            "The state folder has its key in a file beside it.",
            expected="a key file",
            found="a keyring",
            remedy="Go on without a keyring, or forget the device and enrol a new one with it: "
            "what was spent of data with a data id stays counted.",
        )
    if passphrase is None:
        if len(stored.key) != KEY_BYTES:
            raise StateError("keystore-damaged", f"{path} holds no key of {KEY_BYTES} bytes.")
        return StorageKey(Secret(stored.key))
    return _open_with_passphrase(path, stored, passphrase)


def drop_storage_key(folder: Path) -> None:
    """Remove a folder's key; nothing that is sealed under it opens again.

    Raises:
        StateError: ``state-unwritable``, or as :mod:`client_sdk.state.os_keyring`.
    """
    stored = _stored(folder / FILE)
    if stored is not None and stored.kind == "keyring":
        os_keyring.drop(stored.salt.hex())
    remove_durably(folder / f"{FILE}.new")
    remove_durably(folder / FILE)


def _stored(path: Path) -> _KeyFile | None:
    """Raises: StateError: ``keystore-damaged``, ``keystore-open``, ``state-unreadable``."""
    if read_state(path) is None:
        return None
    try:
        return msgspec.json.decode(_FILE.read(path), type=_KeyFile)
    except (msgspec.MsgspecError, ValueError) as error:
        raise StateError("keystore-damaged", f"{path} does not parse: {error}.") from error


def _create(
    path: Path, passphrase: str | None, keyring: bool, operations: int, memory_bytes: int
) -> StorageKey:
    if keyring:
        secret, entry = Secret(os.urandom(KEY_BYTES)), os.urandom(argon2id.SALTBYTES)
        os_keyring.keep(entry.hex(), secret)
        key = StorageKey(secret)
        stored = _KeyFile(kind="keyring", salt=entry, check=key.seal(_CHECK_LABEL, b""))
        write_durably(path, msgspec.json.encode(stored))
        return key
    if passphrase is None:
        secret = Secret(os.urandom(KEY_BYTES))
        key, stored = StorageKey(secret), _KeyFile(kind="file", key=secret.reveal())
    else:
        salt = os.urandom(argon2id.SALTBYTES)
        key = StorageKey(_stretch(passphrase, salt, operations, memory_bytes))
        stored = _KeyFile(
            kind="argon2id",
            salt=salt,
            operations=operations,
            memory_bytes=memory_bytes,
            check=key.seal(_CHECK_LABEL, b""),
        )
    write_durably(path, msgspec.json.encode(stored))
    return key


def _open_with_keyring(folder: Path, stored: _KeyFile) -> StorageKey:
    secret = os_keyring.find(stored.salt.hex())
    if secret is None and _all_forgotten(folder):  # its key is the last that goes
        remove_durably(folder / FILE)
        return open_storage_key(folder, keyring=True)
    if secret is None or len(secret) != KEY_BYTES:
        raise StateError(
            "keyring-entry-gone",
            f"The key of {folder} is not in this user's keyring.",
            found=f"no key under {os_keyring.SERVICE}, {stored.salt.hex()}",
            remedy="Unlock or restore the keyring that the folder was made with. Without its key "
            "the folder cannot be read: begin a new one, and its account is found again in the "
            "ledger.",
        )
    key = StorageKey(secret)
    key.open(_CHECK_LABEL, stored.check)
    return key


def _all_forgotten(folder: Path) -> bool:
    """Whether a device was forgotten here up to its key: nothing is left that the key opens."""
    from client_sdk.state.journal import own_files  # which knows this module

    return (folder / "forgetting").exists() and not own_files(folder)


def _open_with_passphrase(path: Path, stored: _KeyFile, passphrase: str) -> StorageKey:
    if (
        len(stored.salt) != argon2id.SALTBYTES
        or not 0 < stored.operations <= _OPERATIONS_MAX
        or not argon2id.MEMLIMIT_MIN <= stored.memory_bytes <= _MEMORY_MAX_BYTES
    ):
        raise StateError("keystore-damaged", f"{path} has impossible Argon2id parameters.")
    key = StorageKey(_stretch(passphrase, stored.salt, stored.operations, stored.memory_bytes))
    try:
        key.open(_CHECK_LABEL, stored.check)
    except StateError as error:
        raise StateError(
            "passphrase-wrong", "The passphrase does not open this state folder."
        ) from error
    return key


def _stretch(passphrase: str, salt: bytes, operations: int, memory_bytes: int) -> Secret:
    return Secret(
        argon2id.kdf(
            KEY_BYTES, passphrase.encode(), salt, opslimit=operations, memlimit=memory_bytes
        )
    )
