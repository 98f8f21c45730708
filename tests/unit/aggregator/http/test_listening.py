"""Where a service listens: an address that cannot be used is named, with the way out."""

from __future__ import annotations

import socket

import pytest
from aiohttp import web

from aggregator.http.connections import Connections, Site
from secagg.errors import ConfigurationError


async def refusal(host: str, port: int = 0) -> ConfigurationError:
    runner = web.AppRunner(web.Application())
    await runner.setup()
    try:
        with pytest.raises(ConfigurationError, match="address-unusable") as caught:
            await Site(runner, host, port, Connections(max=8, per_address=4)).start()
    finally:
        await runner.cleanup()
    return caught.value


@pytest.mark.parametrize("host", [" ", "[::1]", "192.0.2.1", "a..b", "x" * 70])
async def test_a_host_that_is_none_of_this_machine_is_named(host: str) -> None:
    found = await refusal(host)
    assert repr(host) in found.message
    assert "127.0.0.1" in str(found)


async def test_a_port_that_another_program_has_is_named() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        found = await refusal("127.0.0.1", port)
    assert f"port {port}" in found.message
