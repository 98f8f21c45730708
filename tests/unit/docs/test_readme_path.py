"""The README's own task file, policy and commands fit each other."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any

import msgspec
import pytest

from client_sdk.policy import PrivacyPolicy
from dp.contracts import CohortSpec, TaskSpec, parse_spec, warnings
from secagg.graph.parameters import dropouts_tolerated
from secagg.manifest import Manifest
from tests.kits.device import PARTNER, account_in, fedsgd_spec, make_manifest
from tests.kits.readme import blocks, readme_policy, readme_spec

VERIFIER = "ledger.test+b311a02c+ATtqJ7zOtqQtYqOo0CpvDXNlMhV3HeJDpjrASKGLWdop"
MINIMAL = 'task = "support-bot"\n\n[budget]\nmax_epsilon = 8.0\n'  # of dp.contracts.spec


def on_a_small_model(spec: TaskSpec) -> Manifest:
    """What ``task create --model`` adds, here an adapter of twelve numbers."""
    small = fedsgd_spec()
    model = {"base_model": small.base_model, "adapter": small.adapter}
    return make_manifest(msgspec.structs.replace(spec, **model), VERIFIER)


@pytest.mark.parametrize("policy", [readme_policy(), PrivacyPolicy()], ids=["readme", "default"])
@pytest.mark.parametrize(
    "spec",
    [
        readme_spec(),
        parse_spec(MINIMAL),
        TaskSpec(task="x"),
        TaskSpec(task="x", cohort=CohortSpec()),
    ],
    ids=["readme", "minimal", "nothing", "cohort"],
)
def test_the_first_try_is_admitted(spec: TaskSpec, policy: PrivacyPolicy, tmp_path: Path) -> None:
    manifest = on_a_small_model(spec)
    assert manifest.noise is not None
    assert manifest.cohort.corrupt_max == 2
    policy.admit(manifest, own_partner=PARTNER.key, account=account_in(tmp_path))
    assert not any("refuse" in text for text in warnings(manifest))


@pytest.mark.parametrize(
    ("sizes", "corrupt"),
    [
        ({"size_min": 12, "size_max": 12, "survivors_min": 10}, 1),
        ({"size_min": 100, "size_max": 100, "survivors_min": 80}, 10),
        ({"size_min": 180, "size_max": 200, "survivors_min": 160}, 20),
        ({"size_min": 10_000, "size_max": 10_000, "survivors_min": 9_000}, 1_000),
    ],
)
def test_a_file_that_says_no_corrupt_max_assumes_what_devices_demand(
    sizes: dict[str, Any], corrupt: int, tmp_path: Path
) -> None:
    assert CohortSpec(**sizes).corrupt == corrupt
    if corrupt < 100:
        manifest = on_a_small_model(TaskSpec(task="x", cohort=CohortSpec(**sizes)))
        PrivacyPolicy().admit(manifest, own_partner=PARTNER.key, account=account_in(tmp_path))


@pytest.mark.parametrize(
    ("sizes", "corrupt"),
    [((3, 4, 3), 0), ((5, 6, 4), 0), ((5, 8, 4), 1), ((20, 24, 16), 2), ((20, 40, 16), 4)],
)
def test_what_is_assumed_costs_no_drop_out_that_the_file_allows(
    sizes: tuple[int, int, int], corrupt: int
) -> None:
    """Unless the largest cohort cannot lose so many anyway."""
    least, largest, survivors = sizes
    cohort = CohortSpec(size_min=least, size_max=largest, survivors_min=survivors)
    assert cohort.corrupt == corrupt
    for size in (least, largest):
        if dropouts_tolerated(size, 0) >= size - survivors:
            assert dropouts_tolerated(size, corrupt) >= size - survivors


@pytest.mark.parametrize(
    "sizes",
    [
        {"size_min": 6, "size_max": 6, "survivors_min": 4},
        {"size_min": 150, "size_max": 200, "survivors_min": 104},
    ],
)
def test_cohorts_without_room_for_corrupt_devices_are_warned_of(sizes: dict[str, Any]) -> None:
    manifest = on_a_small_model(TaskSpec(task="x", cohort=CohortSpec(**sizes)))
    assert manifest.cohort.corrupt_max < max(1, sizes["size_max"] // 10)
    assert any("devices refuse" in text for text in warnings(manifest))


def test_join_in_the_readme_names_a_base_model() -> None:
    (line,) = [line for block in blocks("sh") for line in block.splitlines() if " join " in line]
    assert {"--model", "--allow-model"} & set(shlex.split(line))
    assert "smollm2" in line
    assert "--model smollm2" in next(b for b in blocks("sh") if "task create" in b)
