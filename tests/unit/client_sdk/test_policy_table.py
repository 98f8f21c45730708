"""Every number of a manifest has a row in docs/policy.md, and every reason there refuses."""

from __future__ import annotations

import math
import re
import types
import typing
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import msgspec
import pytest

from client_sdk.errors import PolicyRefusal
from client_sdk.policy import PrivacyPolicy
from dp.accounting.statements import headline, lines
from dp.contracts import (
    BudgetSpec,
    CohortSpec,
    SegmentSpec,
)
from secagg.manifest import Manifest
from tests.kits.device import PARTNER, account_in, make_manifest
from tests.kits.policy_specs import SPECS, VERIFIER

PAGE = Path(__file__).resolve().parents[3] / "docs" / "policy.md"


@cache
def base(name: str) -> Manifest:
    return make_manifest(SPECS[name](), VERIFIER)


def changed(manifest: Any, path: str, value: object) -> Any:
    """``manifest`` with another number at ``path``; of a list, in its first part."""
    head, _, rest = path.partition(".")
    part = getattr(manifest, head)
    if not rest:
        new = value
    elif isinstance(part, tuple):
        new = (changed(part[0], rest, value), *part[1:])
    else:
        new = changed(part, rest, value)
    return msgspec.structs.replace(manifest, **{head: new})


def built(name: str, **changes: Any) -> Manifest:
    return make_manifest(msgspec.structs.replace(SPECS[name](), **changes), VERIFIER)


NO_LIMIT = BudgetSpec(max_epsilon=None)
SIZES = CohortSpec(size_min=12, size_max=12, survivors_min=9, corrupt_max=1)
STEPS = ("share_s", "check_s", "masked_input_s", "confirm_s", "unmask_s")
# (field, base, value or a whole manifest, reason)
CASES: list[tuple[str, str, Any, str]] = [
    ("protocol", "device", 2, "manifest-version"),
    ("created_at", "device", -1, "parameter-out-of-range"),
    ("cohort.size_min", "device", 19, "survivors-min"),
    ("cohort.size_min", "device", 25, "cohort-size"),
    ("cohort.size_max", "device", 40, "removable-drops"),
    (
        "cohort.size_max",
        "local",
        lambda: built("local", cohort=CohortSpec(size_max=30, corrupt_max=2)),
        "corrupt-too-few",
    ),
    ("cohort.survivors_min", "device", lambda: built("device", cohort=SIZES), "cohort-too-small"),
    ("cohort.corrupt_max", "device", 0, "corrupt-too-few"),
    ("cohort.corrupt_max", "distributed", 1, "corrupt-too-few"),
    ("cohort.corrupt_max", "local", 1, "corrupt-too-few"),
    ("cohort.silent_max", "device", 1, "silent-max"),
    ("cohort.degree", "device", 4, "degree-unused"),
    ("cohort.degree", "sparse", lambda: lowered("degree"), "security-missed"),
    ("cohort.threshold", "sparse", 2, "threshold-range"),
    ("cohort.threshold", "sparse", lambda: lowered("threshold"), "security-missed"),
    ("cohort.versions_back", "device", 1, "versions-without-buffer"),
    ("cohort.versions_back", "buffer", 65, "versions-back"),
    ("cohort.model_min", "buffer", 5, "model-min"),
    ("cohort.model_min", "buffer", 9, "model-cohort-too-small"),
    ("deadlines.report_s", "device", 31 * 86_400.0, "parameter-out-of-range"),
    *((f"deadlines.{step}", "device", 0.5, "step-too-short") for step in STEPS),
    *((f"deadlines.{step}", "device", 86_400.0, "held-too-long") for step in STEPS),
    ("segments.length", "distributed", 13, "segments-wrong"),
    ("segments.length", "device", (1 << 28) + 1, "vector-too-long"),
    ("segments.length", "device", lambda: long_statistics(), "upload-too-large"),
    ("segments.clip", "device", 4.0, "clip-units-wrong"),
    ("segments.scale", "device", 1, "clip-units-wrong"),
    ("segments.clip_units", "device", 1 << 20, "clip-units-wrong"),
    ("encoding.ring_bits", "device", 8, "ring-too-small"),
    ("encoding.slice_length", "device", 1 << 17, "slice-length"),
    ("encoding.wrap_log2", "device", -10_000.0, "wrap-understated"),
    ("noise.share_variance", "device", 1, "noise-too-small"),
    ("noise.honest_min", "device", 20, "noise-honest-min"),
    ("noise.removable_drops", "device", (1, 2), "removable-drops"),
    ("example_privacy.clip", "distributed", 2.0, "clip-mismatch"),
    ("example_privacy.noise_multiplier", "distributed", 6.0, "noise-too-small"),
    (
        "example_privacy.noise_multiplier",
        "distributed",
        lambda: built("distributed", noise_multiplier=1.2, budget=NO_LIMIT),
        "epsilon-too-large",
    ),
    ("example_privacy.sampling_rate", "distributed", 1.5, "parameter-out-of-range"),
    ("example_privacy.period", "local", 1, "parameter-out-of-range"),
    ("example_privacy.period", "local", 5, "schedule-too-long"),
    ("example_privacy.period", "distributed", 4, "schedule-with-sampling"),
    ("example_privacy.unit_rows_max", "distributed", 4, "unit-rows"),
    (
        "example_privacy.unit_rows_max",
        "distributed",
        lambda: changed(built("distributed", unit="person"), "example_privacy.unit_rows_max", 0),
        "parameter-out-of-range",
    ),
    ("example_privacy.examples_max", "distributed", 1 << 20, "ring-too-small"),
    ("device_privacy.clip", "device", 1.0, "clip-mismatch"),
    ("device_privacy.noise_multiplier", "device", 8.0, "noise-too-small"),
    (
        "device_privacy.noise_multiplier",
        "device",
        lambda: built("device", device_noise_multiplier=1.2, budget=NO_LIMIT),
        "epsilon-too-large",
    ),
    ("device_privacy.participation_rate", "device", 2**-12, "parameter-out-of-range"),
    ("budget.max_epsilon", "device", 0.1, "budget-exceeded"),
    ("budget.delta", "device", 1e-4, "delta-too-large"),
    ("budget.releases_max", "device", 1_000, "budget-exceeded"),
    (
        "budget.releases_max",
        "device",
        lambda: built("device", budget=BudgetSpec(max_epsilon=None, releases_max=100)),
        "epsilon-too-large",
    ),
    ("report_slot_s", "distributed", 1e-300, "parameter-out-of-range"),
    ("report_slot_s", "distributed", 0.5, "step-too-short"),
    ("report_slot_s", "distributed", 60_000.0, "held-too-long"),
    ("adapter.rank", "distributed", 1 << 17, "parameter-out-of-range"),
    ("adapter.alpha", "distributed", 1 << 21, "parameter-out-of-range"),
    ("adapter.trainable.rows", "evaluation", 1 << 28, "adapter-too-large"),
    ("adapter.trainable.rows", "evaluation", 1 << 26, "download-too-large"),
    ("adapter.trainable.rows", "slopes", 1 << 26, "download-too-large"),
    ("adapter.trainable.columns", "evaluation", 1 << 28, "adapter-too-large"),
    ("adapter.trainable.columns", "evaluation", 1 << 25, "download-too-large"),
    ("adapter.frozen.rows", "evaluation", 1 << 28, "adapter-too-large"),
    ("adapter.frozen.columns", "evaluation", 1 << 28, "adapter-too-large"),
    ("adapter.sketch", "distributed", 1, "sketch-size"),
    ("training.local_steps", "local", 100_001, "parameter-out-of-range"),
    ("training.local_steps", "evaluation", 0, "parameter-out-of-range"),
    ("training.local_steps", "distributed", 2, "local-steps"),
    ("training.local_learning_rate", "evaluation", math.nan, "parameter-out-of-range"),
    ("training.batch_size", "distributed", 0, "parameter-out-of-range"),
    ("training.proximal_mu", "evaluation", math.inf, "parameter-out-of-range"),
    ("training.server_learning_rate", "distributed", 0.0, "parameter-out-of-range"),
    ("training.server_momentum", "adam", 1.0, "parameter-out-of-range"),
    ("training.weight_unit", "local", 8, "weights-with-noise"),
    ("training.denominator", "local", 0.0, "denominator-missing"),
    ("training.max_tokens", "distributed", 8_193, "tokens-too-many"),
    ("training.micro_batch", "distributed", 1 << 17, "parameter-out-of-range"),
    ("training.directions", "slopes", 1 << 17, "parameter-out-of-range"),
    ("training.directions", "distributed", 4, "directions-without-zeroth-order"),
    ("training.perturbation", "slopes", math.nan, "parameter-out-of-range"),
    ("training.perturbation", "distributed", -1.0, "parameter-out-of-range"),
    ("training.server_beta2", "adam", 1.0, "parameter-out-of-range"),
    ("training.server_tau", "adam", 0.0, "parameter-out-of-range"),
    ("training.local_momentum", "local", 1.0, "parameter-out-of-range"),
    ("training.local_epochs", "local", 1, "epochs-reveal-examples"),
    ("training.population", "scaffold", 23, "population"),
    ("adaptive_clip.quantile", "adaptive", 0.9, "adaptive-clip-segment"),
    ("adaptive_clip.learning_rate", "adaptive", 3.0, "parameter-out-of-range"),
    ("adaptive_clip.clip_min", "adaptive", 2.0, "adaptive-clip-range"),
    ("adaptive_clip.clip_max", "adaptive", 0.5, "adaptive-clip-range"),
    ("slot_overrun", "device", 1e-9, "overrun-without-slot"),
    ("slot_overrun", "distributed", 1e-3, "overrun-takes-delta"),
]


def lowered(name: str) -> Manifest:
    """A sparse cohort with fewer neighbours (``degree``) and the least threshold on them."""
    manifest = base("sparse")
    degree = manifest.cohort.degree - (20 if name == "degree" else 0)
    manifest = changed(manifest, "cohort.degree", degree)
    return changed(manifest, "cohort.threshold", degree // 2 + 1)


def long_statistics() -> Manifest:
    segment = SegmentSpec(name="counts", length=1 << 27, clip=2.0)
    return built("device", segments=(segment,))


def numbers_of(kind: Any, path: str = "") -> Iterator[str]:
    """Paths of all fields that hold a number, or a list of them."""
    hints = typing.get_type_hints(kind)
    for field in msgspec.structs.fields(kind):
        yield from _numbers(hints[field.name], f"{path}{field.name}")


def _numbers(hint: Any, path: str) -> Iterator[str]:
    if hint in (int, float, bool):
        yield path
    elif isinstance(hint, type) and issubclass(hint, msgspec.Struct):
        yield from numbers_of(hint, f"{path}.")
    elif typing.get_origin(hint) in (tuple, list, dict, types.UnionType, typing.Union):
        inner = [arg for arg in typing.get_args(hint) if arg is not Ellipsis]
        yield from dict.fromkeys(found for arg in inner for found in _numbers(arg, path))


def rows() -> dict[str, tuple[str, ...]]:
    """Field and reasons of each row of the page's table."""
    table = PAGE.read_text().split("## Every number of a manifest")[1].split("\n## ")[0]
    found = {}
    for line in table.splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if line.startswith("| `"):
            assert all(cells), line
            found[cells[0].strip("`")] = tuple(re.findall(r"`([a-z0-9-]+)`", cells[-1]))
    return found


def refusal(manifest: Manifest, folder: Path) -> str:
    with pytest.raises(PolicyRefusal) as caught:
        PrivacyPolicy().admit(manifest, own_partner=PARTNER.key, account=account_in(folder))
    error = caught.value
    assert error.expected is not None or error.found is not None
    return str(error.found) if error.reason == "manifest-unsound" else error.reason


def test_the_walk_finds_numbers_wherever_they_stand() -> None:
    found = set(numbers_of(Manifest))
    assert {"created_at", "cohort.corrupt_max", "noise.removable_drops", "slot_overrun"} <= found
    assert {"adapter.trainable.rows", "budget.max_epsilon", "adaptive_clip.quantile"} <= found
    assert not found & {"task", "partner_keys", "adapter.seed", "noise.mechanism"}

    class Later(Manifest, frozen=True):
        weakens: tuple[tuple[str, float], ...] = ()

    assert set(numbers_of(Later)) - found == {"weakens"}


def test_every_number_of_a_manifest_has_a_row() -> None:
    assert set(rows()) == set(numbers_of(Manifest))


def test_every_row_names_the_reasons_that_are_tested() -> None:
    tested: dict[str, set[str]] = {}
    for field, _, _, reason in CASES:
        tested.setdefault(field, set()).add(reason)
    assert {field: set(reasons) for field, reasons in rows().items()} == tested


@pytest.mark.parametrize("name", SPECS)
def test_the_default_policy_admits_what_the_default_cohort_makes(name: str, tmp_path: Path) -> None:
    PrivacyPolicy().admit(base(name), own_partner=PARTNER.key, account=account_in(tmp_path))


@pytest.mark.parametrize(
    ("field", "name", "value", "reason"), CASES, ids=[f"{c[0]}-{c[1]}-{c[3]}" for c in CASES]
)
def test_a_number_beyond_its_limit_is_refused(
    field: str, name: str, value: Any, reason: str, tmp_path: Path
) -> None:
    manifest = value() if callable(value) else changed(base(name), field, value)
    assert refusal(manifest, tmp_path) == reason


@pytest.mark.parametrize(
    ("name", "field", "value"),
    [
        ("distributed", "example_privacy.sampling_rate", 0.001),
        ("device", "device_privacy.participation_rate", 0.001),
        ("distributed", "report_slot_s", 0.0),
        ("distributed", "slot_overrun", 1e-12),
    ],
)
def test_what_only_amplified_lines_rest_on_changes_no_cost(
    name: str, field: str, value: object
) -> None:
    before, after = (
        headline(lines(manifest, 4)) for manifest in (base(name), changed(base(name), field, value))
    )
    assert after == before


def test_numbers_that_are_not_finite_never_pass(tmp_path: Path) -> None:
    for path in numbers_of(Manifest):
        for name in SPECS:
            try:
                before = base(name)
                for part in path.split(".")[:-1]:
                    before = getattr(before, part)
                    before = before[0] if isinstance(before, tuple) else before
                if not isinstance(getattr(before, path.rpartition(".")[2]), float):
                    continue
            except AttributeError:
                continue
            for value in (math.nan, math.inf, -math.inf):
                refusal(changed(base(name), path, value), tmp_path)
