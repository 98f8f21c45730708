"""``secagg partner`` and ``secagg enroll``: a partner certifies its own devices.

The partner's key never reaches the aggregator: the operator registers its public half, and the
partner issues bundles on its own machine.
"""

from __future__ import annotations

import itertools
import os
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import msgspec
import typer

from secagg_cli.network import base_url, networked, request
from secagg_cli.operator.client import (
    DEFAULT_SERVER,
    Operator,
    ServerOption,
    TokenFileOption,
    server_info,
)
from secagg_cli.operator.hex_keys import hex_key
from secagg_cli.output import CommandError, Format, FormatOption, Output
from secagg_cli.ranges import number

if TYPE_CHECKING:
    from aggregator.views import PartnerView
    from client_sdk.enrolment import PartnerKey

partner_app = typer.Typer(no_args_is_help=True, help="Partners, who certify devices.")

_DAY_S = 86_400


@partner_app.command("add")
@networked
def add(
    name: Annotated[str, typer.Argument(help="The partner's name.")],
    key: Annotated[str | None, typer.Option(help="The partner's public key, hex.")] = None,
    key_file: Annotated[
        Path | None,
        typer.Option(
            help="The partner's secret key file; made if missing. Only the public half is sent."
        ),
    ] = None,
    server: ServerOption = DEFAULT_SERVER,
    token_file: TokenFileOption = None,
    format: FormatOption = Format.text,
) -> None:
    """Register a partner's public key with the aggregator."""
    with Output(format) as out:
        public = _public_key(key, key_file)
        Operator.at(server, token_file).add_partner(name, public)
        out.say(f"Partner {name} may certify devices with key {public.hex()}.")
        out.result({"partner": name, "key": public.hex()})


@partner_app.command("list")
@networked
def list_(
    server: ServerOption = DEFAULT_SERVER,
    token_file: TokenFileOption = None,
    format: FormatOption = Format.text,
) -> None:
    """List the partners whose devices take part."""
    with Output(format) as out:
        partners = Operator.at(server, token_file).partners()
        for row in partners:
            out.say(f"{row.partner_key}  {row.name}")
        if not partners:
            out.say("There is no partner. `secagg partner add NAME --key KEY` registers one.")
        out.result({"partners": msgspec.to_builtins(partners)})


@partner_app.command("remove")
@networked
def remove(
    partner: Annotated[
        str, typer.Argument(help="The partner's name or public key, hex; see secagg partner list.")
    ],
    server: ServerOption = DEFAULT_SERVER,
    token_file: TokenFileOption = None,
    format: FormatOption = Format.text,
) -> None:
    """Refuse a partner's devices from now on; tasks that list it go on without it."""
    with Output(format) as out:
        operator = Operator.at(server, token_file)
        public = _partner_key(operator.partners(), partner)
        tasks = operator.remove_partner(public)
        out.say(f"Devices of {public.hex()} are refused.")
        if tasks:
            out.say(f"These tasks go on without them: {', '.join(tasks)}.")
        out.result({"key": public.hex(), "tasks": list(tasks)})


@partner_app.command("revoke")
@networked
def revoke(
    partner_key_file: Annotated[
        Path, typer.Option("--partner-key", help="The partner's secret key file.")
    ],
    devices: Annotated[
        list[str],
        typer.Argument(
            help="Devices: their bundle files, or their keys in hex. A key alone does not say who "
            "certified it."
        ),
    ],
    reinstate: Annotated[
        bool, typer.Option("--reinstate", help="Take the devices off the list instead.")
    ] = False,
    list_file: Annotated[
        Path | None,
        typer.Option(
            "--list", help="The partner's own copy of its list; default: beside the key file."
        ),
    ] = None,
    server: ServerOption = DEFAULT_SERVER,
    format: FormatOption = Format.text,
) -> None:
    """End devices' certificates early: sign the partner's next revocation list and send it."""
    with Output(format) as out:
        from client_sdk.enrolment import load_partner_key
        from client_sdk.outputs import check_file, write_file
        from secagg.revocation import sign_revocations, verify_revocations

        partner = load_partner_key(partner_key_file)
        file = list_file or partner_key_file.with_name(partner_key_file.name + ".revoked")
        check_file(file, lambda path: bool(verify_revocations(path.read_bytes())))
        before = verify_revocations(file.read_bytes()) if file.exists() else None
        if before is not None and before.partner_key != partner.key:
            raise CommandError("revocation-list", f"{file} is another partner's list.")
        listed = set(before.devices) if before else set()
        named = {_device_key(device, partner.key) for device in devices}
        if reinstate and (others := named - listed):
            raise CommandError(
                "revocation-not-listed",
                f"Not on this partner's list: {', '.join(sorted(k.hex() for k in others))}. "
                "Nothing was changed.",
                remedy=f"Name devices of the list in {file}, or give the list with --list.",
            )
        if before is not None and named <= listed and not reinstate:
            signed = file.read_bytes()
            _send_list(server, partner, signed, int(time.time()))  # the same bytes change nothing
            out.say(f"Nothing changed: list {before.number} holds these devices already.")
            out.result({"number": before.number, "devices": len(listed), "list": str(file)})
            return
        listed = listed - named if reinstate else listed | named
        now = int(time.time())
        number = (before.number if before else 0) + 1
        signed = sign_revocations(partner.seed, number, now, listed)
        _send_list(server, partner, signed, now)
        write_file(file, signed, lambda path: bool(verify_revocations(path.read_bytes())))
        out.say(f"List {number} with {len(listed)} device(s) is in force; a copy is in {file}.")
        out.result({"number": number, "devices": len(listed), "list": str(file)})


def _send_list(server: str, partner: PartnerKey, signed: bytes, now: int) -> None:
    """Under a token of the partner's own key, which certifies itself for that."""
    from secagg.access_token import issue_access_token
    from secagg.keys import issue_certificate

    own = issue_certificate(partner.seed, partner.key, now + _DAY_S)
    token = issue_access_token(partner.seed, own, server_info(server).task_key, now)
    request("POST", server, "/v1/revocations", token, signed)


def _device_key(device: str, partner: bytes) -> bytes:
    """Raises: CommandError ``device-of-another-partner`` for such a bundle; a bare key does not
    say who certified it."""
    from client_sdk.enrolment import load_bundle

    if not os.path.lexists(device):
        return hex_key(
            device,
            "A device that is not named by its bundle's file is named by its key, which",
            "device-key",
            "Name the bundle's file as it is, or the device's key.",
        )
    certificate = load_bundle(Path(device)).certificate
    if certificate.partner_key != partner:
        raise CommandError(
            "device-of-another-partner",
            f"{device} was certified by partner {certificate.partner_key.hex()}; this key is "
            f"{partner.hex()}. A list ends certificates of its own partner alone, so nothing was "
            "changed.",
            remedy="Use the key file of the partner that enrolled the device.",
        )
    return certificate.identity_key


@partner_app.command("key")
def key_(
    file: Annotated[Path, typer.Argument(help="Where the secret key goes (mode 0600).")],
    format: FormatOption = Format.text,
) -> None:
    """Make a partner's key, or show the public half of the one in FILE."""
    with Output(format) as out:
        public = partner_key(file)
        out.say(f"{file}: public key {public.hex()}")
        out.result({"file": str(file), "key": public.hex()})


def enroll(
    partner_key_file: Annotated[
        Path, typer.Option("--partner-key", help="The partner's secret key file.")
    ],
    out_dir: Annotated[
        str,
        typer.Option(
            "--out",
            metavar="<path>",
            help="Folder for the bundles, device-01.json and so on. What lies there stays, and "
            "numbers that are taken are passed over.",
        ),
    ],
    count: Annotated[int, number("Devices to enrol.", low=1, high=100_000)] = 1,
    days: Annotated[int, number("Days that a certificate lasts.", low=1, high=36_500)] = 365,
    server: ServerOption = DEFAULT_SERVER,
    format: FormatOption = Format.text,
) -> None:
    """Write one enrolment bundle a device. A bundle is as secret as the device it makes."""
    with Output(format) as out:
        from client_sdk.outputs import check_file

        folder = _bundle_folder(out_dir)
        base_url(server)
        check_file(next(_free_places(folder)))
        info = server_info(server)
        out.say(f"The aggregator's task key is {info.task_key.hex()}.")
        out.say(f"Its ledger is signed by {info.ledger_verifier}.")
        out.say("Compare both with what the operator told you by another way.")
        bundles = enrol(server, partner_key_file, folder, count, days)
        out.say(f"{len(bundles)} bundle(s) in {folder}.")
        out.result(
            {
                "count": len(bundles),
                "bundles": [str(path) for path in bundles],
                "task_key": info.task_key.hex(),
                "ledger_verifier": info.ledger_verifier,
            }
        )


def partner_key(file: Path) -> bytes:
    """The public half of the key in ``file``, which is made if it is missing."""
    from client_sdk.enrolment import load_partner_key, new_partner_key, save_partner_key
    from client_sdk.outputs import place_of

    file = place_of(file)
    if os.path.lexists(file):
        return load_partner_key(file).key
    fresh = new_partner_key()
    save_partner_key(file, fresh.seed)
    return fresh.key


def enrol(
    server: str, partner_key_file: Path, folder: Path, count: int, days: int = 365
) -> list[Path]:
    """Write ``count`` bundles ``device-NN.json`` into ``folder``; what is there is kept.

    Raises:
        OutputError: ``out-unwritable``; then none of them is left.
    """
    from client_sdk.enrolment import create_bundle, load_partner_key, save_bundle

    info = server_info(server)
    partner = load_partner_key(partner_key_file)
    not_after = int(time.time()) + days * _DAY_S
    paths: list[Path] = []
    try:
        for path in itertools.islice(_free_places(folder), count):
            save_bundle(
                path,
                create_bundle(
                    base_url(server), info.task_key, info.ledger_verifier, partner.seed, not_after
                ),
            )
            paths.append(path)
    except BaseException:
        for path in paths:
            path.unlink(missing_ok=True)
        raise
    return paths


def _bundle_folder(out_dir: str) -> Path:
    """Raises: OutputError: ``out-unwritable``."""
    from client_sdk.errors import OutputError
    from client_sdk.outputs import place_of

    folder = place_of(out_dir)
    if folder.exists() and not folder.is_dir():
        raise OutputError(
            "out-unwritable",
            f"{folder} is a file, and bundles go into a folder.",
            remedy="Name a folder; it is made if it is not there.",
        )
    return folder


def _free_places(folder: Path) -> Iterator[Path]:
    names = (folder / f"device-{number:02}.json" for number in itertools.count(1))
    return (path for path in names if not os.path.lexists(path))


def _partner_key(known: Sequence[PartnerView], named: str) -> bytes:
    """The key of the partner with this key or, if there is one alone, with this name.

    Raises:
        CommandError: ``partner-unknown``, or ``partner-name`` of two partners.
    """
    keys = [row.partner_key for row in known]
    found = [key for key in keys if key == named.lower()]
    found = found or [row.partner_key for row in known if row.name == named]
    if not found:
        raise CommandError(
            "partner-unknown",
            f"No partner here has the name or key {named!r}; there are "
            f"{', '.join(sorted(row.name for row in known)) or 'none'}.",
            remedy="secagg partner list shows names and keys.",
        )
    if len(found) > 1:
        raise CommandError(
            "partner-name",
            f"{len(found)} partners have the name {named!r}: {', '.join(sorted(found))}.",
            remedy="Name the partner by its key.",
        )
    return bytes.fromhex(found[0])


def _public_key(key: str | None, key_file: Path | None) -> bytes:
    if (key is None) == (key_file is None):
        raise CommandError(
            "partner-key", "Give either --key or --key-file.", remedy="See secagg partner key FILE."
        )
    if key_file is not None:
        return partner_key(key_file)
    return parse_partner_key(key or "")


def parse_partner_key(key: str) -> bytes:
    """A partner's Ed25519 key from hex.

    Raises:
        CommandError: ``partner-key``.
    """
    return hex_key(
        key, "A partner's public key", "partner-key", "secagg partner key FILE shows that of FILE."
    )
