"""Another address of the same aggregator in a device's bundle: identity, account and state go on.

An address is where a device asks, and nothing that it trusts. What it trusts stays: the task key,
the ledger's key, its partner's certificate. An aggregator at the new address must hold those keys,
and shows so with each manifest and checkpoint that it signs.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from pathlib import Path
from urllib.parse import urlsplit

import msgspec
from msgspec.structs import replace

from client_sdk import outputs
from client_sdk.enrolment import check_bundle, load_bundle
from client_sdk.errors import EnrolmentError
from client_sdk.network.http import Http, TransportSettings, network_of
from client_sdk.threads import demand_no_loop
from secagg.http_api import EnrolmentBundle, ServerInfo

_INFO_BYTES_MAX = 16_384


def repoint(bundle: EnrolmentBundle, server: str, info: ServerInfo) -> EnrolmentBundle:
    """The same device's bundle for the same aggregator at ``server``.

    Args:
        server: its base URL, http or https.
        info: the keys that ``GET /v1/server`` shows there.

    Raises:
        EnrolmentError: ``server-of-another``: its keys are not the bundle's; ``server-plain``: it
            speaks http, and the bundle https; or as :func:`client_sdk.enrolment.check_bundle`.
    """
    for key, has, shown in (
        ("task key", bundle.task_key.hex(), info.task_key.hex()),
        ("ledger", bundle.ledger_verifier, info.ledger_verifier),
    ):
        if has != shown:
            raise EnrolmentError(
                "server-of-another",
                f"{server} is another aggregator: its {key} is not this device's.",
                expected=has,
                found=shown,
                remedy="Give the new address of the aggregator that the device was enrolled with. "
                "For another aggregator the partner enrols its devices anew.",
            )
    moved = replace(bundle, server=server.rstrip("/"))
    check_bundle(moved)
    if (urlsplit(bundle.server).scheme, urlsplit(server).scheme) == ("https", "http"):
        raise EnrolmentError(
            "server-plain",
            "The new address would give up the encryption that the old one has.",
            expected="https://...",
            found=server,
            remedy="Give an address that begins with https://.",
        )
    return moved


def repoint_bundles(
    bundles: Iterable[str | Path], server: str, *, transport: TransportSettings | None = None
) -> tuple[Path, ...]:
    """Give bundle files another address of their aggregator; those that changed.

    Asks the new address for its keys once. All bundles are read and compared before the first is
    written, and each file changes whole or not at all: after a failure the same call goes on. A
    client that runs goes on with the address it began with until it is made anew. Blocks.

    Args:
        bundles: files.
        server: base URL, http or https.
        transport: times and proxies of the question; None: as of a client.

    Raises:
        EnrolmentError: as :func:`repoint` and :func:`client_sdk.enrolment.load_bundle`; then no
            file was changed.
        TransportError: nobody answers at the new address, or not as an aggregator does.
        OutputError: a file cannot be written.
        RunningLoopError: ``loop-running``.
    """
    demand_no_loop("repoint_bundles", awaited=False)
    loaded = [(outputs.place_of(path), load_bundle(Path(path))) for path in bundles]
    info = asyncio.run(_info(server, transport or TransportSettings()))
    moved = [(path, before, repoint(before, server, info)) for path, before in loaded]
    changed = [(path, after) for path, before, after in moved if before != after]
    for path, after in changed:
        encoded = msgspec.json.format(msgspec.json.encode(after)) + b"\n"
        outputs.write_file(path, encoded, _is_bundle, private=True)
    return tuple(path for path, _ in changed)


def _is_bundle(path: Path) -> bool:
    return load_bundle(path) is not None


async def _info(server: str, settings: TransportSettings) -> ServerInfo:
    def no_token(now_s: int) -> str:
        raise AssertionError("what anybody may ask needs no token")

    async with network_of(settings) as network:
        http = Http(server, no_token, network, settings)
        return await http.json("GET", "/v1/server", ServerInfo, _INFO_BYTES_MAX, auth=False)
