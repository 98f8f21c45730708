"""``secagg audit attack``: try to break our own training, and say how far that got."""

from __future__ import annotations

import os
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated, Any

import typer

from secagg_cli.exit_codes import EXIT_REFUSED
from secagg_cli.output import Format, FormatOption, Output
from secagg_cli.ranges import number

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    import numpy as np
    from numpy.typing import NDArray

    from dp.empirical_audit import AttackResult, BatchSum, Share
    from secagg.manifest import Manifest

_RANK, _FEATURES, _EXAMPLES = 4, 32, 48
_RELEASES_MAX = 64


class Sabotage(StrEnum):
    """Bugs that the attack must find."""

    none = "none"
    no_noise = "no-noise"
    lost_noise = "lost-noise"
    no_clip = "no-clip"
    two_clips = "two-clips"
    counted_twice = "counted-twice"
    clipped_by_tensor = "clipped-by-tensor"
    repeated_noise = "repeated-noise"


def attack(
    canaries: Annotated[int, number("Planted examples.", low=16, high=4_096)] = 1024,
    releases: Annotated[int, number("Training steps.", low=1, high=_RELEASES_MAX)] = 4,
    noise_multiplier: Annotated[float, number("Noise over the clip.", above=0, high=1e6)] = 4.0,
    confidence: Annotated[
        float, number("That the lower bound holds.", low=0.5, high=0.999999)
    ] = 0.95,
    sabotage: Annotated[
        Sabotage, typer.Option(help="Break the mechanism on purpose, to see that it is found.")
    ] = Sabotage.none,
    format: FormatOption = Format.text,
) -> None:
    """Attack our own training and print a lower bound on epsilon beside the accountant's.

    One run with distributed example-level noise on a small LoRA-like classifier, with
    canaries; the attacker sees every released sum. Exit code 1 if the lower bound exceeds the
    accountant's, or if an example moves a sum by more than the clip: then a promise is broken.
    """
    with Output(format) as out:
        from dp.accounting.figures import delta_shown, limit_shown, shown_down, shown_up

        result = run(canaries, releases, noise_multiplier, confidence, sabotage, os.urandom)
        found = result.judgement
        out.say(
            f"{found.correct} of {found.guesses} guesses right about {found.canaries} canaries, "
            f"in {result.releases} releases"
        )
        out.say(
            f"epsilon is at least {shown_down(found.epsilon_lower, 3)} (confidence "
            f"{limit_shown(confidence)}); the accountant says at most "
            f"{shown_up(result.epsilon_upper, 3)} (delta {delta_shown(result.delta)})"
        )
        out.say(
            f"an example moves a sum by {result.influence.measured:.3f} clips, "
            f"{shown_down(result.influence.lower, 3)} to {shown_up(result.influence.upper, 3)}"
        )
        if result.in_vain:
            out.say("The canaries moved next to nothing, so nothing was tested.", style="yellow")
        if not result.holds:
            out.say("The mechanism leaks more than it claims.", style="red")
        out.result(report(result))
        if not result.holds:
            raise typer.Exit(EXIT_REFUSED)


def report(result: AttackResult) -> dict[str, Any]:
    """The keys of ``secagg audit attack --format json``."""
    found = result.judgement
    return {
        "holds": result.holds,
        "epsilon_lower": found.epsilon_lower,
        "confidence": found.confidence,
        "epsilon_upper": result.epsilon_upper,
        "influence_lower": result.influence.lower,
        "influence": result.influence.measured,
        "influence_upper": result.influence.upper,
        "in_vain": result.in_vain,
        "delta": result.delta,
        "canaries": found.canaries,
        "guesses": found.guesses,
        "correct": found.correct,
        "releases": result.releases,
    }


def run(
    canaries: int,
    releases: int,
    noise_multiplier: float,
    confidence: float,
    sabotage: Sabotage,
    random_bytes: Callable[[int], bytes],
) -> AttackResult:
    """The attack on one trained classifier whose mechanism may be broken on purpose."""
    from dp.empirical_audit import run_attack

    classes = 2 * -(-canaries // _RANK)
    manifest = _manifest(classes, canaries, releases, noise_multiplier)
    return run_attack(
        manifest,
        _gradients(classes),
        canaries=canaries,
        releases=releases,
        confidence=confidence,
        learning_rate=1.0,
        random_bytes=random_bytes,
        share=_share(sabotage),
        batch_sum=_batch_sum(sabotage),
        only_even=sabotage is Sabotage.repeated_noise,
    )


def _manifest(classes: int, canaries: int, releases: int, noise_multiplier: float) -> Manifest:
    from nacl.signing import SigningKey

    from dp.contracts import BudgetSpec, CohortSpec, TaskSpec, build_manifest
    from dp.tlog.notes import verifier_key
    from secagg.manifest import Adapter, TensorShape

    public = bytes(SigningKey(bytes(32)).verify_key)  # signs nothing
    tensors = tuple(
        TensorShape(name=f"{part}.lora_B.weight", rows=classes // 2, columns=_RANK)
        for part in ("first", "second")
    )
    spec = TaskSpec(
        task="attack",
        noise_multiplier=noise_multiplier,
        removable_noise=False,  # the cohort has the fewest survivors: every part would stay
        examples_max=canaries + _EXAMPLES,
        cohort=CohortSpec(size_min=6, size_max=6, survivors_min=4, corrupt_max=0),
        budget=BudgetSpec(max_epsilon=None, releases_max=releases),
        adapter=Adapter(
            kind="ffa-lora",
            rank=_RANK,
            alpha=_RANK,
            target_modules=("first", "second"),
            seed=bytes(32),
            trainable=tensors,
            frozen=(),
        ),
    )
    return build_manifest(
        spec,
        created_at=0,
        task_key=public,
        ledger_verifier=verifier_key("attack.invalid", public),
        partner_keys=[public],
    )


def _gradients(
    classes: int,
) -> Callable[[NDArray[np.float64]], Sequence[NDArray[np.float64]]]:
    """Softmax regression through a frozen factor A: gradients of B, one row per example."""
    import numpy as np

    rng = np.random.Generator(np.random.PCG64(0))  # data, not noise
    hidden = rng.normal(size=(_EXAMPLES, _FEATURES)) @ rng.normal(size=(_FEATURES, _RANK)) / 4
    labels = rng.integers(0, classes, _EXAMPLES)

    def gradients(model: NDArray[np.float64]) -> Sequence[NDArray[np.float64]]:
        logits = hidden @ model.reshape(classes, _RANK).T
        odds = np.exp(logits - logits.max(axis=1, keepdims=True))
        errors = odds / odds.sum(axis=1, keepdims=True)
        errors[np.arange(_EXAMPLES), labels] -= 1
        return [np.outer(error, row).ravel() for error, row in zip(errors, hidden, strict=True)]

    return gradients


def _share(sabotage: Sabotage) -> Share:
    import hashlib

    import msgspec
    import numpy as np

    from dp.empirical_audit import honest_share
    from secagg.ring import with_checks

    def no_noise(manifest, total, random_bytes):  # type: ignore[no-untyped-def]
        encoding = manifest.encoding
        return with_checks(total, encoding.ring_bits, encoding.slice_length)

    def lost_noise(manifest, total, random_bytes):  # type: ignore[no-untyped-def]
        noise = manifest.noise
        rest = msgspec.structs.replace(noise, share_variance=noise.share_variance // 100)
        return honest_share(msgspec.structs.replace(manifest, noise=rest), total, random_bytes)

    def no_clip(manifest, total, random_bytes):  # type: ignore[no-untyped-def]
        """Canaries as if the clip were eight times as large."""
        large = np.abs(total) > manifest.segments[0].clip_units // 2
        return honest_share(manifest, np.where(large, 8 * total, total), random_bytes)

    def repeated_noise(manifest, total, random_bytes):  # type: ignore[no-untyped-def]
        return honest_share(manifest, total, lambda n: hashlib.shake_256(b"seed").digest(n))

    return {
        Sabotage.no_noise: no_noise,
        Sabotage.lost_noise: lost_noise,
        Sabotage.no_clip: no_clip,
        Sabotage.repeated_noise: repeated_noise,
    }.get(sabotage, honest_share)


def _batch_sum(sabotage: Sabotage) -> BatchSum:
    import msgspec

    from dp.example_sum import ExampleSum

    def two_clips(manifest, random_bytes):  # type: ignore[no-untyped-def]
        segment = manifest.segments[0]
        wider = msgspec.structs.replace(segment, clip_units=2 * segment.clip_units)
        return ExampleSum(msgspec.structs.replace(manifest, segments=(wider,)), random_bytes)

    class CountedTwice(ExampleSum):
        """An example that two overlapping micro-batches hold."""

        def add(self, gradient):  # type: ignore[no-untyped-def]
            super().add(gradient)
            super().add(gradient)

    class ClippedByTensor(ExampleSum):
        """Each tensor's gradient has the whole clip to itself: an example moves by its root 2."""

        def add(self, gradient):  # type: ignore[no-untyped-def]
            part = gradient.copy()
            part[len(part) // 2 :] = 0
            super().add(part)
            super().add(gradient - part)

    return {
        Sabotage.two_clips: two_clips,
        Sabotage.counted_twice: CountedTwice,
        Sabotage.clipped_by_tensor: ClippedByTensor,
    }.get(sabotage, ExampleSum)
