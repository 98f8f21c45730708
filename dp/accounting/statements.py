"""From a manifest and its releases to privacy statements, one per unit, adversary and assumption.

Modes are never mixed: each is the cost to one unit against one adversary, from the noise that
protects this unit. The headline is unamplified. What is accounted is what happened: the noise that
the survivors of each release guarantee. (Survivor counts are adversary-chosen; the bound that
holds whatever they are is that of ``lines(manifest, releases_max)``: the filter of Feldman and
Zrnic, 2021, at the fewest survivors.)

Where batches are scheduled, an example is in at most k = ceil(releases / period) of the sums
(:mod:`dp.schedule`). Nobody but its device knows which, so the k dearest are composed, and what
imperfect randomness takes from delta stays that of all releases. Devices are in every sum.
"""

from __future__ import annotations

import enum
import math
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache
from typing import Literal

import msgspec

from dp.accounting.events import (
    Adjacency,
    Composed,
    DiscreteGaussianSum,
    Event,
    PoissonSampled,
    SkellamRelease,
    composed,
    replace_one,
    scheduled,
)
from dp.accounting.gaussian import epsilon_of_shift, gaussian_shifts
from dp.accounting.rdp import epsilon_from_rdp, rdp_curve
from dp.accounting.slot_overrun import overrun_log2, slot_terms
from dp.errors import AccountingError
from dp.noise.grid import clip_units, examples_factor, l1_of, l1_units, l2_squared_units, scale_for
from dp.noise.removable import kept_share
from dp.schedule import participations
from secagg.manifest import DevicePrivacy, ExamplePrivacy, Manifest

ACCOUNTANT_SKELLAM = "skellam/least-of-gaussian-and-rdp"  # docs/skellam.md
ACCOUNTANT_SKELLAM_RENYI = "skellam-rdp/agarwal-kairouz-liu-2021"
ACCOUNTANT_DISCRETE_GAUSSIAN = "discrete-gaussian-sum-rdp/kairouz-liu-steinke-2021"
POISSON = "+poisson/symmetric-noise"  # docs/sampling.md
POISSON_REPLACED = "+poisson/replace-one"  # the same
SAMPLER_LOG2 = -90.0  # distance of one drawn coordinate from Skellam: 2^12 parts of 2^-102
MULTIPLIER_MAX = 1e6
OVERRUN_DRAWS = 1 << 10  # a batch exceeds its cap with probability 2^-80: 2^10 such distances

_MODEL_READERS = ", and everyone who sees the model"
_ABSTAINING = "nothing but the sum depends on who abstains"


Unit = Literal["example", "device", "person", "document"]
"""What noise protects: a row of a device's data, all that a device sends, or all rows on a device
that name one person or document."""


class NoiseKind(enum.StrEnum):
    """Where the noise of a statement is added. Values are its letters in records and answers."""

    LOCAL = "A"
    DEVICE_LEVEL = "B"
    DISTRIBUTED = "C"

    @property
    def word(self) -> str:
        """As reports and texts have it: ``local``, ``device-level``, ``distributed``."""
        return self.name.lower().replace("_", "-")


class PrivacyStatement(msgspec.Struct, frozen=True, kw_only=True):
    """One statement of privacy.

    ``mode``: whose noise it rests on. ``unit``: what one statement is about. ``adversary``: who is
    held off, and under which assumption on time and coins. ``adjacency``: what differs
    between neighbours (:mod:`dp.accounting.events`). ``accountant``: whose theorem.
    ``epsilon`` is rounded up.
    """

    mode: NoiseKind
    unit: Unit
    adversary: str
    adjacency: Adjacency
    amplified: bool
    accountant: str
    epsilon: float
    delta: float


class ReleaseFacts(msgspec.Struct, frozen=True, kw_only=True):
    """What happened in one charged release.

    ``survivors``: devices in the sum; for a cohort that ended after step 3 without a release, the
    manifest's ``survivors_min`` (what a dishonest aggregator may have unmasked).
    ``masking_set_size``: devices that owed a vector, which decides how much noise stays where parts
    of it are removable; 0 if it is not known.
    """

    survivors: int
    masking_set_size: int = 0


Releases = Sequence[ReleaseFacts] | Mapping[ReleaseFacts, int] | int


ADJACENCY: Mapping[str, Adjacency] = {
    **dict.fromkeys(("example", "person", "document"), "add-or-remove"),
    "device": "zero-out",
}
"""By unit: what the sensitivities of a task's releases are between."""


def fewest(manifest: Manifest) -> ReleaseFacts:
    """The release with the least noise that a manifest admits."""
    return ReleaseFacts(survivors=manifest.cohort.survivors_min)


def guaranteed_variance(manifest: Manifest, facts: ReleaseFacts) -> int:
    """Noise variance per coordinate that counts in a released sum, integer units squared.

    Where parts of the noise are removable: what stays of the shares that count, and the target
    where the masking set is not known (no masking set leaves less, see :mod:`dp.noise.removable`).

    Raises:
        AccountingError: ``survivors-too-few`` below the manifest's minimum;
            ``masking-set-size`` for a set that the manifest does not admit;
            ``noise-missing`` without noise in the ring.
    """
    noise, rules, survivors = manifest.noise, manifest.cohort, facts.survivors
    if noise is None:
        raise AccountingError("noise-missing", "The task adds no noise in the ring.")
    if not rules.survivors_min <= survivors <= rules.size_max:
        raise AccountingError(
            "survivors-too-few" if survivors < rules.survivors_min else "survivors-too-many",
            "A release with this number of survivors breaks the manifest.",
            expected=(rules.survivors_min, rules.size_max),
            found=survivors,
        )
    if not noise.removable_drops:
        return noise.share_variance * (survivors - rules.silent_max)
    if facts.masking_set_size == 0:
        return noise.share_variance * noise.honest_min
    if facts.masking_set_size < survivors:
        raise AccountingError(
            "masking-set-size",
            "More devices survived than owed a vector.",
            expected=f"at least {survivors}",
            found=facts.masking_set_size,
        )
    share = kept_share(noise, rules, facts.masking_set_size, survivors)
    return share * (survivors - rules.silent_max)


def local_step(manifest: Manifest) -> SkellamRelease:
    """One local step: Skellam noise on a sum of integer-clipped gradients."""
    privacy = manifest.example_privacy
    if privacy is None:
        raise AccountingError("privacy-missing", "The task has no example-level privacy.")
    length = manifest.data_length
    units = clip_units(privacy.clip, scale_for(privacy.clip, length, noisy=True))
    multiplier = checked_multiplier(privacy.noise_multiplier)
    variance = math.ceil(Fraction(multiplier) ** 2 * units * units)
    return SkellamRelease(units * units, l1_of(units, length), variance, ADJACENCY["example"])


def checked_multiplier(noise_multiplier: float) -> float:
    """The noise multiplier, if it can be one.

    Raises:
        AccountingError: ``parameter-out-of-range``.
    """
    if not (math.isfinite(noise_multiplier) and 0 < noise_multiplier <= MULTIPLIER_MAX):
        raise AccountingError(
            "parameter-out-of-range",
            "The noise multiplier is out of range.",
            expected=f"> 0, at most {MULTIPLIER_MAX:g}",
            found=noise_multiplier,
        )
    return noise_multiplier


def _accountant(manifest: Manifest, mode: NoiseKind, renyi: bool) -> str:
    """Whose theorem accounts for the noise: devices' own is Skellam's, whatever is in the ring."""
    ring = None if mode == NoiseKind.LOCAL else manifest.noise
    if ring is not None and ring.mechanism == "discrete-gaussian":
        return ACCOUNTANT_DISCRETE_GAUSSIAN
    return ACCOUNTANT_SKELLAM_RENYI if renyi else ACCOUNTANT_SKELLAM


def ring_release(
    manifest: Manifest,
    facts: ReleaseFacts,
    factor: int,
    adjacency: Adjacency = ADJACENCY["example"],
) -> Event:
    """One released sum, for a unit that moves it by ``factor`` clipped vectors.

    Raises:
        AccountingError: as :func:`guaranteed_variance`.
    """
    variance = guaranteed_variance(manifest, facts)
    l2 = l2_squared_units(manifest.segments) * factor**2
    l1 = l1_units(manifest.segments, factor)
    if manifest.noise is not None and manifest.noise.mechanism == "discrete-gaussian":
        share = manifest.noise.share_variance
        shares = variance // share
        return DiscreteGaussianSum(l2, l1, share, shares, manifest.data_length, adjacency)
    return SkellamRelease(l2, l1, variance, adjacency)


def _counts(manifest: Manifest, releases: Releases) -> Counter[ReleaseFacts]:
    """Facts -> number of charged releases."""
    if isinstance(releases, int):
        if releases < 0:
            raise AccountingError("parameter-out-of-range", "A count is negative.")
        return Counter({fewest(manifest): releases})
    return Counter(releases)


def _ring_event(
    manifest: Manifest,
    counts: Counter[ReleaseFacts],
    factor: int,
    adjacency: Adjacency,
    period: int = 1,
) -> Composed:
    """The releases; of a unit that is scheduled, as many of the dearest as it may be in."""
    events: Counter[Event] = Counter()
    for facts, count in counts.items():
        events[ring_release(manifest, facts, factor, adjacency)] += count
    return composed(scheduled(events, participations(sum(events.values()), period)))


def _sampled(event: Composed, rate: float) -> Composed:
    return Composed(tuple((PoissonSampled(rate, part), count) for part, count in event.parts))


@lru_cache(maxsize=4096)
def epsilon_of(
    event: Event, delta: float, slack_log2: float = -math.inf, *, renyi: bool = False
) -> float:
    """Epsilon at ``delta`` of an event, of which a slice pays for imperfect randomness.

    The lesser of what its Renyi divergences say (:mod:`dp.accounting.rdp`), and of what the
    Gaussian noise says that it is a post-processing of (:mod:`dp.accounting.gaussian`); ``renyi``:
    the former alone, as earlier versions accounted.

    If every output is within statistical distance t = 2^slack_log2 of the ideal mechanism, an
    (eps, delta') guarantee of the ideal one gives (eps, delta' + (1 + e^eps) t). Rounded up; the
    slack is charged at an epsilon that is too large.

    Raises:
        AccountingError: ``event-unknown``, ``parameter-out-of-range``, ``adjacency-mixed``,
            ``adjacency-unaccounted``.
    """
    if not slack_log2 <= 0:
        raise AccountingError(
            "parameter-out-of-range",
            "A statistical distance is above 1.",
            expected="log2 at most 0",
            found=slack_log2,
        )
    curve = rdp_curve(event)
    distance = max(2.0**slack_log2, 5e-324) if slack_log2 > -math.inf else 0.0
    epsilon = _paid(lambda left: epsilon_from_rdp(curve, left), delta, distance)
    shifts = None if renyi else gaussian_shifts(event)
    if shifts is None:
        return epsilon
    m = math.sqrt(shifts.squared) * (1 + 1e-15)
    distance = (distance + shifts.distance) * (1 + 1e-15)
    return min(epsilon, _paid(lambda left: epsilon_of_shift(m, left), delta, distance))


def _paid(epsilon_at: Callable[[float], float], delta: float, distance: float) -> float:
    """Epsilon at what ``delta`` leaves when it has paid for a statistical distance."""
    if distance == 0:
        return epsilon_at(delta)
    first = epsilon_at(delta / 2)
    if first > 600:
        return math.inf
    slack = (1 + math.exp(first)) * distance
    if slack > delta / 2:
        return math.inf
    return epsilon_at(delta - slack)


def lines(
    manifest: Manifest, releases: Releases, *, replaced: bool = False, renyi: bool = False
) -> tuple[PrivacyStatement, ...]:
    """What ``releases`` of this task cost, statement by statement; empty without privacy.

    ``releases``: facts of each, or facts -> number of releases; an integer counts releases at the
    fewest survivors (what a task is charged beforehand). ``replaced``: the same releases between
    neighbours that exchange a record (a device: its data), at twice the sensitivity; none such
    is amplified. ``renyi``: by Renyi divergences alone, as earlier versions wrote them.

    Raises:
        AccountingError: an impossible release or parameter.
    """
    counts, how = _counts(manifest, releases), _How(replaced, renyi)
    result: list[PrivacyStatement] = []
    if manifest.example_privacy is not None:
        if manifest.example_privacy.mode == "distributed":
            result += _distributed(manifest, manifest.example_privacy, counts, how)
        else:
            total = sum(counts.values())
            result += _local(manifest, manifest.example_privacy, total, how)
    if manifest.device_privacy is not None:
        result += _device_level(manifest, manifest.device_privacy, counts, how)
    return tuple(result)


@dataclass(frozen=True)
class _How:
    """Between which neighbours, and by which theorems, statements are made."""

    replaced: bool
    renyi: bool


def _statement(
    mode: NoiseKind, manifest: Manifest, event: Composed, slack: float, how: _How
) -> PrivacyStatement:
    """The unamplified statement about an event with noise of this kind."""
    unit: Unit = "device"
    if mode != NoiseKind.DEVICE_LEVEL and manifest.example_privacy is not None:
        unit = manifest.example_privacy.protects
    adjacency = "replace-one" if how.replaced else ADJACENCY[unit]
    delta = manifest.budget.delta
    seen = replace_one(event) if how.replaced else event
    return PrivacyStatement(
        mode=mode,
        unit=unit,
        adversary=f"{_who(manifest, mode)}, if {time_terms(manifest, unit, adjacency)}",
        adjacency=adjacency,
        amplified=False,
        accountant=_accountant(manifest, mode, how.renyi),
        epsilon=epsilon_of(seen, delta, slack, renyi=how.renyi),
        delta=delta,
    )


def _distributed(
    manifest: Manifest, privacy: ExamplePrivacy, counts: Counter[ReleaseFacts], how: _How
) -> Iterator[PrivacyStatement]:
    """Examples, by noise over the sum of all devices.

    That a batch may exceed its public cap is paid from delta in both: what is left out then
    depends on the other examples, so a neighbour may move the sum by more than the clip.
    """
    delta = manifest.budget.delta
    event = _ring_event(manifest, counts, 1, ADJACENCY["example"], privacy.scheduled)
    releases = sum(counts.values())
    slack = slack_log2(releases * (draws_per_release(manifest) + OVERRUN_DRAWS))
    statement = _statement(NoiseKind.DISTRIBUTED, manifest, event, slack, how)
    yield statement
    if manifest.report_slot_s > 0 and privacy.sampling_rate < 1 and not how.replaced:
        slack = overrun_log2(slack, releases, manifest.overrun)
        sampled = epsilon_of(_sampled(event, privacy.sampling_rate), delta, slack, renyi=how.renyi)
        terms = slot_terms(manifest.overrun, "report-in slots and failures do")
        yield _amplified(statement, sampled, _who(manifest, NoiseKind.DISTRIBUTED) + terms)


def _local(
    manifest: Manifest, privacy: ExamplePrivacy, releases: int, how: _How
) -> Iterator[PrivacyStatement]:
    """Examples, by the noise of every local step on the device itself."""
    each = manifest.training.local_steps if manifest.training is not None else 1
    steps = each * participations(releases, privacy.scheduled)
    event, delta = Composed(((local_step(manifest), steps),)), manifest.budget.delta
    slack = slack_log2(releases * each * manifest.data_length)
    statement = _statement(NoiseKind.LOCAL, manifest, event, slack, how)
    yield statement
    if privacy.sampling_rate < 1 and not how.replaced:
        slack = overrun_log2(slack, releases, manifest.overrun)
        sampled = epsilon_of(_sampled(event, privacy.sampling_rate), delta, slack, renyi=how.renyi)
        shown = "report-in slots do" if manifest.report_slot_s > 0 else "time does"
        terms = slot_terms(manifest.overrun, shown)
        yield _amplified(statement, sampled, _who(manifest, NoiseKind.LOCAL) + terms)


def _device_level(
    manifest: Manifest, privacy: DevicePrivacy, counts: Counter[ReleaseFacts], how: _How
) -> Iterator[PrivacyStatement]:
    """Whole devices, by noise over the sum of all devices.

    Secret abstention is Poisson sampling of devices, against the aggregator too: beside a device
    whose contribution is always zero stands one that puts it in by an unseen coin. The coin is
    thrown when the device masks, after the slot, so a slot that is missed does not show it; and
    training that fails makes a contribution zero, which moves the sum less.
    """
    delta = manifest.budget.delta
    event = _ring_event(manifest, counts, examples_factor(manifest), ADJACENCY["device"])
    slack = slack_log2(sum(counts.values()) * draws_per_release(manifest))
    statement = _statement(NoiseKind.DEVICE_LEVEL, manifest, event, slack, how)
    yield statement
    if privacy.participation_rate < 1 and not how.replaced:
        sampled = epsilon_of(
            _sampled(event, privacy.participation_rate), delta, slack, renyi=how.renyi
        )
        yield _amplified(statement, sampled, f"{statement.adversary} and {_ABSTAINING}")


def _amplified(statement: PrivacyStatement, epsilon: float, adversary: str) -> PrivacyStatement:
    name = statement.accountant
    return msgspec.structs.replace(
        statement,
        adversary=adversary,
        amplified=True,
        accountant=(ACCOUNTANT_SKELLAM_RENYI if name == ACCOUNTANT_SKELLAM else name) + POISSON,
        epsilon=epsilon,
    )


def draws_per_release(manifest: Manifest) -> int:
    """Coordinates of noise that all devices of the largest cohort draw for one sum."""
    parts = 1 if manifest.noise is None else 1 + len(manifest.noise.removable_drops)
    return manifest.data_length * manifest.cohort.size_max * parts


def slack_log2(draws: int) -> float:
    """log2 of the distance of so many drawn coordinates from ideal Skellam noise."""
    return SAMPLER_LOG2 + math.log2(max(1, draws))


def _who(manifest: Manifest, mode: NoiseKind) -> str:
    """Nobody whom the masks do not stand against: of ``corrupt_max`` devices they hide the rest.

    Other devices' noise may be known to the aggregator; it is not counted. With local noise a
    device's own noise stands against whoever sees its update.
    """
    if mode == NoiseKind.LOCAL:
        return "everyone"
    silent, corrupt = manifest.cohort.silent_max, manifest.cohort.corrupt_max
    known = f"knowing the noise of {_devices(silent)}"
    if corrupt == 0:
        who = f"the aggregator, {known}"
    elif corrupt < silent:
        who = f"the aggregator with {_devices(corrupt, 'other ')}, {known}"
    else:
        who = f"the aggregator with {_devices(silent, 'other ')}"
    return who + _MODEL_READERS


def _devices(count: int, which: str = "") -> str:
    return f"{count} {which}device{'' if count == 1 else 's'}"


def time_terms(manifest: Manifest, unit: Unit, adjacency: Adjacency) -> str:
    """What a statement assumes of time beyond its coins (docs/privacy.md, "Time").

    With every coin known, neighbours still differ in the work of one example (or of all rows of a
    person), or of one device.
    Public slots hide it as far as both neighbours' work fits them. A device that is late at device
    level sends zeros, which is the neighbour itself; but its vector is encoded after the slot.
    """
    if unit == "device":
        when = "time after the slot" if manifest.report_slot_s > 0 else "time"
        return f"{when} does not show the data"
    more = f"another {unit}" if adjacency == "replace-one" else f"one {unit} more"
    if manifest.report_slot_s > 0:
        return f"{more} fits the slot"
    return f"time does not show {more}"


def adversaries(manifest: Manifest, statement: PrivacyStatement) -> tuple[str, ...]:
    """The words for its adversary: those of now, and those of records of earlier versions.

    The headlines of earlier ones said nothing of time; those of the first also named ``silent_max``
    devices where the masks do not stand against as many.
    """
    who = _who(manifest, statement.mode)
    silent = _devices(manifest.cohort.silent_max, "other ")
    local = statement.mode == NoiseKind.LOCAL
    first = who if local else f"the aggregator with {silent}{_MODEL_READERS}"
    terms = statement.adversary.removeprefix(who)
    time = time_terms(manifest, statement.unit, statement.adjacency)
    untimed = terms.replace(f"{time} and ", "") if statement.amplified else ""
    return statement.adversary, who + untimed, first + untimed


def headline(statements: Sequence[PrivacyStatement]) -> float | None:
    """The largest unamplified epsilon; None without privacy."""
    return max(
        (statement.epsilon for statement in statements if not statement.amplified), default=None
    )
