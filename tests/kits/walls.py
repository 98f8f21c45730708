"""What presses against the service's walls."""

from __future__ import annotations

import asyncio
import re
import socket
import time
from collections.abc import Callable

import msgspec

from tests.kits.service import (
    QUIET_S,
)


def port_of(server) -> int:
    return int(server.url.rpartition(":")[2])


async def connect(server, source: str = "127.0.0.1"):
    return await asyncio.open_connection(
        "127.0.0.1", port_of(server), local_addr=(source, 0), limit=1 << 16
    )


async def ended(reader: asyncio.StreamReader) -> bytes:
    """What came until the service closed the connection."""
    async with asyncio.timeout(QUIET_S):
        try:
            return await reader.read(-1)
        except ConnectionError:
            return b""


def head(method: str, path: str, token: str = "", **fields: object) -> bytes:
    lines = [f"{method} {path} HTTP/1.1", "Host: x"]
    lines += [f"Authorization: Bearer {token}"] if token else []
    lines += [f"{name.replace('_', '-')}: {value}" for name, value in fields.items()]
    return "\r\n".join([*lines, "", ""]).encode()


async def answered(reader: asyncio.StreamReader) -> tuple[int, str, dict[str, str]]:
    """Status, reason and headers of one answer."""
    async with asyncio.timeout(QUIET_S):
        first, *lines = (await reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
        headers = dict(line.lower().split(": ", 1) for line in lines if line)
        body = await reader.readexactly(int(headers.get("content-length", 0)))
    status = int(first.split()[1])
    return status, msgspec.json.decode(body)["reason"] if status >= 400 else "", headers


def refusals(server) -> dict[str, float]:
    found = re.findall(
        r'secagg_refusals_total\{reason="([^"]*)"\} (\S+)',
        server.service.core.metrics.render().decode(),
    )
    return {reason: float(count) for reason, count in found}


async def until(condition: Callable[[], object]) -> None:
    end = time.monotonic() + QUIET_S
    while time.monotonic() < end:
        if condition():
            return
        await asyncio.sleep(0.01)
    raise AssertionError("never came")


def get(port: int, path: str) -> bytes:
    with socket.create_connection(("127.0.0.1", port), timeout=QUIET_S) as connection:
        connection.sendall(head("GET", path, Connection="close"))
        answer = bytearray()
        try:
            while part := connection.recv(1 << 16):
                answer += part
        except ConnectionError:
            pass
        return bytes(answer)
