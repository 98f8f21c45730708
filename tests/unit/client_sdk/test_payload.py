"""One room makes a device's payload: check, clip indicator, weight, coin, encoding."""

from __future__ import annotations

import ast
import os
from pathlib import Path

import numpy as np
import pytest
from msgspec.structs import replace

import client_sdk
from client_sdk import payload
from client_sdk.errors import ContributionError
from dp.contracts import AdaptiveClipSpec, BudgetSpec
from dp.encoding import decode
from dp.errors import MechanismError
from secagg.manifest import Manifest
from tests.kits.quadratics import LENGTH, quadratic_spec
from tests.kits.tasks import built, statistics

CTX = bytes(32)
SDK = Path(client_sdk.__file__).parent
ONLY_HERE = {"encode", "with_below", "staleness_weight", "check_values", "takes_part"}


def sent(manifest: Manifest, values: dict[str, np.ndarray], staleness: int = 0) -> np.ndarray:
    """The first segment as one device sent it, float64[d]."""
    lanes = payload.encoded(
        manifest,
        values,
        ctx=CTX,
        staleness=staleness,
        masking_set_size=4,
        noise_seeds=(),
        random_bytes=os.urandom,
    )
    return decode(manifest, lanes, survivors=1, rotation_seed=CTX)[manifest.segments[0].name]


def test_no_other_room_of_the_sdk_takes_one_of_these_steps() -> None:
    found = [
        (path.name, alias.name)
        for path in sorted(SDK.rglob("*.py"))
        if path.name not in ("payload.py", "contribution.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.ImportFrom) and node.module and node.level == 0
        if node.module.split(".")[0] in ("dp", "client_sdk")
        for alias in node.names
        if alias.name in ONLY_HERE
    ]
    assert found == []


def test_a_stale_update_is_weighed_where_the_algorithm_says_so() -> None:
    values = {"delta": np.full(LENGTH, 0.25), "loss": np.ones(1)}
    buffered = built(quadratic_spec("fedbuff", privacy="none"))
    assert sent(buffered, values, 3) == pytest.approx(np.full(LENGTH, 0.125), abs=1e-3)
    plain = built(quadratic_spec("fedavg"))
    values["weight"] = np.ones(1)
    assert sent(plain, values, 3) == pytest.approx(np.full(LENGTH, 0.25), abs=1e-3)


def test_a_stale_update_is_clipped_before_it_is_weighed() -> None:
    """By the clip of the update, whatever that of the other segments is."""
    manifest = built(quadratic_spec("fedbuff", privacy="none"))
    clip, other = (segment.clip for segment in manifest.segments)
    assert clip > other
    values = {"delta": np.full(LENGTH, 1e3), "loss": np.ones(1)}
    assert np.linalg.norm(sent(manifest, values, 3)) == pytest.approx(clip / 2, rel=1e-3)


@pytest.mark.parametrize(
    ("values", "reason", "expected", "found"),
    [
        ({"a": np.zeros(3)}, "contribution-shape", (4,), (3,)),
        ({"a": np.full(4, "1")}, "contribution-dtype", "real numbers", "<U1"),
        ({"b": np.zeros(4)}, "contribution-segments", ["a"], ["b"]),
        ({"a": np.full(4, np.nan)}, "contribution-not-finite", "finite", "4 of 4 not finite"),
    ],
)
def test_values_that_do_not_fit_are_refused_with_both_sides(
    values: dict[str, np.ndarray], reason: str, expected: object, found: object
) -> None:
    with pytest.raises(ContributionError) as caught:
        payload.check_values(built(statistics(("a", 4, 1.0))), values)
    error = caught.value
    assert (error.reason, error.expected, error.found) == (reason, expected, found)


def test_who_abstains_sends_zeros_and_noise(monkeypatch: pytest.MonkeyPatch) -> None:
    task = statistics(("a", 4, 1000.0), device_noise_multiplier=8.0, participation_rate=0.5)
    manifest = built(task)
    monkeypatch.setattr(payload, "takes_part", lambda manifest, random_bytes: False)
    noise = replace(manifest.noise, share_variance=1) if manifest.noise else None
    manifest = replace(manifest, noise=noise)
    assert np.abs(sent(manifest, {"a": np.full(4, 400.0)})).max() < 100


def test_values_that_do_not_fit_count_as_zeros_where_noise_hides_that() -> None:
    bad = {"other": np.zeros(4)}
    task = statistics(("a", 4, 1.0), device_noise_multiplier=8.0)
    sent(built(task), bad)
    with pytest.raises(MechanismError):
        sent(built(statistics(("a", 4, 1.0))), bad)


def test_the_clip_s_indicator_is_added_where_the_clip_adapts() -> None:
    noise = {"device_noise_multiplier": 1.0, "removable_noise": False}
    limit = BudgetSpec(max_epsilon=None, releases_max=4)
    fixed = built(quadratic_spec("fednova", budget=limit, **noise))
    spec = AdaptiveClipSpec()
    manifest = built(quadratic_spec("fednova", budget=limit, adaptive_clip=spec, **noise))
    values = {"delta": np.full(LENGTH, 0.01)}
    assert list(payload.prepared(fixed, values, None)) == ["delta"]
    assert list(payload.prepared(manifest, values, 1.0)) == ["delta", "below"]
    with pytest.raises(ContributionError, match="contribution-segments"):
        payload.prepared(manifest, {**values, "below": np.ones(1)}, 1.0)
