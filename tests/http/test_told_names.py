"""Names that an operator gives: what is wrong with one is said of it, and of nothing else."""

from __future__ import annotations

import base64
import os
from pathlib import Path

import pytest

from tests.service_kit import served


@pytest.mark.parametrize(
    ("name", "found"),
    [
        ("", "an empty name"),
        ("   ", "an empty name"),
        ("x" * 201, "201 characters"),
        ("two\nlines", r"'\n'"),
        ("bell\x07", r"'\x07'"),
        ("turned\u202e", r"'\u202e'"),
        (" padded ", "white space"),
    ],
)
async def test_a_partner_s_name_is_told_its_limits(name: str, found: str, tmp_path: Path) -> None:
    key = base64.b64encode(os.urandom(32)).decode()
    async with served(tmp_path) as server:
        body = {"name": name, "key": key}
        status, answer = await server.operator("POST", "/partners", body)
        assert (status, answer["reason"]) == (422, "partner-name")
        assert "1 to 200 characters" in answer["message"]
        assert found in answer["message"].replace("\\\\", "\\")


@pytest.mark.parametrize("size", [0, 31, 33])
async def test_a_partner_s_key_is_told_its_size(size: int, tmp_path: Path) -> None:
    body = {"name": "clinic", "key": base64.b64encode(bytes(size)).decode()}
    async with served(tmp_path) as server:
        status, answer = await server.operator("POST", "/partners", body)
        assert (status, answer["reason"]) == (422, "partner-key")
        assert f"found '{size} bytes'" in answer["message"]


async def test_names_of_other_alphabets_are_names(tmp_path: Path) -> None:
    async with served(tmp_path) as server:
        for name in ("\u75c5\u9662 1", "Klinik S\xfcd", "x" * 200):
            body = {"name": name, "key": base64.b64encode(os.urandom(32)).decode()}
            assert (await server.operator("POST", "/partners", body))[0] == 200
