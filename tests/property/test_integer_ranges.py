"""Every integer that comes from a peer has a range in its decoder, and none of them does harm.

First by looking: no field of any message, manifest, body or token is an integer without bounds.
Then by throwing: the extremes of MessagePack and of the database's columns at each place where an
integer stands, properly signed, at both machines and at the running service.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from copy import deepcopy
from typing import Any

import aiohttp
import msgspec
import pytest

from secagg import (
    access_token,
    client,
    evidence,
    http_api,
    manifest,
    messages,
    ranges,
    revocation,
    server,
)
from secagg.errors import RemoteProtocolError
from secagg.keys import signing_key
from secagg.messages import KINDS, Message
from secagg.simulation import EPOCH_S
from tests.kits.service import TASK, Device, one_hot, served, spec
from tests.kits.wire_samples import recorded

EXTREMES = (
    *(-(1 << bits) for bits in (63, 53, 31)),
    -1,
    *((1 << bits) - off for bits in (31, 32, 53, 62, 63) for off in (1, 0)),
    (1 << 64) - 1,
    10_000,
)


def structs_of(module: Any) -> list[type]:
    return [
        kind
        for kind in vars(module).values()
        if isinstance(kind, type)
        and issubclass(kind, msgspec.Struct)
        and kind.__module__ == module.__name__
    ]


FROM_PEERS = [
    kind
    for module in (messages, http_api, manifest, evidence, revocation, access_token)
    for kind in structs_of(module)
]


def integers_in(info: Any, path: str, seen: set[type]) -> Iterator[tuple[str, Any]]:
    if isinstance(info, msgspec.inspect.IntType):
        yield path, info
    elif isinstance(info, msgspec.inspect.StructType):
        if info.cls not in seen:
            seen.add(info.cls)
            for field in info.fields:
                yield from integers_in(field.type, f"{path}.{field.name}", seen)
    else:
        for inner in (
            *getattr(info, "item_types", ()),
            *getattr(info, "types", ()),
            getattr(info, "item_type", None),
            getattr(info, "key_type", None),
            getattr(info, "value_type", None),
        ):
            if inner is not None:
                yield from integers_in(inner, path, seen)


@pytest.mark.parametrize("kind", FROM_PEERS, ids=lambda kind: f"{kind.__module__}.{kind.__name__}")
def test_no_integer_of_a_peer_is_without_bounds(kind: type) -> None:
    for path, info in integers_in(msgspec.inspect.type_info(kind), kind.__name__, set()):
        low, high = (info.ge, info.gt), (info.le, info.lt)
        assert low != (None, None), path
        assert high != (None, None), path
        assert max(n for n in high if n is not None) <= ranges.INT63_MAX, path


# -- thrown at the machines ------------------------------------------------------------------------


def places_of(tree: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    if isinstance(tree, list | dict):
        for key, value in enumerate(tree) if isinstance(tree, list) else tree.items():
            yield from places_of(value, (*path, key))
    elif isinstance(tree, int) and not isinstance(tree, bool):
        yield path


def with_value(tree: Any, path: tuple[Any, ...], value: int) -> Any:
    changed = deepcopy(tree)
    node = changed
    for key in path[:-1]:
        node = node[key]
    node[path[-1]] = value
    return changed


def extreme_versions(kind: type[Message]) -> Iterator[bytes]:
    """The recorded message, signed again by its sender, with one integer of it changed."""
    wire = recorded()
    sample, ctx = wire.signed[kind]
    _, envelope = messages.peek(sample, *KINDS)
    keys = [wire.task.server.task_key, *(device.identity for device in wire.task.devices)]
    (signer,) = (key for key in map(signing_key, keys) if bytes(key.verify_key) == envelope.signer)
    tree = msgspec.msgpack.decode(envelope.frame[2:])
    for path in places_of(tree):
        for value in EXTREMES:
            frame = envelope.frame[:2] + msgspec.msgpack.encode(with_value(tree, path, value))
            signature = signer.sign(messages.signature_input(kind, ctx, frame)).signature
            yield msgspec.msgpack.encode(
                messages.Signed(frame, bytes(signer.verify_key), signature)
            )


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_extreme_integers_in_a_signed_message_are_typed_refusals(kind: type[Message]) -> None:
    wire = recorded()
    thrown = 0
    for signed in extreme_versions(kind):
        thrown += 1
        for state, _ in wire.device.trace:
            with contextlib.suppress(RemoteProtocolError):
                client.step(
                    wire.device.config, state, client.Received(signed, EPOCH_S), wire.device.tools
                )
        for state, event in wire.aggregator.trace:
            with contextlib.suppress(RemoteProtocolError):
                server.step(wire.task.server, state, server.Received(event.index, signed, EPOCH_S))
    assert thrown or kind in (
        messages.Abort,
        messages.Confirmations,
        messages.Deals,
        messages.Inbox,
    )


@pytest.mark.parametrize("change", ["model_version", "expires_at", "not_after"])
def test_extreme_integers_in_an_advert_are_typed_refusals(change: str) -> None:
    wire = recorded()
    advert, _ = messages.peek(wire.signed[messages.Advert][0], messages.Advert)
    key = signing_key(wire.device.config.identity)
    for value in EXTREMES:
        changed = (
            msgspec.structs.replace(advert, **{change: value})
            if change != "not_after"
            else (
                msgspec.structs.replace(
                    advert,
                    certificate=msgspec.structs.replace(advert.certificate, not_after=value),
                )
            )
        )
        try:
            signed = messages.sign(changed, b"", key)
        except OverflowError:
            continue  # MessagePack has no such integer
        if change == "model_version" and 0 <= value <= ranges.INT32_MAX:
            server.check_advert(wire.task.server, signed, EPOCH_S)
            continue
        with pytest.raises(RemoteProtocolError) as caught:
            server.check_advert(wire.task.server, signed, EPOCH_S)
        assert caught.value.reason in (
            "frame-malformed",
            "advert-lifetime",
            "advert-expired",
            "certificate-invalid",
            "certificate-expired",
        )


def test_a_manifest_with_an_extreme_integer_is_refused_or_decoded() -> None:
    tree = msgspec.msgpack.decode(recorded().manifest)
    thrown = 0
    for path in places_of(tree):
        for value in EXTREMES:
            try:
                manifest.decode_manifest(msgspec.msgpack.encode(with_value(tree, path, value)))
            except RemoteProtocolError as error:
                thrown += error.reason == "manifest-malformed"
    assert thrown > 200


# -- thrown at the service -------------------------------------------------------------------------


async def test_the_service_answers_extreme_integers_with_typed_refusals(tmp_path) -> None:
    async with served(tmp_path, spec(), log_level="CRITICAL") as s:
        device = Device(s, 0, one_hot(0), stop_before="advert")
        await device.run()
        advert, _ = messages.peek(device.advert, messages.Advert)
        key = signing_key(device.seed)
        async with aiohttp.ClientSession() as device.http:
            for field in ("model_version", "expires_at"):
                for value in EXTREMES:
                    changed = msgspec.structs.replace(advert, **{field: value})
                    signed = messages.sign(changed, b"", key)
                    status, body = await device.request("POST", "/v1/adverts", data=signed)
                    assert status in (400, 403, 409, 422), (field, value, body)
                    assert msgspec.json.decode(body)["reason"] != "internal"
            for query in ("after_version", "wait_s", "after", "offset"):
                for value in (*EXTREMES, 10**17, 10**30):
                    for path in (f"/v1/tasks/{TASK}/offer", f"/v1/sessions/{'0' * 64}/messages"):
                        asked = f"{path}?{query}={value if query != 'wait_s' else -value}"
                        if value == -1 and query == "wait_s":
                            continue  # which waits for a second
                        status, body = await device.request("GET", asked)
                        assert status < 500, (asked, body)


async def test_a_task_file_with_an_extreme_integer_never_breaks_the_service(tmp_path) -> None:
    async with served(tmp_path, spec(), log_level="CRITICAL") as s:
        tree = msgspec.json.decode(msgspec.json.encode(spec(task="other")))
        for path in places_of(tree):
            for value in (-(1 << 63), -1, 1 << 31, 1 << 53, (1 << 63) - 1, (1 << 64) - 1, 10**30):
                tree["task"] = f"t{abs(hash((path, value))) % 10**12}"
                status, problem = await s.operator("POST", "/tasks", with_value(tree, path, value))
                assert status in (200, 400, 422), (path, value, problem)
