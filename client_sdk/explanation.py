"""What taking part in a task means, in plain words: from its manifest and this device's account."""

from __future__ import annotations

import math
from dataclasses import dataclass

from client_sdk.accounts.device_account import DeviceAccount
from client_sdk.accounts.period_limits import span
from client_sdk.errors import PolicyRefusal
from client_sdk.policy import PrivacyPolicy
from client_sdk.privacy_modes import privacy_modes
from dp.accounting.budget import charges_of, cost_of
from dp.accounting.figures import delta_shown, limit_shown, shown_up
from dp.contracts.algorithms.registry import algorithm_of
from dp.report.words import exposure, unprotected
from dp.schedule import participations, period_of
from dp.transfer_sizes import messages_size, needs_model, upload_size
from secagg.http_api import Offer
from secagg.manifest import Manifest

_NAME_MAX = 64  # characters of a name that somebody else chose


@dataclass(frozen=True)
class UnitCost:
    """What a task costs one unit: an example, a person, a document, or this device.

    Epsilon, unamplified, not rounded; ``math.inf`` where no noise protects the unit.

    Attributes:
        unit: ``example``, ``device``, ``person`` or ``document``.
        stated: whether the task itself makes the statement; else it follows from other noise.
        spent, after, whole: of this task: so far, after one charge more, and if it makes all its
            releases; at the task's delta.
        spent_in_all, after_in_all: of all tasks over the same data, at the policy's delta.
    """

    unit: str
    stated: bool
    spent: float
    after: float
    whole: float
    spent_in_all: float
    after_in_all: float


@dataclass(frozen=True)
class Explanation:
    """What taking part in a task means for this device now; :meth:`text` says it in words.

    Attributes:
        task, manifest_digest: name, and digest of the signed manifest, hex.
        state: ``open``, ``paused`` or ``finished``.
        purpose: ``train`` (a model learns), ``evaluate`` (one is measured) or ``statistic``.
        base_model, fingerprint: its name as the operator chose it, and SHA-256 of its weights, hex;
            None without one.
        privacy: ``distributed``, ``local``, both, or ``none``.
        protects: units that the task makes a statement about.
        survivors_min, size_max, corrupt_max: fewest devices in a released sum; most in a cohort;
            devices that may work with the server without opening another's update.
        costs: of each unit that counts; empty without noise.
        delta: of the task.
        max_epsilon, max_total_epsilon: limits of this app's policy.
        charges, releases, releases_max: cohorts that this device was charged for in the task;
            sums that it has released; most that it may.
        period, sums_max: of so many charges an example, or unit, is in one; sums that it can be in
            at most, over all releases.
        counts: what the account counts: ``folder``, ``user`` or ``data``.
        upload_bytes, download_bytes: of one masked vector, and of the present model (0: none is
            needed); each round.
        messages_up_bytes, messages_down_bytes: most of the protocol's messages beside them, each
            round, as :func:`dp.transfer_sizes.messages_size`.
        memory_bytes: of the training process, by the contributor's word; None: nobody said.
        hold_s: seconds that one cohort may hold this device at most.
        training_s: most that the contributor may take; None: no limit.
        seen_by: (who, what) of everybody who learns something.
        unprotected: what nobody should take for protected, a sentence each.
        refusals: what this app's policy would refuse, and why; empty: it would take part.
    """

    task: str
    manifest_digest: str
    state: str
    purpose: str
    base_model: str | None
    fingerprint: str | None
    privacy: tuple[str, ...]
    protects: tuple[str, ...]
    survivors_min: int
    size_max: int
    corrupt_max: int
    costs: tuple[UnitCost, ...]
    delta: float
    max_epsilon: float
    max_total_epsilon: float
    charges: int
    releases: int
    releases_max: int
    period: int
    sums_max: int
    counts: str
    upload_bytes: int
    download_bytes: int
    messages_up_bytes: int
    messages_down_bytes: int
    memory_bytes: int | None
    hold_s: float
    training_s: float | None
    seen_by: tuple[tuple[str, str], ...]
    unprotected: tuple[str, ...]
    refusals: tuple[PolicyRefusal, ...]

    def text(self) -> str:
        """Short plain sentences, a line each; names that the operator chose are in quotes."""
        return "\n".join(
            [
                *self._refused(),
                *self._what(),
                *self._protection(),
                *self._cost(),
                *self._effort(),
                "Who learns what:",
                *(f"- {who}: {what}." for who, what in self.seen_by),
                "The ledger is public and keeps what it has for ever: digests that stand for this "
                "device, and never its data.",
                "If this device drops out before it masks, nothing is charged. After that the "
                "charge stays, whatever becomes of the cohort.",
                "What this does not protect:",
                *(f"- {said}" for said in self.unprotected),
            ]
        )

    def _refused(self) -> list[str]:
        if not self.refusals:
            return []
        return [
            "This app's policy refuses the task now:",
            *(f"- {refusal}" for refusal in self.refusals),
        ]

    def _what(self) -> list[str]:
        name = shown_name(self.task)
        model = "" if self.base_model is None else f" {shown_name(self.base_model)}"
        doing = {
            "train": f"trains an adapter of the model{model} on examples of this device",
            "evaluate": f"measures the model{model} on examples of this device",
            "statistic": "sums numbers that this app computes from data of this device",
        }[self.purpose]
        said = [
            f"Task {name} {doing}. The data stay here; an update leaves, masked.",
            f"The update is added to those of at least {self.survivors_min - 1} others before "
            "anybody can read it.",
            "The server opens the sum with the help of the devices in it, and only the sum, as "
            f"long as {_helpers(self.corrupt_max)} with it to open this device's own update.",
        ]
        if self.state != "open":
            said.append(f"The task is {self.state} now.")
        return said

    def _protection(self) -> list[str]:
        if self.privacy == ("none",):
            return [
                "No noise is added. The sum is exact: whoever knows what the others sent knows "
                "what this device sent, and several sums may show it too.",
            ]
        where = {
            "distributed": "Each device adds a part of the noise to its masked update.",
            "local": "This device adds noise of its own in every step of training.",
        }
        said = [where[mode] for mode in self.privacy]
        hidden = " and ".join(
            "what this device sent" if unit == "device" else f"whether {_the(unit)} is in its data"
            for unit in self.protects
        )
        said.append(f"The noise hides {hidden}, as far as epsilon says; not that it takes part.")
        if "device" not in self.protects:
            said.append(
                "It does not hide this device as a whole: what all its data have in common may "
                "show."
            )
        return said

    def _cost(self) -> list[str]:
        said = []
        for cost in self.costs:
            limit, total = limit_shown(self.max_epsilon), limit_shown(self.max_total_epsilon)
            said.append(
                f"For {_the(cost.unit)}, epsilon {_short(cost.spent)} of {limit} is spent in this "
                f"task; one more charge makes it {_short(cost.after)}, and all of the task's "
                f"releases {_short(cost.whole)}, at delta {delta_shown(self.delta)}."
            )
            said.append(
                f"In all tasks together {_short(cost.spent_in_all)} of {total} is spent; one more "
                f"charge makes it {_short(cost.after_in_all)}."
                + ("" if cost.stated else " The task itself says nothing about this unit.")
            )
        if self.costs:
            said.append(
                "A smaller epsilon is a stronger protection. What is spent never comes back."
            )
        counted = {
            "folder": "This state folder's account counts; what others spend of the same data is "
            "not known here.",
            "user": "The account counts all devices of this user whose data has no name.",
            "data": "The account counts all devices of this user that name the same data.",
        }
        said.append(counted[self.counts])
        said.append(
            f"This device was charged {_times(self.charges)} in this task. The task has released "
            f"{self.releases} sums and may release {self.releases_max}."
        )
        if self.period > 1:
            said.append(
                f"Examples serve in turn: of {self.period} charges each is in one, so in at most "
                f"{self.sums_max} of all sums."
            )
        return said

    def _effort(self) -> list[str]:
        said = [
            f"Each round sends {_size(self.upload_bytes)}, and messages of at most "
            f"{_size(self.messages_up_bytes)}; it fetches messages of at most "
            f"{_size(self.messages_down_bytes)}."
        ]
        if self.download_bytes:
            said.append(
                f"Each round fetches a model of {_size(self.download_bytes)}, if it is new."
            )
        else:
            said.append("No model is fetched.")
        if self.base_model is not None:
            said.append("The base model is the app's own copy; this task does not fetch it.")
        if self.memory_bytes is not None:
            said.append(f"Training takes about {_size(self.memory_bytes)} of memory.")
        elif self.purpose != "statistic":
            said.append("How much memory it takes is not known here.")
        limit = "" if self.training_s is None else f", and training {span(self.training_s)} at most"
        said.append(f"A cohort holds this device for {span(self.hold_s)} at most{limit}.")
        return said


def explanation(
    manifest: Manifest,
    digest: bytes,
    offer: Offer,
    *,
    account: DeviceAccount,
    policy: PrivacyPolicy,
    memory_bytes: int | None,
    refusals: tuple[PolicyRefusal, ...],
) -> Explanation:
    """Of a manifest that is verified and sound.

    Args:
        digest: of the manifest, 32 bytes.
        memory_bytes: the contributor's word; None: nobody said.
        refusals: the policy's, and the contributor's.
    """
    messages_up, messages_down = messages_size(manifest)
    modes = tuple(sorted(privacy_modes(manifest)))
    stated = [charge.unit for charge in charges_of(manifest) if charge.stated]
    algorithm, period = algorithm_of(manifest), period_of(manifest)
    model, deadlines = manifest.base_model, manifest.deadlines
    purpose = "statistic"
    if algorithm.has_adapter:
        purpose = "train" if algorithm.moves_model else "evaluate"
    data = account.data
    steps = (
        deadlines.share_s,
        deadlines.check_s,
        deadlines.masked_input_s,
        deadlines.confirm_s,
        deadlines.unmask_s,
    )
    return Explanation(
        task=manifest.task,
        manifest_digest=digest.hex(),
        state=offer.state,
        purpose=purpose,
        base_model=None if model is None else model.name,
        fingerprint=None if model is None else model.fingerprint.hex(),
        privacy=modes,
        protects=tuple(dict.fromkeys(stated)),
        survivors_min=manifest.cohort.survivors_min,
        size_max=manifest.cohort.size_max,
        corrupt_max=manifest.cohort.corrupt_max,
        costs=() if modes == ("none",) else _costs(manifest, account, policy),
        delta=manifest.budget.delta,
        max_epsilon=policy.max_epsilon,
        max_total_epsilon=policy.max_total_epsilon,
        charges=account.charges(manifest.task),
        releases=offer.releases,
        releases_max=manifest.budget.releases_max,
        period=period,
        sums_max=participations(manifest.budget.releases_max, period),
        counts="folder" if data is None else "data" if data.named else "user",
        upload_bytes=upload_size(manifest),
        download_bytes=offer.model.size_bytes if needs_model(manifest) else 0,
        messages_up_bytes=messages_up,
        messages_down_bytes=messages_down,
        memory_bytes=memory_bytes,
        hold_s=sum(steps),
        training_s=policy.max_training_s,
        seen_by=tuple((each.who, each.what) for each in exposure(manifest)),
        unprotected=unprotected(manifest),
        refusals=refusals,
    )


def _costs(
    manifest: Manifest, account: DeviceAccount, policy: PrivacyPolicy
) -> tuple[UnitCost, ...]:
    stated = {charge.unit for charge in charges_of(manifest) if charge.stated}
    found = []
    for unit, derived in policy.counted(manifest):
        task, every = account.after(manifest, unit)
        before = account.total(unit)
        found.append(
            UnitCost(
                unit=unit,
                stated=unit in stated,
                spent=account.spent(manifest.task, unit),
                after=task.epsilon,
                whole=cost_of(unit, manifest, manifest.budget.releases_max),
                spent_in_all=before.bounded if derived else before.stated or 0.0,
                after_in_all=every.bounded if derived else every.stated or 0.0,
            )
        )
    return tuple(found)


def shown_name(name: str) -> str:
    """A name that somebody else chose, in quotes: nothing in it moves a cursor or ends a line."""
    return repr(name if len(name) <= _NAME_MAX else name[:_NAME_MAX] + "...")


def _helpers(count: int) -> str:
    if count == 0:
        return "no other device works"
    return f"at most {count} other device{' works' if count == 1 else 's work'}"


def _the(unit: str) -> str:
    return "this device" if unit == "device" else f"one {unit}"


def _short(epsilon: float) -> str:
    return shown_up(epsilon, 2)


def _times(count: int) -> str:
    return "once" if count == 1 else f"{count} times"


def _size(count: int) -> str:
    """Bytes as a person says them, rounded up."""
    for unit, size in (("GB", 10**9), ("MB", 10**6), ("kB", 10**3)):
        if count >= size:
            return f"{math.ceil(10 * count / size) / 10:g} {unit}"
    return f"{count} bytes"
