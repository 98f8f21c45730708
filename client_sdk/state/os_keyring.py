"""The operating system's keyring as the place of a storage key (extra ``keyring``).

Keychain, Credential Locker, Secret Service or KWallet, by the library ``keyring``: the key is then
not among the device's files, and a copy of the folder opens nowhere else. Whatever runs as the same
user may ask the keyring too.
"""

from __future__ import annotations

from types import ModuleType

from client_sdk.errors import StateError
from secagg.secret import Secret

SERVICE = "secagg"
_UNLOCK = (
    "Log in to the desktop or unlock its keyring; or seal the folder by a key file or a passphrase."
)


def keep(entry: str, key: Secret) -> None:
    """Put a key under a name of this user's.

    Raises:
        StateError: ``package-missing``, ``keyring-unavailable``; ``keyring-forgets``: what was put
            there does not come back.
    """
    library = _library()
    try:
        library.set_password(SERVICE, entry, key.reveal().hex())
        found = library.get_password(SERVICE, entry)
    except Exception as error:  # what its backends raise is their own
        raise _unavailable(error) from error
    if found != key.reveal().hex():
        raise StateError(
            "keyring-forgets",
            f"The keyring {_name(library)} does not give back what it was given.",
            remedy="Choose another keyring (`keyring --list-backends`), a key file or a "
            "passphrase. Nothing was sealed.",
        )


def find(entry: str) -> Secret | None:
    """The key under a name; None if there is none.

    Raises:
        StateError: ``package-missing``, ``keyring-unavailable``, ``keystore-damaged``.
    """
    library = _library()
    try:
        found = library.get_password(SERVICE, entry)
    except Exception as error:
        raise _unavailable(error) from error
    try:
        return None if found is None else Secret(bytes.fromhex(found))
    except ValueError as error:
        raise StateError(
            "keystore-damaged", "What the keyring has under this folder's name is no key."
        ) from error


def drop(entry: str) -> None:
    """Remove the key under a name, if it is there.

    Raises:
        StateError: ``package-missing``, ``keyring-unavailable``.
    """
    library = _library()
    try:
        if library.get_password(SERVICE, entry) is not None:
            library.delete_password(SERVICE, entry)
    except Exception as error:
        raise _unavailable(error) from error


def _library() -> ModuleType:
    try:
        import keyring
    except ModuleNotFoundError as error:
        raise StateError(
            "package-missing",
            "The key of this state folder is to be in the system's keyring, and the package "
            "keyring is not installed.",
            remedy="pip install 'secagg[keyring]'",
        ) from error
    library: ModuleType = keyring
    return library


def _name(library: ModuleType) -> str:
    return type(library.get_keyring()).__module__


def _unavailable(error: Exception) -> StateError:
    said = str(error).splitlines()
    return StateError(
        "keyring-unavailable",
        f"The system's keyring does not answer: {type(error).__name__}"
        f"{': ' + said[0][:200] if said else ''}.",
        remedy=_UNLOCK,
    )
