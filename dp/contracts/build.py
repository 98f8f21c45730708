"""From an operator's spec to a manifest."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import msgspec
from msgspec.structs import replace

from dp.contracts.adaptive import below_segment, terms_of
from dp.contracts.algorithms.declaration import Algorithm
from dp.contracts.algorithms.fedbuff import versions_of
from dp.contracts.algorithms.registry import algorithm_named
from dp.contracts.check import check_manifest
from dp.contracts.derive import derive_ring, share_variance
from dp.contracts.known_noise import mean_deviation
from dp.contracts.optimisers import BETA2, MOMENTUM, TAU, or_default, server_optimiser
from dp.contracts.rules import in_range, refuse
from dp.contracts.scheduled import PERIOD_MAX
from dp.contracts.spec import SegmentSpec, TaskSpec
from dp.noise.grid import clip_units, equalised_scales, l2_squared_units, scale_for
from dp.noise.removable import drop_levels, most_variance
from secagg.graph.degrees import plan_rules
from secagg.limits import PROTOCOL_VERSION, SLICE_LENGTH, SUITE
from secagg.lora.forms import sent_length
from secagg.manifest import (
    Budget,
    CohortRules,
    Deadlines,
    DevicePrivacy,
    Encoding,
    ExamplePrivacy,
    Manifest,
    Noise,
    Segment,
    Training,
)


def build_manifest(
    spec: TaskSpec,
    *,
    created_at: int,
    task_key: bytes,
    ledger_verifier: str,
    partner_keys: Sequence[bytes],
) -> Manifest:
    """Derive scale, integer clip, noise share and ring from a spec, and check the result.

    Args:
        created_at: Unix seconds.
        task_key: 32 bytes, Ed25519; signs the manifest and the aggregator's messages.
        ledger_verifier: C2SP verifier key.

    Raises:
        ConfigurationError: as :func:`dp.contracts.check_manifest`.
    """
    algorithm = algorithm_named(spec.algorithm)
    mode = spec.privacy or algorithm.default_privacy
    device_level = spec.device_noise_multiplier != 0
    in_ring = mode == "distributed" or device_level
    noisy = in_ring or mode == "local"
    _check_spec(spec, algorithm, mode)

    length = 0
    if spec.adapter is not None:
        length = sent_length(spec.adapter)
    elif algorithm.has_adapter:
        refuse(
            "adapter-missing",
            f"{spec.algorithm} trains an adapter, and the task has none.",
            remedy="Name a base model and an adapter, or use the algorithm 'sum'.",
        )
    segments = _segments(algorithm.segments(spec, length, noisy=noisy), in_ring)
    adaptive = terms_of(spec.adaptive_clip, segments[0].clip)
    if adaptive is not None:
        segments = (*segments, below_segment(segments[0], adaptive.quantile))

    silent = spec.cohort.silent_max
    if silent is None:
        silent = max(1, spec.cohort.corrupt) if in_ring else 0
    degree, needed = plan_rules(
        spec.cohort.size_min,
        spec.cohort.size_max,
        spec.cohort.survivors_min,
        spec.cohort.corrupt,
    )
    versions_back, model_min = versions_of(spec, algorithm)
    cohort = CohortRules(
        size_min=spec.cohort.size_min,
        size_max=spec.cohort.size_max,
        survivors_min=spec.cohort.survivors_min,
        corrupt_max=spec.cohort.corrupt,
        silent_max=silent,
        degree=degree,
        threshold=needed,
        versions_back=versions_back,
        model_min=model_min,
    )
    factor = spec.examples_max if mode == "distributed" else 1
    noise = _noise(spec, mode, cohort, segments, factor) if in_ring else None
    bits, wrap = derive_ring(segments, cohort, most_variance(noise, cohort) if noise else 0, factor)
    manifest = Manifest(
        protocol=PROTOCOL_VERSION,
        suite=SUITE,
        task=spec.task,
        created_at=created_at,
        algorithm=spec.algorithm,
        task_key=task_key,
        ledger_verifier=ledger_verifier,
        partner_keys=tuple(sorted(partner_keys)),
        cohort=cohort,
        deadlines=Deadlines(
            report_s=spec.deadlines.report_s,
            share_s=spec.deadlines.share_s,
            check_s=spec.deadlines.check_s,
            masked_input_s=spec.deadlines.masked_input_s,
            confirm_s=spec.deadlines.confirm_s,
            unmask_s=spec.deadlines.unmask_s,
        ),
        segments=segments,
        encoding=Encoding(ring_bits=bits, slice_length=SLICE_LENGTH, wrap_log2=wrap),
        noise=noise,
        example_privacy=_example_privacy(spec, mode),
        device_privacy=(
            DevicePrivacy(
                clip=_device_clip(segments if adaptive is None else segments[:1], factor),
                noise_multiplier=spec.device_noise_multiplier,
                participation_rate=spec.participation_rate,
            )
            if device_level
            else None
        ),
        budget=Budget(
            max_epsilon=spec.budget.max_epsilon if noisy else None,
            delta=spec.budget.delta,
            releases_max=spec.budget.releases_max,
        ),
        report_slot_s=spec.report_slot_s,
        base_model=spec.base_model,
        adapter=spec.adapter,
        training=_training(spec, algorithm, noisy) if algorithm.has_adapter else None,
        adaptive_clip=msgspec.UNSET if adaptive is None else adaptive,
        slot_overrun=msgspec.UNSET if spec.slot_overrun == 0 else spec.slot_overrun,
    )
    manifest = _with_tau(spec, manifest)
    check_manifest(manifest)
    return manifest


def _with_tau(spec: TaskSpec, manifest: Manifest) -> Manifest:
    """Where the spec leaves tau open, no less than the noise in a coordinate of the mean.

    v - n is small where there is only noise, and a step there is noise over tau.
    """
    training = manifest.training
    if training is None or training.server_tau == 0 or spec.training.server_tau is not None:
        return manifest
    tau = max(training.server_tau, mean_deviation(manifest))
    return replace(manifest, training=replace(training, server_tau=tau))


def _check_spec(spec: TaskSpec, algorithm: Algorithm, mode: str) -> None:
    """What must hold before anything can be derived at all."""
    in_range("device_noise_multiplier", spec.device_noise_multiplier, 0, 1e4)
    in_range("clip", spec.clip, 0, 1e12, open_low=True)
    if spec.participation_rate != 1 and not spec.device_noise_multiplier:
        refuse(
            "abstention-without-device-noise",
            "A device can abstain unseen only where noise hides what it sends.",
            expected="participation_rate = 1",
            found=spec.participation_rate,
            remedy="Set device_noise_multiplier, or leave participation_rate out.",
        )
    if spec.update_clip is not None:
        in_range("update_clip", spec.update_clip, 0, 1e12, open_low=True)
    in_range("period", spec.period, 1, PERIOD_MAX)
    if spec.period > 1 and mode == "none":
        refuse(
            "schedule-without-examples",
            "A schedule counts what an example costs, and the task protects none.",
            expected="period = 1",
            found=spec.period,
            remedy="Choose privacy = 'distributed' or 'local', or leave period out.",
        )
    if spec.unit != "example" and mode == "none":
        refuse(
            "unit-without-examples",
            f"No noise protects a {spec.unit}: the task has none over gradients.",
            expected="unit = 'example'",
            found=spec.unit,
            remedy="Choose privacy = 'distributed' or 'local', or leave unit out.",
        )
    if mode != "none":
        in_range("noise_multiplier", spec.noise_multiplier, 0, 1e4, open_low=True)
        in_range("sampling_rate", spec.rate(mode), 0, 1, open_low=True)
        in_range("examples_max", spec.examples_max, 1, 1 << 20)
    in_range("size_max", spec.cohort.size_max, 2, 10_000, reason="cohort-size")
    for segment in spec.segments:
        in_range(f"clip of {segment.name}", segment.clip, 0, 1e12, open_low=True)
        in_range(f"length of {segment.name}", segment.length, 1, 1 << 28, reason="segments-wrong")
    if not algorithm.has_adapter and not spec.segments:
        refuse("segments-wrong", "Federated statistics need at least one segment.")
    if algorithm.has_adapter and spec.segments:
        refuse(
            "segments-wrong",
            f"{spec.algorithm} has its own segments.",
            found=[segment.name for segment in spec.segments],
            remedy="Leave the segments out, or use the algorithm 'sum'.",
        )


def _segments(plan: Sequence[SegmentSpec], in_ring: bool) -> tuple[Segment, ...]:
    if in_ring and len(plan) > 1:
        scales = equalised_scales([s.clip for s in plan], [s.length for s in plan])
    else:
        scales = [scale_for(s.clip, s.length, noisy=in_ring) for s in plan]
    return tuple(
        Segment(
            name=s.name,
            length=s.length,
            clip=s.clip,
            scale=scale,
            clip_units=clip_units(s.clip, scale),
        )
        for s, scale in zip(plan, scales, strict=True)
    )


def _noise(
    spec: TaskSpec, mode: str, cohort: CohortRules, segments: tuple[Segment, ...], factor: int
) -> Noise:
    honest = cohort.survivors_min - cohort.silent_max
    l2 = l2_squared_units(segments)
    shares = [0]
    if mode == "distributed":
        shares.append(share_variance(l2, spec.noise_multiplier, max(1, honest)))
    if spec.device_noise_multiplier:
        shares.append(share_variance(l2 * factor**2, spec.device_noise_multiplier, max(1, honest)))
    removable = spec.removable_noise and spec.mechanism == "skellam" and honest >= 1
    most = max(0, cohort.size_max - cohort.survivors_min)
    return Noise(
        mechanism=spec.mechanism,
        share_variance=max(shares),
        honest_min=honest,
        removable_drops=drop_levels(most) if removable else (),
    )


def _device_clip(segments: tuple[Segment, ...], factor: int) -> float:
    if len(segments) == 1:
        return segments[0].clip * factor
    return math.sqrt(sum(segment.clip**2 for segment in segments))


def _example_privacy(spec: TaskSpec, mode: str) -> ExamplePrivacy | None:
    if mode == "none":
        return None
    kind: Literal["local", "distributed"] = "local" if mode == "local" else "distributed"
    return ExamplePrivacy(
        mode=kind,
        clip=spec.clip,
        noise_multiplier=spec.noise_multiplier,
        sampling_rate=spec.rate(mode),
        examples_max=spec.examples_max,
        period=spec.period if spec.period > 1 else msgspec.UNSET,
        unit=msgspec.UNSET if spec.unit == "example" else spec.unit,
        unit_rows_max=msgspec.UNSET if spec.unit == "example" else spec.unit_rows_max,
    )


def _training(spec: TaskSpec, algorithm: Algorithm, noisy: bool) -> Training:
    terms = spec.training
    optimiser = server_optimiser(spec.algorithm, terms.server_optimiser)
    return Training(
        local_steps=terms.local_steps if algorithm.local_steps else 1,
        local_learning_rate=terms.local_learning_rate,
        batch_size=terms.batch_size,
        proximal_mu=terms.proximal_mu,
        server_optimiser=optimiser,
        server_learning_rate=terms.server_learning_rate,
        server_momentum=or_default(terms.server_momentum, optimiser, MOMENTUM),
        server_beta2=or_default(terms.server_beta2, optimiser, BETA2),
        server_tau=or_default(terms.server_tau, optimiser, TAU),
        local_optimiser=terms.local_optimiser,
        local_momentum=terms.local_momentum,
        local_epochs=terms.local_epochs,
        weight_unit=terms.weight_unit,
        denominator=terms.denominator
        or algorithm.denominator(spec, noisy=noisy) * spec.participation_rate,
        max_tokens=terms.max_tokens,
        micro_batch=terms.micro_batch,
        directions=terms.directions if algorithm.has_directions else 0,
        perturbation=terms.perturbation if algorithm.has_directions else 0.0,
        population=terms.population,
    )
