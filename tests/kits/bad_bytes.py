"""Bytes that SQLite takes and PostgreSQL does not, or neither: in paths, names and JSON texts."""

from __future__ import annotations

import re

import aiohttp
import msgspec
import yarl
from nacl.signing import SigningKey

from secagg import http_api
from tests.kits.service import TOKEN, Device, Served, spec


async def nowhere_a_failure(server: Served, device: Device) -> None:
    """Every route with a NUL, half of a surrogate pair, or bytes that are no UTF-8 in its path."""
    async with aiohttp.ClientSession() as http:
        for route in server.app.router.routes():
            resource = route.resource
            assert resource is not None
            if "{" not in resource.canonical or route.method == "HEAD":
                continue
            for bad in ("a%00b", "%ED%A0%80", "%FF", "%E2%80%AE", "..%2f.."):
                path = re.sub(r"\{[^}]*\}", bad, resource.canonical)
                url = yarl.URL(server.url + path, encoded=True)
                token = TOKEN if "/operator/" in path else await device.token()
                headers = {"Authorization": f"Bearer {token}"}
                async with http.request(route.method, url, headers=headers) as answer:
                    found = await answer.read()
                assert answer.status == 404, (route.method, path, found)
                assert msgspec.json.decode(found, type=http_api.Problem).reason


async def texts_with_a_nul(server: Served) -> None:
    key = bytes(SigningKey(bytes(range(32))).verify_key)
    for path, body in (
        ("/partners", {"name": "x\0y", "key": key}),
        ("/tasks", spec(task="a\0b")),
        (
            "/tasks",
            {
                "task": "a",
                "algorithm": "sum",
                "privacy": "none",
                "segments": [{"name": "n\0", "length": 4, "clip": 1.0}],
            },
        ),
        (f"/devices/{key.hex()}/ban", {"note": "a\0b"}),
    ):
        status, problem = await server.operator("POST", path, body)
        assert (status, problem["reason"]) in ((400, "body-malformed"), (422, "text-unusable"))
    operator = {"Authorization": f"Bearer {TOKEN}"}
    for body in (b'{"name": "\\ud800", "key": ""}', b'{"na\\u0000me": "x", "key": ""}'):
        async with (
            aiohttp.ClientSession() as http,
            http.post(f"{server.url}/v1/operator/partners", data=body, headers=operator) as answer,
        ):
            assert answer.status == 400
