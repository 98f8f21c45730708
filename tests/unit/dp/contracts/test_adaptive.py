"""Which tasks may have a clip that adapts, and what a device recomputes of them."""

from __future__ import annotations

import math
from typing import Any

import msgspec
import pytest

from dp.accounting.statements import fewest, ring_release
from dp.contracts import (
    AdaptiveClipSpec,
    TrainingSpec,
    check_manifest,
    parse_spec,
)
from dp.contracts.adaptive import below_segment
from secagg.errors import ConfigurationError
from secagg.manifest import (
    AdaptiveClip,
    Manifest,
    decode_manifest,
    encode_manifest,
)
from tests.kits.adaptive import ADAPTIVE, NO_LIMIT, device_level, example_level
from tests.kits.tasks import adapter, built, spec, statistics


def test_manifests_without_it_are_the_bytes_that_they_were() -> None:
    raw = msgspec.msgpack.decode(encode_manifest(built()))
    assert "adaptive_clip" not in raw
    again = decode_manifest(encode_manifest(example_level()))
    assert again == example_level()
    assert again.clip_adaptation is not None
    raw["adaptive_clip"] = None
    with pytest.raises(Exception, match="manifest"):
        decode_manifest(msgspec.msgpack.encode(raw))


DEVICE = {"device_noise_multiplier": 4.0}
REFUSED: list[tuple[str, str, dict[str, Any], str]] = [
    ("fedavg", "none", {}, "adaptive-clip-privacy"),
    ("fedavg", "local", {}, "adaptive-clip-privacy"),
    ("fedavg", "local", DEVICE, "adaptive-clip-privacy"),
    ("fedbuff", "none", DEVICE, "adaptive-clip-algorithm"),
    ("scaffold", "none", {}, "adaptive-clip-privacy"),
    ("zeroth-order", "distributed", {}, "adaptive-clip-algorithm"),
    ("zeroth-order", "none", DEVICE, "adaptive-clip-algorithm"),
    (
        "evaluation",
        "none",
        {**DEVICE, "training": TrainingSpec(weight_unit=9)},
        "adaptive-clip-algorithm",
    ),
    ("fedadam", "none", DEVICE, "adaptive-clip-algorithm"),
    (
        "fedsgd",
        "distributed",
        {"training": TrainingSpec(server_optimiser="adam")},
        "adaptive-clip-optimiser",
    ),
    ("fedsgd", "distributed", {"adaptive_clip": AdaptiveClipSpec(quantile=1.0)}, "out-of-range"),
    ("fedsgd", "distributed", {"adaptive_clip": AdaptiveClipSpec(clip_min=2.0)}, "clip-range"),
    ("fedsgd", "distributed", {"adaptive_clip": AdaptiveClipSpec(clip_max=1e10)}, "clip-range"),
    ("fedsgd", "distributed", {"adaptive_clip": AdaptiveClipSpec(clip_max=math.nan)}, "of-range"),
    ("fedsgd", "distributed", {"adaptive_clip": AdaptiveClipSpec(learning_rate=0.0)}, "of-range"),
]


@pytest.mark.parametrize(("algorithm", "privacy", "changes", "reason"), REFUSED)
def test_what_cannot_work_is_refused_when_the_task_is_created(
    algorithm: str, privacy: str, changes: dict[str, Any], reason: str
) -> None:
    training = TrainingSpec(population=6 if algorithm == "scaffold" else 0)
    terms = {"adaptive_clip": ADAPTIVE, "budget": NO_LIMIT, "training": training, **changes}
    with pytest.raises(ConfigurationError) as refused:
        built(spec(algorithm=algorithm, privacy=privacy, **terms))
    assert refused.value.reason.endswith(reason)


def test_a_task_file_says_it_in_one_table() -> None:
    text = """
        task = "support-bot"
        clip = 0.5

        [adaptive_clip]
        quantile = 0.8
        clip_max = 4.0
    """
    task = msgspec.structs.replace(parse_spec(text), adapter=adapter(), budget=NO_LIMIT)
    terms = built(task).clip_adaptation
    assert terms == AdaptiveClip(quantile=0.8, learning_rate=0.2, clip_min=0.005, clip_max=4.0)
    assert parse_spec("task = 'x'\n[adaptive_clip]").adaptive_clip == AdaptiveClipSpec()
    assert parse_spec(msgspec.json.encode(task), toml=False) == task


def test_a_statistic_has_no_clip_that_could_adapt() -> None:
    with pytest.raises(ConfigurationError) as refused:
        built(statistics(("x", 3, 1.0), device_noise_multiplier=4.0, adaptive_clip=ADAPTIVE))
    assert refused.value.reason == "adaptive-clip-algorithm"


def test_forms_with_norms_of_several_kinds_are_refused() -> None:
    from tests.kits.lora_forms import adapter as form

    for kind in ("rolora", "product"):
        with pytest.raises(ConfigurationError) as refused:
            device_level(adapter=form(kind))
        assert refused.value.reason == "adaptive-clip-form"


def tampered(manifest: Manifest, **changes: Any) -> Manifest:
    terms = msgspec.structs.replace(manifest.clip_adaptation, **changes)
    return msgspec.structs.replace(manifest, adaptive_clip=terms)


def vetoed(manifest: Manifest) -> str:
    with pytest.raises(ConfigurationError) as refused:
        check_manifest(manifest)
    return refused.value.reason


@pytest.mark.parametrize(
    "manifest", [example_level(), device_level()], ids=["distributed", "device-level"]
)
def test_a_device_recomputes_everything(manifest: Manifest) -> None:
    check_manifest(manifest)
    main, below = manifest.segments
    wider = msgspec.structs.replace(below, clip=2 * below.clip, clip_units=2 * below.clip_units)
    cheap = below_segment(msgspec.structs.replace(main, clip_units=8), 0.5)
    for changed in (wider, cheap):
        assert (
            vetoed(msgspec.structs.replace(manifest, segments=(main, changed)))
            == "adaptive-clip-segment"
        )
    assert vetoed(tampered(manifest, quantile=0.9)) == "adaptive-clip-segment"
    assert vetoed(tampered(manifest, clip_min=1.5)) == "adaptive-clip-range"
    # The segment without its terms, and the terms without the segment.
    assert vetoed(msgspec.structs.replace(manifest, adaptive_clip=msgspec.UNSET)) in (
        "segments-wrong",
        "clip-mismatch",
    )
    assert vetoed(msgspec.structs.replace(manifest, segments=(main,))) == "adaptive-clip-segment"
    # Noise for the vector alone.
    alone = math.ceil(manifest.noise.share_variance * 64 / 65 * 0.999)
    thin = msgspec.structs.replace(manifest.noise, share_variance=alone)
    assert vetoed(msgspec.structs.replace(manifest, noise=thin)) == "noise-too-small"
    training = msgspec.structs.replace(manifest.training, denominator=0.0)
    assert vetoed(msgspec.structs.replace(manifest, training=training)) == "denominator-missing"


def test_both_levels_at_once_cost_what_their_joint_bounds_cost() -> None:
    manifest = example_level(device_noise_multiplier=2.0, examples_max=16, adapter=adapter((4,), 4))
    assert manifest.device_privacy.clip == 16.0
    event = ring_release(manifest, fewest(manifest), 16)
    assert event.l2_squared == 256 * sum(s.clip_units**2 for s in manifest.segments)
