"""Who may have seen what, what a task rests on, and what it does not protect, in plain words."""

from __future__ import annotations

from dp.ledger.findings import AuditedTask
from dp.report.data import Exposure
from secagg.limits import COMPLETE_GRAPH_MAX, GRINDING_BITS, SECURITY_BITS
from secagg.manifest import ExamplePrivacy, Manifest

_BATCH_COINS = (
    "Amplified statements for {}s hold only where the coins of each batch stay secret in the "
    "device, and neither time nor failures show the batch"
)
_ABSTENTION = (
    "The amplified statement for devices holds only if nothing but the sum depends on who "
    "abstains. "
    "Each coin is thrown after training, when the device masks."
)


def a(unit: str) -> str:
    """The unit with its article."""
    return f"an {unit}" if unit == "example" else f"a {unit}"


def amplified(task: AuditedTask) -> str:
    """What must be said beside the amplified statements of this task; empty without one."""
    units = {statement.unit for statement in task.lines if statement.amplified}
    found = []
    if units - {"device"}:
        found.append(_batches(task.manifest))
    if "device" in units:
        found.append(_ABSTENTION)
    return " ".join(found)


def protected(manifest: Manifest) -> str:
    """The word for what example-level noise protects."""
    return "example" if (noise := manifest.example_privacy) is None else noise.protects


def exposure(manifest: Manifest) -> tuple[Exposure, ...]:
    """Everyone who sees something, and what."""
    noisy = manifest.noise is not None
    local = manifest.example_privacy is not None and manifest.example_privacy.mode == "local"
    sums = "sums with noise" if noisy or local else "exact sums"
    rules = manifest.cohort
    return (
        Exposure(
            who="the aggregator and its operator",
            what=f"{sums} over at least {rules.survivors_min} devices, who took part, when, and "
            "under which pseudonym; "
            f"not one device's update, unless {_too_many(rules.corrupt_max)} its cohort on "
            "its side",
        ),
        Exposure(
            who="every participant",
            what=(
                "each released sum, if it asks for it"
                if manifest.training is None
                else "the global model of each version"
            )
            + ", the cohort's roster"
            + (", its own share of noise" if noisy else ""),
        ),
        Exposure(
            who="everyone who reads the ledger",
            what="this task's rules, times, sizes of cohorts, and a pseudonym of each device in "
            "each cohort, which is another one in every cohort (in records of version 1 the same)",
        ),
        Exposure(who="everyone who gets the model", what="what the released sums made of it"),
        Exposure(
            who="the partners",
            what="the identity keys of the devices that they certified; whose a pseudonym is "
            "only if they kept the identity seed that they issued",
        ),
        Exposure(
            who="whoever records the traffic",
            what="sizes and times of messages; the contents stay masked even against a future "
            "quantum computer",
        ),
    )


def assumptions(manifest: Manifest) -> tuple[str, ...]:
    """What must hold for the statements of this task to be true."""
    rules = manifest.cohort
    found = [
        "The partners certify real, distinct devices, not many identities of one machine.",
        _helpers(rules.corrupt_max),
        "Devices run the published code: they clip, add their noise and keep their journal.",
        "AES-256, SHA-256, Ed25519 and the hybrid key exchange hold; random bytes come from the "
        "operating system.",
    ]
    if rules.degree:
        found.append(
            f"A cohort of more than {COMPLETE_GRAPH_MAX} devices shares masks with "
            f"{rules.degree} neighbours each, on a circle drawn from its roster: with a chance of "
            f"at most 2^-{SECURITY_BITS} per cohort the circle is one on which that many devices "
            f"unmask more, if the aggregator tries at most 2^{GRINDING_BITS} rosters."
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
        found.append(_unit(example))
        if example.scheduled > 1:
            found.append(_schedule(example))
        elif example.mode == "distributed":
            found.append(
                f"A device holds few enough {example.protects}s that a batch exceeds "
                f"{example.examples_max} with a chance of at most 2^-80, and chose them without "
                "looking at a batch."
            )
        found.append(_example_time(manifest))
        if example.sampling_rate < 1 and (example.mode == "local" or manifest.report_slot_s > 0):
            found.append(_batches(manifest))
    if manifest.device_privacy is not None:
        found.append(
            "Device-level neighbours differ in one device's data; the device takes part either way."
        )
        found.append(_device_time(manifest))
        if manifest.device_privacy.participation_rate < 1:
            found.append(_ABSTENTION)
    if example is not None or manifest.device_privacy is not None:
        found.append(
            "Survivor counts are what the ledger says. The statements account for what happened; "
            "whatever an adversary chooses, the planned ones bound it."
        )
    return tuple(found)


def _unit(example: ExamplePrivacy) -> str:
    """What one clip bounds, and what is no part of it."""
    unit = example.protects
    if unit == "example":
        return (
            "An example is one training sequence, held by one device. Copies of it, and other "
            "sequences by the same person, count separately."
        )
    return (
        f"A {unit} is all training sequences of one device that name it, of which a device uses "
        f"the first {example.unit_rows_max}: their gradients are added up and clipped as one. A "
        f"sequence that names no {unit}, or several, is not used. That the names are right and "
        "stay is the word of the app on the device; sequences of the same one under another name, "
        "or on another device, count separately."
    )


def _schedule(example: ExamplePrivacy) -> str:
    """What a count of participations rests on; docs/privacy.md numbers it."""
    unit = example.protects
    listed = "list" if unit == "example" else "list of names"
    served = (
        f"; of its list the first {example.scheduled * example.examples_max} places serve"
        if example.mode == "distributed"
        else ""
    )
    return (
        "A device counts each charge before it sends, whatever becomes of it, and puts one part of "
        f"its {unit}s and nothing else into the contribution. {a(unit).capitalize()}'s part "
        f"follows from its place in a {listed} that only grows{served}. Nothing of other parts is "
        "kept beside the released models, unless it has noise. One identity with one state folder "
        "serves the task with the same data, and a lost count goes on from what the ledger shows. "
        "The ledger has "
        "every cohort that devices counted: one that it leaves out moves their parts on, and then "
        "only the cost of all planned releases bounds the recorded ones."
    )


def _too_many(corrupt_max: int) -> str:
    if corrupt_max == 0:
        return "it has a device of"
    return f"it has more than {corrupt_max} device{'' if corrupt_max == 1 else 's'} of"


def _helpers(corrupt_max: int) -> str:
    if corrupt_max == 0:
        return "No device of a cohort helps the aggregator to unmask another's update."
    helping = "device of a cohort helps" if corrupt_max == 1 else "devices of a cohort help"
    return f"At most {corrupt_max} {helping} the aggregator to unmask another's update."


def _example_time(manifest: Manifest) -> str:
    """What statements for examples assume of time, even where all coins of a batch are known."""
    unit = protected(manifest)
    if manifest.report_slot_s == 0:
        return (
            f"Time does not show one {unit} more: a device reports in as soon as it has trained, "
            "and a longer batch takes longer. Who sees when it does (the aggregator, and whoever "
            "records the traffic) may tell; a reader of the ledger sees only when a whole cohort "
            "was done. Public report slots would hide it."
        )
    late = (
        "does not take part, which is seen"
        if manifest.noise is None
        else f"sends zeros and its noise, so the sum loses a whole batch and not one {unit}"
    )
    return (
        f"One {unit} more fits the slot: every device reports in at a public multiple of "
        f"{manifest.report_slot_s:g} s, at least that long after it began, by its own clock. One "
        f"whose training takes longer, or fails, {late}. No unamplified epsilon pays for that."
    )


def _device_time(manifest: Manifest) -> str:
    """What statements for devices assume of time."""
    if manifest.report_slot_s == 0:
        return (
            "Time does not show the data: a device reports in as soon as it has trained, "
            "and more data take longer. Public report slots would hide it."
        )
    return (
        "Time after the slot does not show the data. Up to the slot it shows nothing: a "
        "device that is late or fails sends zeros and its noise, as its neighbour does. After it, "
        "rounding a vector to integers takes a little longer for some vectors than for others."
    )


def _batches(manifest: Manifest) -> str:
    """What is assumed of secret batches, and of the time at which their work ends."""
    slot_s, overrun = manifest.report_slot_s, manifest.overrun
    coins = _BATCH_COINS.format(protected(manifest))
    if overrun:
        return (
            f"{coins}, but with a chance of at most {overrun!r} in each release "
            "(slot_overrun, as the operator states it). That a batch makes its device miss the "
            f"public slot of {slot_s:g} s, or fail, is part of delta: (1 + e^epsilon) times that "
            "chance is taken from it for every charged release before an amplified epsilon is "
            "computed. Nothing here shows that the chance is no larger."
        )
    return f"{coins}. {_slots(manifest)}"


def _slots(manifest: Manifest) -> str:
    """What is assumed of time where no chance of an overrun is stated; no delta pays for it."""
    slot_s = manifest.report_slot_s
    if slot_s == 0:
        return "This task has no report slots: how long a device trains may show its batch."
    late = (
        "A device that is late does not take part, which is seen."
        if manifest.noise is None
        else "A device that is late sends zeros and its noise, which hides that it is late, but "
        f"not that one {protected(manifest)} took a whole batch out."
    )
    return (
        f"That training and the report end within the public slot of {slot_s:g} s is assumed: the "
        "task claims that this never fails (no slot_overrun), and the chance that it does is not "
        f"part of delta. {late}"
    )


def unprotected(manifest: Manifest) -> tuple[str, ...]:
    """What nobody should take for protected."""
    found = [
        "That a device takes part, when, and for how long: no epsilon covers times or failures.",
        "What the base model and its tokenizer learned before this task.",
        "Facts about the whole population: learning them is the purpose.",
        "Hyperparameters that were tuned on the same data outside this ledger.",
        "Correctness against devices that lie: a device can send any vector within its bound.",
    ]
    if manifest.example_privacy is not None and manifest.device_privacy is None:
        unit = protected(manifest)
        found.append(f"A device as a whole: what all its {unit}s have in common may show.")
        if unit != "example":
            found.append(
                f"A single sequence as such: the statement is about a {unit} that is there or not, "
                "and one sequence more may move what is clipped by twice its bound."
            )
    if manifest.device_privacy is not None and manifest.example_privacy is None:
        found.append(
            "No separate statement is made for single examples beyond the device's (changing one "
            "example may move a device's contribution by twice its bound)."
        )
    if manifest.example_privacy is None and manifest.device_privacy is None:
        found.append("The sums themselves: no noise is added, so a sum may reveal single examples.")
    return tuple(found)
