"""The questions of the reporting lists, answered for one task, or marked as unknown to a ledger.

The lists: the pyramid of NIST SP 800-226 (privacy parameter and unit; implementation and security;
data and access), "How to DP-fy ML" (arXiv 2303.00654) and the fields of the OpenDP
deployments registry (its schema and https://registry.opendp.org/transparency-tiers). Each list has
its own reader; a page that skips a question leaves that reader to guess.
"""

from __future__ import annotations

from collections import Counter

from dp.accounting.figures import delta_shown, shown_up
from dp.contracts.algorithms.registry import algorithm_of
from dp.contracts.units import protected_units
from dp.ledger.findings import AuditedTask
from dp.report.data import Answer, AnswerGroup
from dp.report.words import a, protected
from dp.schedule import participations, period_of
from secagg.manifest import Manifest

NIST, DPFY, OPENDP = "NIST SP 800-226", "How to DP-fy ML", "OpenDP registry"
_DISTRIBUTIONS = {"skellam": "Skellam", "discrete-gaussian": "discrete Gaussian"}
_ASK_OPERATOR = "The ledger does not know. Ask the operator."
_ASK_PARTNERS = "The ledger does not know. Ask the partners who enrolled the devices."


def answers(task: AuditedTask) -> tuple[AnswerGroup, ...]:
    """All questions about this task, in three groups; none is left out for want of an answer."""
    return (
        AnswerGroup(name="The statement", answers=_statement(task)),
        AnswerGroup(name="Implementation and security", answers=_implementation(task.manifest)),
        AnswerGroup(name="Data and access", answers=_data(task)),
    )


def _known(question: str, text: str, *lists: str) -> Answer:
    return Answer(question=question, text=text, lists=lists, known=True)


def _unknown(question: str, text: str, *lists: str) -> Answer:
    return Answer(question=question, text=text, lists=lists, known=False)


def _statement(task: AuditedTask) -> tuple[Answer, ...]:
    manifest = task.manifest
    most = manifest.budget.releases_max
    released = sum(row.entry.outcome == "released" for row in task.releases)
    covered = (
        "The statement covers every one of them that this ledger records, not only the last"
        if task.lines
        else "No statement covers any of them"
    )
    return (
        _known("Setting, and whom it trusts", _setting(manifest), NIST, DPFY, OPENDP),
        _known("Flavour", _flavour(task), OPENDP),
        _known("Unit of privacy", _units(manifest), NIST, DPFY, OPENDP),
        _known("Neighbouring data sets", _neighbours(task), DPFY, OPENDP),
        _known("Privacy loss", _loss(task), NIST, DPFY, OPENDP),
        _known("Delta against the number of protected units", _delta(manifest), NIST),
        _known(
            "What is released, and how often",
            f"{_what(manifest)} in many releases: {released} so far; charged like one, without a "
            f"sum: {len(task.releases) - released}; at most {most} in all. {covered}; a sum that "
            "it does not record is covered by nothing.",
            DPFY,
            OPENDP,
        ),
        _known("Accesses to the data that it covers", _accesses(task), DPFY),
        _known(
            "How often one device takes part, and who enforces it",
            f"In each release at most once, so in at most {most} of this task. A device that runs "
            "the published code demands a roster that lists nobody twice, and its own account "
            "refuses more, over all tasks of the same data on that device (where its app names "
            "them by a data id). " + _scheduled(task) + _participation(task),
            NIST,
            DPFY,
        ),
        _known("Accounting and composition", _accounting(task), DPFY, OPENDP),
        _known(
            "Do the accounting's assumptions hold?",
            "The headline needs none about sampling or about who chose the cohorts; what it "
            "assumes of time stands in its row. What it and "
            "the other statements rest on is listed under “What this rests on”; amplified ones "
            "stand beside the same cost without amplification, never alone."
            if task.lines
            else "No statement.",
            DPFY,
        ),
        _known(
            "Post-processing",
            "Decoding the sum, dividing it by public numbers and the server's step: functions of "
            "the unmasked sum alone.",
            OPENDP,
        ),
    )


def _evaluates(manifest: Manifest) -> bool:
    declared = algorithm_of(manifest)
    return declared.has_adapter and not declared.moves_model


def _what(manifest: Manifest) -> str:
    if _evaluates(manifest):
        return "Sums of losses, hits and counts of a model that stays as it is,"
    return "A machine learning model" if manifest.base_model is not None else "Sums of vectors"


def _setting(manifest: Manifest) -> str:
    example = manifest.example_privacy
    if manifest.noise is not None and example is not None and example.mode == "local":
        return (
            f"Local for {example.protects}s: each device adds all the noise that counts for them "
            "to its own gradients. Distributed for devices: each adds a share of noise before its "
            f"update is masked, and {manifest.noise.honest_min} devices of a cohort are trusted "
            "to add theirs."
        )
    if manifest.noise is not None:
        return (
            "Distributed: each device adds a share of noise before its update is masked; only the "
            "sum of a cohort is unmasked. The aggregator is not trusted with data or with noise; "
            f"{manifest.noise.honest_min} devices of a cohort are trusted to add theirs."
        )
    if manifest.example_privacy is not None:
        return (
            "Local: each device adds all the noise that counts to its own gradients and trusts "
            "nobody for it; masking comes on top."
        )
    return "No differential privacy; only masking, which hides one device's update in its sum."


def _flavour(task: AuditedTask) -> str:
    if not task.lines:
        return "None."
    return (
        "(epsilon, delta), converted from Rényi differential privacy at integer orders. Other "
        "deltas of the same curve are in the report."
    )


def _units(manifest: Manifest) -> str:
    found = []
    if manifest.example_privacy is not None:
        found.append(_clipped(manifest.example_privacy.protects))
    if manifest.device_privacy is not None:
        found.append("One device: whatever its data make it send in every release")
    return ("; ".join(found) or "None") + "."


def _clipped(unit: str) -> str:
    if unit == "example":
        return "One training sequence of one device"
    return f"One {unit}: all training sequences of one device that name it"


def _neighbours(task: AuditedTask) -> str:
    words = {
        "add-or-remove": "one training sequence more or less"
        if protected(task.manifest) == "example"
        else f"all training sequences of one {protected(task.manifest)} more or less",
        "zero-out": "one device that sends zeros in place of its contribution, and its noise",
        "replace-one": "one record exchanged for another",
    }
    if period_of(task.manifest) > 1:
        words["add-or-remove"] += ", at its place in a device's list; the others keep theirs"
    used = dict.fromkeys(statement.adjacency for statement in task.lines)
    return ("; ".join(f"{name}: {words[name]}" for name in used) or "None") + "."


def _loss(task: AuditedTask) -> str:
    lines = [
        f"one {statement.unit} ({statement.mode.word} noise"
        f"{', amplified' if statement.amplified else ''}): epsilon {shown_up(statement.epsilon)} "
        f"at delta {delta_shown(statement.delta)}"
        for statement in task.lines
    ]
    return ("; ".join(lines) or "No statement") + "."


def _delta(manifest: Manifest) -> str:
    found = "; ".join(units.text for units in protected_units(manifest))
    if not found:
        return "No statement."
    return (
        f"{found[0].upper()}{found[1:]}. It should be well below 1 for all that the task protects; "
        "how many devices are enrolled, and what they hold, the ledger does not know."
    )


def _accesses(task: AuditedTask) -> str:
    manifest, charged = task.manifest, len(task.releases)
    example = manifest.example_privacy
    steps = ""
    if example is not None and example.mode == "local" and manifest.training is not None:
        steps = f", of {manifest.training.local_steps} local steps each"
    return (
        f"{'' if task.lines else 'No statement covers them. '}"
        f"The contributions of devices to {charged} charged "
        f"cohort{'' if charged == 1 else 's'}{steps}. Not covered: cohorts that the ledger does "
        "not record, exploring the data, choosing "
        "hyperparameters, evaluation on private data, and other tasks, unless they are in this "
        "ledger."
    )


def _participation(task: AuditedTask) -> str:
    if not task.releases:
        return "No cohort is charged yet."
    old = Counter(
        name
        for row in task.releases
        if row.entry.attempt is None
        for name in row.entry.contributors
    )
    rows = [row.entry for row in task.releases if row.entry.attempt is not None]
    unlisted = sum(
        row.entry.attempt is None and row.entry.outcome == "charged" for row in task.releases
    )
    said = []
    if old:
        said.append(
            f"Seen in the sums of records of version 1: {len(old)} devices, none of them in more "
            f"than {max(old.values())}."
        )
    if unlisted:
        said.append(
            f"{unlisted} cohorts of version 1 were charged without a sum; how many devices they "
            "charged is not recorded."
        )
    if rows:
        places = sum(entry.masking_set_size for entry in rows)
        said.append(
            f"{places} charges of single devices in {len(rows)} "
            f"cohort{'' if len(rows) == 1 else 's'}, each device at most once in a cohort. A "
            "device has another name in each, so which charges are one device's only that device "
            "can tell."
        )
    return " ".join(said) or "No record lists a device."


def _scheduled(task: AuditedTask) -> str:
    """How often an example takes part, where that is not in each release."""
    period = period_of(task.manifest)
    if period == 1:
        return ""
    most, charged = task.manifest.budget.releases_max, len(task.releases)
    unit = protected(task.manifest)
    return (
        f"A device divides its {unit}s into {period} parts by their places alone and uses the "
        f"next part with each charge, by its own count: {a(unit)} is in at most "
        f"{participations(charged, period)} of the {charged} sums so far, and in at most "
        f"{participations(most, period)} of {most}. "
    )


def _accounting(task: AuditedTask) -> str:
    names = ", ".join(dict.fromkeys(statement.accountant for statement in task.lines))
    if not names:
        return "None."
    period = period_of(task.manifest)
    counted = (
        "all recorded charges"
        if period == 1
        else f"the recorded charges that {a(protected(task.manifest))} can be in (of the dearest, "
        f"one for each {period} begun; of a device, of all)"
    )
    return (
        f"{names}. Divergences of {counted} add up at each order; the conversion picks "
        "the best order. Rounded up throughout."
    )


def _implementation(manifest: Manifest) -> tuple[Answer, ...]:
    noise = manifest.noise
    if noise is not None:
        mechanism = (
            f"{_DISTRIBUTIONS[noise.mechanism]} noise on clipped integer vectors, in the ring"
        )
    elif manifest.example_privacy is not None:
        mechanism = "Skellam noise on sums of clipped integer gradients, in every local step"
    else:
        mechanism = "None"
    noisy = mechanism != "None"
    return (
        _known("Mechanism", mechanism + ".", NIST, OPENDP),
        _known(
            "Floating point",
            "The published code measures clips on integers and draws noise in integers: no float "
            "is part of the privacy proof, except that a gradient is taken to depend on its own "
            "sequence alone, which float arithmetic of a shared batch keeps only to the last bits."
            if noisy
            else "No statement.",
            NIST,
            OPENDP,
        ),
        _known(
            "Randomness",
            "In the published code: the operating system's generator; AES-256-CTR expands its keys."
            + (
                " Tables of 128 bits, tails cut below 2^-100; what that may cost is taken from "
                "delta."
                if noisy
                else ""
            ),
            NIST,
        ),
        _known(
            "Security of what is sent",
            f"Protocol {manifest.protocol}, {manifest.suite}: updates are masked with one-use "
            "keys, every message is signed, and the aggregator holds no key that opens one "
            "update, where devices run the published code.",
            NIST,
            OPENDP,
        ),
        _known(
            "Side channels",
            "Whoever watches the network sees times and sizes of messages. A process on the same "
            "core sees the sampler's table look-ups. Neither is part of epsilon; each row "
            "says what it assumes of times.",
            NIST,
            OPENDP,
        ),
        _known(
            "Hyperparameters",
            "All that the manifest fixes are under “Parameters”, with their meanings.",
            DPFY,
        ),
        _unknown(
            "Runs to choose the hyperparameters, and why these",
            "Counted only if they are tasks of this ledger. " + _ASK_OPERATOR,
            DPFY,
            OPENDP,
        ),
        _known(
            "Code to verify it",
            "This report is made by public code, whose version and digest stand at the end; every "
            "cost is computed again from the ledger alone. What devices ran is the next question.",
            DPFY,
            NIST,
        ),
        _unknown(
            "Software that the devices and the aggregator really ran",
            "The ledger does not know. Compare the digests of their installations with the one "
            "at the end.",
            NIST,
        ),
    )


def _data(task: AuditedTask) -> tuple[Answer, ...]:
    manifest = task.manifest
    partners = ", ".join(key.hex()[:16] for key in manifest.partner_keys)
    model = manifest.base_model
    return (
        _unknown("What the data are, and about whom", _ASK_PARTNERS, NIST, OPENDP),
        _unknown("How many records and people; records per person", _ASK_PARTNERS, NIST, DPFY),
        _unknown(
            "How the data were collected: consent, legal basis, retention", _ASK_PARTNERS, NIST
        ),
        _unknown(
            "Cleaning, filtering and exploration before training", _ASK_PARTNERS, DPFY, OPENDP
        ),
        _unknown(
            "Whether the data stay the same or grow",
            "A record that is added later has the same protection. " + _ASK_PARTNERS,
            OPENDP,
        ),
        _known(
            "Who may certify devices",
            f"The partners, whose keys begin {partners}. Whose they are, the ledger does not say.",
            NIST,
        ),
        _unknown(
            "Who can read the data where they lie",
            "They stay on the devices. Access there is the devices' matter. " + _ASK_PARTNERS,
            NIST,
        ),
        _unknown("Curator, intended use, sector and region", _ASK_OPERATOR, OPENDP),
        _unknown(
            "Who gets the model, and when it is published",
            "Every participant gets each version. About others: " + _ASK_OPERATOR,
            NIST,
            OPENDP,
        ),
        _known(
            "Base model",
            "No base model."
            if model is None
            else f"{model.name}, fingerprint {model.fingerprint.hex()}. What it was trained on "
            "is not covered.",
            DPFY,
        ),
        _unknown(
            "How good the model is",
            (
                "The task's sums tell it; the ledger holds their digests alone, and names the "
                "model by its digest. "
                if _evaluates(manifest)
                else "A ledger holds no loss: evaluation needs data. "
            )
            + _ASK_OPERATOR,
            NIST,
            OPENDP,
        ),
        _known(
            "Registry tier",
            "What a ledger knows of tier 3's questions about loss, accounting and implementation "
            "is above; what it does not know is marked. The curator, the intended use and the date "
            "of publication, which even tier 1 asks for, are not here.",
            OPENDP,
        ),
    )
