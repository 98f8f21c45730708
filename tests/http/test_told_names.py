"""Names that an operator gives: what is wrong with one is said of it, and of nothing else."""

from __future__ import annotations

import base64
from pathlib import Path

import msgspec
import pytest

from client_sdk.enrolment import new_partner_key
from dp.accounting.budget import cost_of
from dp.contracts import BudgetSpec
from tests.kits.service import served, spec


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
    key = base64.b64encode(new_partner_key().key).decode()
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
            body = {"name": name, "key": base64.b64encode(new_partner_key().key).decode()}
            assert (await server.operator("POST", "/partners", body))[0] == 200


async def test_a_created_task_tells_what_it_will_cost_each_unit(tmp_path: Path) -> None:
    noised = spec(device_noise_multiplier=3.0, budget=BudgetSpec(max_epsilon=None, releases_max=5))
    async with served(tmp_path, noised) as server:
        second = msgspec.structs.replace(noised, task="second")
        status, told = await server.operator("POST", "/tasks", second)
        assert status == 200, told
        manifest = (await server.service.tasks.get("second")).manifest
    for planned in told["planned"]:
        unit = planned["unit"]
        assert planned["first"] == pytest.approx(cost_of(unit, manifest, 1))
        assert planned["last"] == pytest.approx(cost_of(unit, manifest, 5))
        assert planned["first"] < planned["last"]
        assert planned["protected"] is (unit == "device")
        assert planned["delta"] == manifest.budget.delta
    assert told["drop_outs_max"] == manifest.cohort.size_max - manifest.cohort.survivors_min
