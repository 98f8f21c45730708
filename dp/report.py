"""The data of a privacy report, in plain words and numbers; the page is drawn floors above.

It holds what NIST SP 800-226, "How to DP-fy ML" (arXiv 2303.00654) and the OpenDP deployments
registry ask for, as far as a ledger can know it, and says what a ledger cannot know.
"""

from __future__ import annotations

import math
from collections import Counter

import msgspec

from dp.accounting import PrivacyLine, epsilon_of, headline, lines, slack_log2
from dp.audit import AuditedRelease, AuditedTask, AuditResult, Finding
from dp.budget import Unit, charges_of
from dp.contracts import overshoot, warnings
from dp.events import Composed, Event
from dp.grid import examples_factor
from secagg.limits import COMPLETE_GRAPH_MAX, GRINDING_BITS, SECURITY_BITS
from secagg.manifest import Manifest

_PROFILE_DELTAS = (1e-4, 1e-5, 1e-6, 1e-7, 1e-8, 1e-9)


class Parameter(msgspec.Struct, frozen=True, kw_only=True):
    name: str
    value: str
    meaning: str


class ReleaseRow(msgspec.Struct, frozen=True, kw_only=True):
    """One charged cohort. ``epsilons``: the task's cost after it, in the order of its lines.

    ``noise_multiplier``: guaranteed noise over the unit's bound (of examples, else of devices).
    ``measured``: the noise meter's interval, as a multiple of the guaranteed variance.
    """

    number: int
    leaf: int
    at: int
    outcome: str
    cohort_size: int
    survivors: int
    dropped: int
    noise_multiplier: float | None
    measured: tuple[float, float] | None
    epsilons: tuple[float, ...]


class BudgetRow(msgspec.Struct, frozen=True, kw_only=True):
    max_epsilon: float | None
    delta: float
    spent: float | None
    left: float | None
    releases_max: int
    releases_left: int


class Exposure(msgspec.Struct, frozen=True, kw_only=True):
    """Who may have seen what."""

    who: str
    what: str


class ProfilePoint(msgspec.Struct, frozen=True, kw_only=True):
    """The headline statement at another delta."""

    delta: float
    epsilon: float


class TaskReport(msgspec.Struct, frozen=True, kw_only=True):
    """``planned``: the lines if all releases happen with the fewest survivors. ``replaced``: what
    happened, between neighbours that exchange a record instead."""

    task: str
    algorithm: str
    model: str
    created_at: int
    manifest_digest: str
    parameters: tuple[Parameter, ...]
    lines: tuple[PrivacyLine, ...]
    planned: tuple[PrivacyLine, ...]
    replaced: tuple[PrivacyLine, ...]
    releases: tuple[ReleaseRow, ...]
    budget: BudgetRow
    profile: tuple[ProfilePoint, ...]
    exposure: tuple[Exposure, ...]
    assumptions: tuple[str, ...]
    unprotected: tuple[str, ...]
    warnings: tuple[str, ...]


class Combined(msgspec.Struct, frozen=True, kw_only=True):
    """What all tasks of the ledger cost together one unit whose data served in every one."""

    unit: str
    epsilon: float
    delta: float


class Figure(msgspec.Struct, frozen=True, kw_only=True):
    """How to compute a figure of the report again; ``value``: from what, and how."""

    name: str
    value: str


_FIGURES = (
    Figure(
        name="epsilon of a line",
        value="the manifest in the task's record, and outcome and survivors of its release records "
        "in order; a charged cohort counts as one with the fewest survivors",
    ),
    Figure(
        name="planned epsilon",
        value="the same, with releases_max releases of the fewest survivors",
    ),
    Figure(
        name="epsilon under replace-one",
        value="the same releases with both sensitivities doubled, never amplified",
    ),
    Figure(
        name="budget left",
        value="max_epsilon of the manifest less the largest line without amplification",
    ),
    Figure(
        name="noise over bound",
        value="share_variance times (survivors - silent_max), its root over the exact integer "
        "bound clip_units; with removable_drops what stays of a share, ceil(share_variance times "
        "honest_min / (masking_set_size - silent_max - t)), t the least level of at least as many "
        "drop-outs, in the place of share_variance",
    ),
    Figure(name="dropped", value="cohort_size less survivors, both in the release's record"),
    Figure(
        name="epsilon at another delta",
        value="the same divergences, converted at that delta",
    ),
    Figure(
        name="cohort and drop-out chart",
        value="survivors and cohort_size of each release record, in order",
    ),
)


class Statement(msgspec.Struct, frozen=True, kw_only=True):
    """What a reader of any such report must know; the lists named above ask for it."""

    name: str
    text: str


_READING = (
    Statement(
        name="Setting",
        text="Data stay on the devices. Masked sums leave a cohort; the aggregator can open a sum "
        "and nothing smaller. Each release is one access to the data of every device in it.",
    ),
    Statement(
        name="What epsilon says",
        text="Whoever sees the releases can raise the odds of any guess about one protected unit "
        "by a factor of at most e to the epsilon, but for a chance of delta. Epsilons of different "
        "rows answer different questions and are not comparable.",
    ),
    Statement(
        name="Who enforces it",
        text="Devices clip, add the noise and keep an account of their own, which refuses more "
        "rounds than the budget allows; the aggregator debits before it opens a sum.",
    ),
    Statement(
        name="Accounting",
        text="Of what happened: the noise guaranteed by the real survivors of each release, by "
        "Rényi divergences at integer orders, without any amplification in the headline, and "
        "rounded up.",
    ),
    Statement(
        name="Randomness",
        text="Noise is drawn in integers from AES-256-CTR under keys of the operating system's "
        "generator, exactly but for tails below 2^-100. No floating point enters the proof.",
    ),
    Statement(
        name="Tuning",
        text="Runs that chose this task's parameters are in this account only if they are tasks of "
        "this ledger.",
    ),
)


class ReportData(msgspec.Struct, frozen=True, kw_only=True):
    origin: str
    verified: bool
    tree_size: int
    root: str
    problems: tuple[Finding, ...]
    tasks: tuple[TaskReport, ...]
    combined: tuple[Combined, ...]
    witnesses: dict[str, int]
    reading: tuple[Statement, ...]
    figures: tuple[Figure, ...]
    recompute: tuple[str, ...]


def report_data(audit: AuditResult) -> ReportData:
    """The report of a ledger that was audited; a ledger with problems is reported with them."""
    tasks = [task for task in audit.tasks if task.admissible]
    return ReportData(
        origin=audit.origin,
        verified=audit.verified,
        tree_size=audit.tree_size,
        root=audit.root,
        problems=audit.problems,
        tasks=tuple(_task(task) for task in tasks),
        combined=_combined(tasks),
        witnesses=audit.witnesses,
        reading=_READING,
        figures=_FIGURES,
        recompute=(
            "Bring the ledger's verifier key from outside the ledger: from the partner who "
            "enrolled the devices, never from the ledger itself.",
            "Run: secagg audit verify LEDGER --key VERIFIER_KEY --format json",
            "It checks the signature, hashes every record, and computes every epsilon again from "
            "the manifest in the task's record and the number of survivors in each release.",
            "The formulas: Skellam noise by Agarwal, Kairouz and Liu (2021); sums of discrete "
            "Gaussian shares by Kairouz, Liu and Steinke (2021), the first bound of Proposition "
            "14; Poisson sampling as Mironov, Talwar and Zhang (2019), for symmetric noise on the "
            "integers too (the proof is docs/sampling.md of the source code); conversion to "
            "(epsilon, delta) by "
            "Canonne, Kamath and Steinke (2020), Proposition 12; integer orders; rounded up.",
            "Whoever keeps older checkpoints can show that the log was never rewritten.",
        ),
    )


def _task(task: AuditedTask) -> TaskReport:
    manifest = task.manifest
    spent = headline(task.lines)
    limit = manifest.budget.max_epsilon
    model = manifest.base_model.name if manifest.base_model is not None else "no model"
    return TaskReport(
        task=manifest.task,
        algorithm=manifest.algorithm,
        model=model,
        created_at=manifest.created_at,
        manifest_digest=task.manifest_digest.hex(),
        parameters=_parameters(manifest),
        lines=task.lines,
        planned=lines(manifest, manifest.budget.releases_max),
        replaced=lines(manifest, task.facts, replaced=True),
        releases=tuple(
            ReleaseRow(
                number=release.entry.release,
                leaf=release.leaf,
                at=release.entry.released_at,
                outcome=release.entry.outcome,
                cohort_size=release.entry.cohort_size,
                survivors=release.entry.survivors,
                dropped=release.entry.cohort_size - release.entry.survivors,
                noise_multiplier=_multiplier(manifest, release.guaranteed_variance),
                measured=_measured(release),
                epsilons=tuple(line.epsilon for line in release.lines),
            )
            for release in task.releases
        ),
        budget=BudgetRow(
            max_epsilon=limit,
            delta=manifest.budget.delta,
            spent=spent,
            left=None if limit is None or spent is None else max(0.0, limit - spent),
            releases_max=manifest.budget.releases_max,
            releases_left=max(0, manifest.budget.releases_max - len(task.releases)),
        ),
        profile=_profile(task),
        exposure=_exposure(manifest),
        assumptions=_assumptions(manifest),
        unprotected=_unprotected(manifest),
        warnings=warnings(manifest),
    )


def _multiplier(manifest: Manifest, variance: int) -> float | None:
    example = manifest.example_privacy
    if example is not None and example.mode == "local":
        return example.noise_multiplier
    if manifest.noise is None:
        return None
    factor = 1 if example is not None else examples_factor(manifest)
    bound = math.sqrt(sum(segment.clip_units**2 for segment in manifest.segments)) * factor
    return math.sqrt(variance) / bound


def _measured(release: AuditedRelease) -> tuple[float, float] | None:
    ends, guaranteed = release.entry.measured_variance, release.guaranteed_variance
    if ends is None or guaranteed == 0:
        return None
    return ends[0] / guaranteed, ends[1] / guaranteed


def _parameters(manifest: Manifest) -> tuple[Parameter, ...]:
    rows = []

    def row(name: str, value: object, meaning: str) -> None:
        text = f"{value:g}" if isinstance(value, float) else str(value)
        rows.append(Parameter(name=name, value=text, meaning=meaning))

    rules, example, device = manifest.cohort, manifest.example_privacy, manifest.device_privacy
    row("cohort", f"{rules.size_min} to {rules.size_max}", "devices that start a sum")
    row("survivors_min", rules.survivors_min, "fewest devices in a released sum")
    row("corrupt_max", rules.corrupt_max, "devices that may work with the aggregator")
    if rules.degree:
        row("degree", rules.degree, "neighbours that each device of a large cohort has")
        row("threshold", rules.threshold, "neighbours who open one secret of a device together")
    row("silent_max", rules.silent_max, "survivors whose noise is not counted")
    if example is not None:
        where = "by every device in every local step" if example.mode == "local" else "over the sum"
        row("clip", example.clip, "L2 bound of one example's gradient")
        row("noise_multiplier", example.noise_multiplier, f"noise over the clip, {where}")
        row("sampling_rate", example.sampling_rate, "chance that an example joins a batch")
        if example.mode == "distributed":
            row("examples_max", example.examples_max, "most examples of a device in one sum")
    if device is not None:
        row("device clip", device.clip, "L2 bound of a device's whole contribution")
        row("device noise_multiplier", device.noise_multiplier, "noise over that bound")
    if manifest.noise is not None:
        row("share_variance", manifest.noise.share_variance, "one device's noise, units squared")
        drops = manifest.noise.removable_drops
        row(
            "removable noise",
            ", ".join(map(str, drops)) if drops else "none",
            "drop-outs up to which each further part is kept; the others are taken off the sum",
        )
        row("overshoot", overshoot(manifest) or 0.0, "most noise in a sum over the guaranteed")
    for segment in manifest.segments:
        row(
            f"segment {segment.name}",
            f"{segment.length} numbers",
            f"clip {segment.clip:g}, {segment.scale} units per 1, exact bound {segment.clip_units}",
        )
    row("ring", f"{manifest.encoding.ring_bits} bits", "size of a coordinate under the masks")
    row(
        "wrap-around",
        f"2^{manifest.encoding.wrap_log2:.0f}",
        "bound on the chance that a sum overflows; costs accuracy, never privacy",
    )
    if manifest.training is not None:
        row("local_steps", manifest.training.local_steps, "steps on a device for each sum")
        if manifest.training.denominator:
            row("denominator", manifest.training.denominator, "public constant under the sum")
        else:
            row("denominator", "from the sum", "the contributors, or the sum of their weights")
    return tuple(rows)


def _profile(task: AuditedTask) -> tuple[ProfilePoint, ...]:
    """The headline statement of what happened, at several deltas."""
    points = []
    for delta in _PROFILE_DELTAS:
        budget = msgspec.structs.replace(task.manifest.budget, delta=delta)
        manifest = msgspec.structs.replace(task.manifest, budget=budget)
        cost = headline(lines(manifest, task.facts))
        if cost is not None and math.isfinite(cost):
            points.append(ProfilePoint(delta=delta, epsilon=cost))
    return tuple(points)


def _combined(tasks: list[AuditedTask]) -> tuple[Combined, ...]:
    result = []
    units: tuple[Unit, ...] = ("example", "device")
    for unit in units:
        counts: Counter[Event] = Counter()
        draws, deltas = 1, []
        for task in tasks:
            for facts in task.facts:
                for charge in charges_of(task.manifest, facts):
                    if charge.unit == unit:
                        counts[charge.event()] += charge.count
                        draws += charge.draws
                        deltas.append(task.manifest.budget.delta)
        if counts:
            delta = max(deltas)
            event = Composed(tuple(sorted(counts.items(), key=repr)))
            epsilon = epsilon_of(event, delta, slack_log2(draws))
            result.append(Combined(unit=unit, epsilon=epsilon, delta=delta))
    return tuple(result)


def _exposure(manifest: Manifest) -> tuple[Exposure, ...]:
    noisy = manifest.noise is not None
    local = manifest.example_privacy is not None and manifest.example_privacy.mode == "local"
    sums = "sums with noise" if noisy or local else "exact sums"
    rules = manifest.cohort
    return (
        Exposure(
            who="the aggregator and its operator",
            what=f"{sums} over at least {rules.survivors_min} devices, who took part, and when; "
            "not one device's update, unless more than "
            f"{rules.corrupt_max} devices of its cohort work with it",
        ),
        Exposure(
            who="every participant",
            what="the global model of each version, the cohort's roster, its own share of noise",
        ),
        Exposure(
            who="everyone who reads the ledger",
            what="this task's rules, times, sizes of cohorts, and pseudonyms of contributors, by "
            "which one device's releases can be linked",
        ),
        Exposure(who="everyone who gets the model", what="what the released sums made of it"),
        Exposure(
            who="whoever records the traffic",
            what="sizes and times of messages; the contents stay masked even against a future "
            "quantum computer",
        ),
    )


def _assumptions(manifest: Manifest) -> tuple[str, ...]:
    rules = manifest.cohort
    found = [
        "The partners certify real, distinct devices, not many identities of one machine.",
        f"At most {rules.corrupt_max} devices of a cohort work with the aggregator to open one "
        "device's update.",
        "Devices run the published code: they clip, add their noise and keep their journal.",
        "AES-256, SHA-256, Ed25519 and the hybrid key exchange hold; random bytes come from the "
        "operating system.",
    ]
    if rules.degree:
        found.append(
            f"A cohort of more than {COMPLETE_GRAPH_MAX} devices shares masks with "
            f"{rules.degree} neighbours each, on a circle drawn from its roster: with a chance of "
            f"at most 2^-{SECURITY_BITS} per cohort the circle is one on which that many devices "
            f"open more, if the aggregator tries at most 2^{GRINDING_BITS} rosters."
        )
    if manifest.noise is not None:
        found.append(
            f"At least {manifest.noise.honest_min} of the fewest {rules.survivors_min} survivors "
            f"add their noise and keep it secret; the noise of {rules.silent_max} is not counted."
        )
        found.append(
            "The measured noise is an interval computed from each sum. Its upper end holds "
            "whatever devices sent, and a sum whose upper end is below the guaranteed noise is "
            "not used; its lower end holds only if devices kept to their clip, since too long a "
            "vector looks like noise."
        )
    example = manifest.example_privacy
    if example is not None:
        found.append(
            "An example is one training sequence, held by one device. Copies of it, and other "
            "sequences by the same person, count separately."
        )
        if example.mode == "distributed":
            found.append(
                f"A device holds few enough examples that a batch exceeds {example.examples_max} "
                "with a chance of at most 2^-80, and chose them without looking at a batch."
            )
        if example.sampling_rate < 1:
            found.append(
                "Amplified lines hold only where the coins of each batch stay secret in the "
                "device, and neither time nor failures show the batch."
            )
    if manifest.device_privacy is not None:
        found.append(
            "Device-level neighbours differ in one device's data; the device takes part either way."
        )
    found.append(
        "Survivor counts are what the ledger says. The lines account for what happened; whatever "
        "an adversary chooses, the planned lines bound it."
    )
    return tuple(found)


def _unprotected(manifest: Manifest) -> tuple[str, ...]:
    found = [
        "That a device takes part, when, and for how long.",
        "What the base model and its tokenizer learned before this task.",
        "Facts about the whole population: learning them is the purpose.",
        "Hyperparameters that were tuned on the same data outside this ledger.",
        "Correctness against devices that lie: a device can send any vector within its bound.",
    ]
    if manifest.example_privacy is not None and manifest.device_privacy is None:
        found.append("A device as a whole: what all its examples have in common may show.")
    if manifest.device_privacy is not None and manifest.example_privacy is None:
        found.append(
            "No separate statement is made for single examples beyond the device's (changing one "
            "example may move a device's contribution by twice its bound)."
        )
    if manifest.example_privacy is None and manifest.device_privacy is None:
        found.append("The sums themselves: no noise is added, so a sum may reveal single examples.")
    return tuple(found)
