"""What is refused when a task is created, and by every device: a stable reason for each."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from dp.accounting.statements import headline, lines
from dp.contracts import (
    BudgetSpec,
    CohortSpec,
    DeadlineSpec,
    SegmentSpec,
    TaskSpec,
    TrainingSpec,
    check_manifest,
    local_noise_norm,
    noise_over_clip,
    overshoot,
    parse_spec,
    warnings,
)
from secagg.errors import ConfigurationError
from secagg.limits import MANIFEST_BYTES_MAX
from secagg.manifest import Manifest, decode_manifest, encode_manifest
from tests.kits.tasks import DEMO_ADAPTER, adapter, built, six, spec, statistics

NO_LIMIT = BudgetSpec(max_epsilon=None)


def replaced(part: Any, **changes: Any) -> Any:
    return msgspec.structs.replace(part, **changes)


def refused(manifest: Manifest) -> str:
    with pytest.raises(ConfigurationError) as caught:
        check_manifest(manifest)
    return caught.value.reason


def test_the_default_task_is_sound() -> None:
    manifest = built(adapter=DEMO_ADAPTER)
    (segment,) = manifest.segments
    assert (segment.name, segment.length, segment.clip_units) == ("gradient", 92_160, 8192)
    assert manifest.cohort.silent_max == 1
    assert manifest.noise.honest_min == 3
    assert manifest.noise.share_variance * 3 >= (1.4 * 8192) ** 2
    assert manifest.noise.share_variance * 3 < (1.4 * 8192) ** 2 + 3
    assert manifest.training.denominator == 144
    assert manifest.encoding.wrap_log2 <= -40
    assert headline(lines(manifest, 4)) <= 8
    encoded = encode_manifest(manifest)
    assert len(encoded) < 8_000
    check_manifest(decode_manifest(encoded))


def test_ring_is_the_smallest_that_holds_signal_and_noise() -> None:
    manifest = built(adapter=DEMO_ADAPTER)
    signal = 6 * 256 * 8192
    assert 2 ** (manifest.encoding.ring_bits - 2) <= signal < 2 ** (manifest.encoding.ring_bits - 1)
    fewer = replaced(manifest.encoding, ring_bits=manifest.encoding.ring_bits - 1)
    assert refused(replaced(manifest, encoding=fewer)) == "ring-too-small"


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"task": "No Name"}, "task-name"),
        ({"task": ""}, "task-name"),
        ({"algorithm": "fedsdg"}, "algorithm-unknown"),
        ({"adapter": None}, "adapter-missing"),
        ({"privacy": "local"}, "privacy-mode"),
        ({"privacy": "none"}, "privacy-mode"),
        ({"algorithm": "fedavg", "privacy": "distributed"}, "privacy-mode"),
        ({"noise_multiplier": 0.0}, "parameter-out-of-range"),
        ({"noise_multiplier": float("nan")}, "parameter-out-of-range"),
        ({"noise_multiplier": -1.0}, "parameter-out-of-range"),
        ({"noise_multiplier": 1e9}, "parameter-out-of-range"),
        ({"noise_multiplier": 1e-3}, "budget-exceeded"),
        ({"noise_multiplier": 1e-3, "budget": NO_LIMIT}, "cost-infinite"),
        ({"clip": 0.0}, "parameter-out-of-range"),
        ({"clip": float("inf")}, "parameter-out-of-range"),
        ({"clip": 1e11}, "clip-out-of-range"),
        ({"clip": 2.3e-308}, "clip-out-of-range"),
        ({"algorithm": "fedavg", "clip": 2.3e-308}, "clip-out-of-range"),
        ({"algorithm": "fedavg", "privacy": "none", "update_clip": 5e-324}, "clip-out-of-range"),
        ({"sampling_rate": 0.0}, "parameter-out-of-range"),
        ({"sampling_rate": 1.5}, "parameter-out-of-range"),
        ({"examples_max": 0}, "parameter-out-of-range"),
        ({"examples_max": 1 << 21}, "parameter-out-of-range"),
        ({"device_noise_multiplier": float("nan")}, "parameter-out-of-range"),
        ({"device_noise_multiplier": 1e4, "examples_max": 1 << 20}, "noise-too-large"),
        ({"algorithm": "fedavg", "clip": 2.0**29}, "noise-too-large"),
        ({"algorithm": "fedavg", "noise_multiplier": 1e4}, "noise-too-large"),
        ({"report_slot_s": -1.0}, "parameter-out-of-range"),
        ({"segments": (SegmentSpec(name="x", length=1, clip=1.0),)}, "segments-wrong"),
        ({"cohort": six(silent_max=0)}, "silent-max"),
        ({"cohort": six(silent_max=4)}, "no-honest-noise"),
        ({"cohort": six(silent_max=-1)}, "silent-max"),
        ({"cohort": six(corrupt_max=1, survivors_min=5, silent_max=0)}, "silent-max"),
        ({"cohort": six(survivors_min=3)}, "survivors-below-threshold"),
        ({"cohort": six(corrupt_max=5)}, "threshold-unreachable"),
        ({"cohort": six(corrupt_max=1)}, "survivors-below-threshold"),
        ({"cohort": six(survivors_min=7)}, "survivors-min"),
        ({"cohort": six(size_min=1, survivors_min=1)}, "cohort-size"),
        ({"cohort": six(size_max=5)}, "cohort-size"),
        ({"cohort": six(size_max=500)}, "confirmations-unreachable"),
        ({"deadlines": DeadlineSpec(share_s=0.0)}, "parameter-out-of-range"),
        ({"deadlines": DeadlineSpec(unmask_s=float("inf"))}, "parameter-out-of-range"),
        ({"budget": BudgetSpec(max_epsilon=3.0)}, "budget-exceeded"),
        ({"budget": BudgetSpec(releases_max=40)}, "budget-exceeded"),
        ({"budget": BudgetSpec(max_epsilon=float("nan"))}, "parameter-out-of-range"),
        ({"budget": BudgetSpec(delta=0.0)}, "parameter-out-of-range"),
        ({"budget": BudgetSpec(delta=1.0)}, "parameter-out-of-range"),
        ({"budget": BudgetSpec(releases_max=0)}, "parameter-out-of-range"),
        ({"training": TrainingSpec(weight_unit=10)}, "weights-with-noise"),
        ({"training": TrainingSpec(proximal_mu=0.1)}, "proximal-without-fedprox"),
        ({"training": TrainingSpec(denominator=-1.0)}, "parameter-out-of-range"),
        ({"training": TrainingSpec(batch_size=0)}, "parameter-out-of-range"),
        ({"training": TrainingSpec(server_learning_rate=0.0)}, "parameter-out-of-range"),
        ({"training": TrainingSpec(server_momentum=0.9)}, "momentum-without-optimiser"),
        (
            {"training": TrainingSpec(server_optimiser="momentum", server_momentum=0.0)},
            "parameter-out-of-range",
        ),
        (
            {"algorithm": "fedavg", "training": TrainingSpec(weight_unit=10)},
            "weights-with-noise",
        ),
        (
            {"algorithm": "fedavg", "training": TrainingSpec(proximal_mu=0.1)},
            "proximal-without-fedprox",
        ),
        ({"algorithm": "fedprox"}, "parameter-out-of-range"),
        (
            {"algorithm": "fedavg", "training": TrainingSpec(local_steps=0)},
            "parameter-out-of-range",
        ),
    ],
)
def test_refusals_at_creation(changes: dict, reason: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        built(**changes)
    assert caught.value.reason == reason


@pytest.mark.parametrize(
    ("task", "reason"),
    [
        (statistics(), "segments-wrong"),
        (statistics(("x", 0, 1.0)), "segments-wrong"),
        (statistics(("x", 1, 1.0), ("x", 2, 1.0)), "segments-wrong"),
        (statistics(("", 1, 1.0)), "segments-wrong"),
        (statistics(("x", 1, 0.0)), "parameter-out-of-range"),
        (statistics(("x", 1, 1.0), privacy="local"), "privacy-mode"),
        (statistics(("x", 1, 1.0), adapter=adapter()), "model-with-sum"),
        (statistics(("x", 1 << 29, 1.0)), "segments-wrong"),
    ],
)
def test_refusals_of_statistics(task: TaskSpec, reason: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        built(task)
    assert caught.value.reason == reason


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"algorithm": "fedavg"},
        {"algorithm": "fedavg", "privacy": "none"},
        {"algorithm": "fedavg", "privacy": "none", "training": TrainingSpec(weight_unit=50)},
        {"algorithm": "fedprox", "training": TrainingSpec(proximal_mu=0.1)},
        {"algorithm": "fedprox", "privacy": "none", "training": TrainingSpec(proximal_mu=0.1)},
        {"algorithm": "fedavg", "privacy": "none", "device_noise_multiplier": 3.0},
        {"device_noise_multiplier": 0.5, "examples_max": 32},
        {"training": TrainingSpec(server_optimiser="momentum", server_momentum=0.9)},
        {"cohort": CohortSpec(size_min=8, size_max=8, survivors_min=6, corrupt_max=2)},
        {"cohort": six(size_max=12)},
        {"clip": 0.01},
        {"clip": 300.0},
    ],
)
def test_admissible_tasks(changes: dict) -> None:
    task = spec(**{"budget": NO_LIMIT, **changes})
    manifest = built(task)
    check_manifest(decode_manifest(encode_manifest(manifest)))
    assert manifest.encoding.ring_bits <= 40


def test_segments_follow_algorithm_and_mode() -> None:
    def names(**changes: Any) -> list[str]:
        return [segment.name for segment in built(budget=NO_LIMIT, **changes).segments]

    assert names() == ["gradient"]
    assert names(algorithm="fedavg") == ["delta"]
    assert names(algorithm="fedavg", privacy="none") == ["delta", "weight", "loss"]
    assert names(algorithm="fedavg", privacy="none", device_noise_multiplier=1.0) == ["delta"]


def test_denominators_are_public_constants_under_privacy() -> None:
    def denominator(**changes: Any) -> float:
        return built(budget=NO_LIMIT, **changes).training.denominator

    assert denominator() == 6 * 24
    assert denominator(algorithm="fedavg") == 6
    assert denominator(algorithm="fedavg", privacy="none") == 0
    assert denominator(training=TrainingSpec(denominator=17.0)) == 17


def tampered_noise(manifest: Manifest, **changes: Any) -> Manifest:
    return replaced(manifest, noise=replaced(manifest.noise, **changes))


def test_a_manifest_weaker_than_it_says_is_refused() -> None:
    manifest = built()
    (segment,) = manifest.segments
    variance = manifest.noise.share_variance
    assert refused(tampered_noise(manifest, share_variance=variance - 1)) == "noise-too-small"
    assert refused(tampered_noise(manifest, share_variance=0)) == "parameter-out-of-range"
    assert refused(tampered_noise(manifest, share_variance=1 << 50)) == "parameter-out-of-range"
    assert refused(tampered_noise(manifest, honest_min=4)) == "noise-honest-min"
    assert refused(replaced(manifest, noise=None)) == "noise-missing"
    larger = replaced(segment, clip_units=segment.clip_units + 1)
    assert refused(replaced(manifest, segments=(larger,))) == "clip-units-wrong"
    coarser = replaced(segment, scale=segment.scale * 2)
    assert refused(replaced(manifest, segments=(coarser,))) == "clip-units-wrong"
    other = replaced(segment, clip=2.0, clip_units=2 * segment.clip_units)
    assert refused(replaced(manifest, segments=(other,))) == "clip-mismatch"
    longer = replaced(segment, length=segment.length + 1)
    assert refused(replaced(manifest, segments=(longer,))) == "segments-wrong"
    metric = replaced(segment, name="loss", length=1)
    assert refused(replaced(manifest, segments=(segment, metric))) == "segments-wrong"
    silent = replaced(manifest.cohort, silent_max=0)
    assert refused(replaced(manifest, cohort=silent)) == "silent-max"


def test_derived_values_are_checked_again() -> None:
    manifest = built(report_slot_s=1.0)
    understated = replaced(manifest.encoding, ring_bits=62, wrap_log2=float("nan"))
    assert refused(replaced(manifest, encoding=understated)) == "wrap-understated"
    tight = built(statistics(("x", 4, 1.0), device_noise_multiplier=40.0, budget=NO_LIMIT))
    assert -4096 < tight.encoding.wrap_log2 <= -40
    better = replaced(tight.encoding, wrap_log2=tight.encoding.wrap_log2 - 1)
    assert refused(replaced(tight, encoding=better)) == "wrap-understated"
    sliced = replaced(manifest.encoding, slice_length=10)
    assert refused(replaced(manifest, encoding=sliced)) == "slice-length"
    assert refused(replaced(manifest, ledger_verifier="none")) == "ledger-verifier"
    assert refused(replaced(manifest, task_key=b"short")) == "task-key"
    assert refused(replaced(manifest, partner_keys=())) == "partner-keys"
    assert refused(replaced(manifest, partner_keys=(b"p" * 32,) * 2)) == "partner-keys"
    assert refused(replaced(manifest, suite="other")) == "manifest-version"
    assert refused(replaced(manifest, created_at=-1)) == "parameter-out-of-range"


def test_noise_that_no_mode_accounts_for_is_refused() -> None:
    noisy, plain = built(), built(algorithm="fedavg", budget=NO_LIMIT)
    assert refused(replaced(plain, noise=noisy.noise)) == "noise-unaccounted"


def test_a_device_bound_that_does_not_follow_is_refused() -> None:
    manifest = built(device_noise_multiplier=0.5, examples_max=8, budget=NO_LIMIT)
    assert manifest.device_privacy.clip == 8.0
    smaller = replaced(manifest.device_privacy, clip=1.0)
    assert refused(replaced(manifest, device_privacy=smaller)) == "clip-mismatch"


def test_a_promise_of_epsilon_without_privacy_is_refused() -> None:
    manifest = built(algorithm="fedavg", privacy="none")
    assert manifest.budget.max_epsilon is None
    promising = replaced(manifest.budget, max_epsilon=8.0)
    assert refused(replaced(manifest, budget=promising)) == "budget-without-privacy"


def test_broken_adapters_are_refused() -> None:
    manifest = built()
    tensor = manifest.adapter.trainable[0]
    twice = replaced(manifest.adapter, trainable=(tensor, tensor))
    assert refused(replaced(manifest, adapter=twice)) == "adapter-tensors"
    negative = replaced(tensor, rows=-tensor.rows, columns=-tensor.columns)
    flipped = replaced(manifest.adapter, trainable=(negative, *manifest.adapter.trainable[1:]))
    assert refused(replaced(manifest, adapter=flipped)) == "parameter-out-of-range"
    seedless = replaced(manifest.adapter, seed=b"")
    assert refused(replaced(manifest, adapter=seedless)) == "adapter-seed"


def test_a_manifest_too_large_to_send_is_refused() -> None:
    with pytest.raises(ConfigurationError) as caught:
        built(adapter=adapter((1,) * 40_000))
    assert caught.value.reason == "manifest-too-large"
    assert str(MANIFEST_BYTES_MAX) in str(caught.value)


def test_hopeless_device_noise_is_said_plainly() -> None:
    hopeless = built(
        adapter=DEMO_ADAPTER,
        algorithm="fedavg",
        privacy="none",
        device_noise_multiplier=3.0,
        budget=NO_LIMIT,
    )
    assert noise_over_clip(hopeless) == pytest.approx(3 * 92_160**0.5 / 6)
    assert any("learn nothing" in text for text in warnings(hopeless))
    both = built(
        adapter=DEMO_ADAPTER, device_noise_multiplier=1.0, examples_max=96, budget=NO_LIMIT
    )
    assert noise_over_clip(both) == pytest.approx(96 / 24 * 92_160**0.5 / 6)
    cohort = CohortSpec(size_min=100, size_max=100, survivors_min=80, corrupt_max=0)
    useful = built(
        statistics(("x", 64, 1.0), device_noise_multiplier=3.0, budget=NO_LIMIT, cohort=cohort)
    )
    assert noise_over_clip(useful) == pytest.approx(0.24)
    assert not any("learn nothing" in text for text in warnings(useful))
    assert overshoot(useful) == pytest.approx(100 / 79)


def test_update_clip_defaults_to_what_its_task_is() -> None:
    def clip(**changes: Any) -> float:
        return built(algorithm="fedavg", budget=NO_LIMIT, **changes).segments[0].clip

    assert clip() == clip(privacy="none") == 64.0
    assert clip(privacy="none", device_noise_multiplier=1.0) == 1.0
    assert clip(update_clip=3.0) == 3.0


def test_a_clip_below_the_local_noise_is_said_plainly() -> None:
    def said(**changes: Any) -> bool:
        manifest = built(
            adapter=DEMO_ADAPTER,
            algorithm="fedavg",
            noise_multiplier=1.0,
            budget=NO_LIMIT,
            **changes,
        )
        return any("local training alone" in text for text in warnings(manifest))

    # 1.0 * sqrt(2 * 92,160) / 24 = 17.9
    assert said(update_clip=8.0)
    assert not said(update_clip=20.0)
    assert not said()
    assert local_noise_norm(built()) is None


def test_a_task_of_devices_says_what_an_example_may_cost() -> None:
    """Default devices limit that too, so the operator learns it when the task is created."""

    def said(**terms: Any) -> list[str]:
        return [text for text in warnings(built(**terms)) if "one example may cost" in text]

    devices = {"algorithm": "fedavg", "privacy": "none"}
    (text,) = said(**devices, device_noise_multiplier=1.4)
    assert "may cost epsilon 15." in text
    assert not said(**devices, device_noise_multiplier=4.0)
    assert not said(
        device_noise_multiplier=2.0, examples_max=4, budget=BudgetSpec(max_epsilon=None)
    )
    assert not said(**devices)


def test_other_warnings() -> None:
    plain = warnings(built(algorithm="fedavg", privacy="none"))
    assert any("No differential privacy" in text for text in plain)
    local = {"algorithm": "fedavg", "budget": NO_LIMIT}
    device = local | {"privacy": "none", "device_noise_multiplier": 2.0}
    for terms, amplified in (({}, True), (local, False), (device, False)):
        (said,) = [text for text in warnings(built(**terms)) if "time may show" in text]
        assert ("no amplified one" in said) is amplified
        slotted = warnings(built(**terms, report_slot_s=60.0))
        assert not any("time may show" in text for text in slotted)
    assert not any("time may show" in text for text in plain)
    weak = built(noise_multiplier=0.4, budget=BudgetSpec(max_epsilon=None, releases_max=1))
    assert any("protects little" in text for text in warnings(weak))
    assert noise_over_clip(built()) is None
    assert overshoot(built(algorithm="fedavg", budget=NO_LIMIT)) is None


def test_an_operator_writes_toml() -> None:
    text = """
        task = "support-bot"
        algorithm = "fedavg"
        privacy = "local"
        noise_multiplier = 1.1

        [cohort]
        size_min = 8
        size_max = 12
        survivors_min = 6

        [budget]
        max_epsilon = 20.0
        releases_max = 3

        [training]
        local_steps = 2
        server_optimiser = "momentum"
        server_momentum = 0.9

        [base_model]
        name = "smollm2"
        fingerprint = "AAAA"
    """
    task = parse_spec(text)
    assert task.cohort.size_max == 12
    assert task.base_model.fingerprint == b"\0\0\0"
    manifest = built(msgspec.structs.replace(task, adapter=adapter()))
    assert manifest.example_privacy.mode == "local"
    assert parse_spec(msgspec.json.encode(task), toml=False) == task
    assert parse_spec('task = "x"') == TaskSpec(task="x")


@pytest.mark.parametrize(
    "text", ["task = ", "noise = 1", 'task = "x"\nnoise_multiplyer = 1.0', "task = 3", "", "\x00"]
)
def test_a_task_file_with_an_error_is_refused_with_its_place(text: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        parse_spec(text)
    assert caught.value.reason == "spec-malformed"
