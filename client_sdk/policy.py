"""The device's veto: what it demands of a task before it trains, whatever the server asks.

The manifest's own promises are checked by the validator that task creation used
(``dp.contracts``), and its epsilon is computed anew, without any amplification. A refusal names
its reason and both values. ``docs/policy.md`` lists every number of a manifest with the claim that
it could weaken and the rule that it meets.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

from client_sdk.accounts.device_account import DeviceAccount
from client_sdk.accounts.period_limits import PeriodLimits
from client_sdk.accounts.usage import Usage
from client_sdk.conditions import Conditions
from client_sdk.errors import PolicyRefusal
from client_sdk.privacy_modes import ANY_MODE, PrivacyMode, privacy_modes, repeats
from client_sdk.settings_fields import check_fields
from dp.accounting.budget import ALL_UNITS, Unit, charges_of, cost_of
from dp.accounting.charges import GROUP_UNITS
from dp.accounting.figures import limit_shown, upper
from dp.contracts import check_manifest
from dp.tlog.witness import WitnessPolicy
from dp.transfer_sizes import download_size, upload_size
from secagg.errors import SecaggError
from secagg.graph.parameters import corrupt_floor
from secagg.limits import DIGEST_BYTES
from secagg.manifest import Manifest

SLOTS_WAITED_MAX = 2.0  # a slot leaves its whole length: late in one, at the end of the next
_DAY_S = 86_400.0


def _always() -> bool:
    return True


@dataclass(frozen=True)
class PrivacyPolicy:
    """Limits of one device; the defaults refuse a task without differential privacy.

    Attributes:
        min_cohort: fewest devices in a released sum. Also demanded of every cohort at run time.
        max_epsilon: most that one task may cost, unamplified, each unit that counts.
        max_delta: largest delta of any task.
        max_total_epsilon: most that all tasks together may cost each unit that counts, of the same
            data, by this device's own account. A task without noise, where ``require`` admits one,
            makes the true total infinite: the limit goes on for the other tasks, in a total of
            their own, and the app is told (``RunResult.totals``; ``no_finite_total`` of the event
            ``checked-in``).
        units: whose cost counts in every task with noise, whatever the task protects: ``"example"``
            (in a task that protects devices alone: what changing one example costs), ``"device"``
            (in one that protects examples alone: all that a device may have in a sum; few such
            tasks are admitted then), ``"person"`` or ``"document"`` (in a task that does not clip
            all rows of one together: what all rows of a device may cost. So ``units={"person"}``
            demands of every task what the app's examples name as theirs). The unit that a task
            protects always counts, a device or a person in the total of the tasks that protect
            them.
        require: admissible kinds of privacy (``"distributed"``, ``"local"``, or a set of them);
            None admits a task without noise.
        repeat_without_noise: the app's word that two sums over cohorts that overlap may show what
            a single device sent, where no noise is in the ring. It admits statistics and
            evaluations without such noise, and lifts the rule of one vector per model.
        min_corrupt: fewest devices of a cohort that the task must assume to work with the
            aggregator; None: a tenth of its largest cohort, at least one. 0 admits tasks whose
            masks fall to two such devices.
        partner_keys: Ed25519 keys whose devices may be in a cohort with this one; None: the key
            that certified this device.
        allowed_models: names of base models that may be trained; None: any.
        allowed_fingerprints: SHA-256 fingerprints (32 bytes) of the weights of base models that may
            be trained, whatever a task calls them; None: any.
        max_upload_bytes: largest masked vector.
        max_download_bytes: largest model file; also what a device keeps of models on its disk.
        max_memory_bytes: most resident memory that training may need, by the contributor's own
            ``memory_bytes(manifest)``; None: no limit. With one, a contributor that cannot say is
            refused.
        max_tokens: longest example that a task may ask to be kept, in tokens.
        max_training_s: longest that a contributor may take; None: no limit.
        min_step_s: shortest step of a cohort and shortest report slot. A shorter one calls
            devices dropped that are only far away, and charges them all the same.
        max_hold_s: longest that a task may hold this device: in one cohort, in one report slot, or
            in the transfer of one model.
        per_period: limits of bytes, training time and epsilon in any stretch of time; None: none.
        witnesses: verifier keys of ledger witnesses (C2SP, type 0x04) that this device trusts.
        min_witnesses: how many of them must have cosigned every checkpoint; None: all.
        may_train: called at check-in and about every second until this device masks: while a model
            comes, in training, and while a cohort is waited for. False ends the run
            (``not-now``). A function or :class:`client_sdk.Conditions`; called in the event loop's
            thread, so it returns at once.
    """

    min_cohort: int = 10
    max_epsilon: float = 8.0
    max_delta: float = 1e-5
    max_total_epsilon: float = 16.0
    units: Unit | frozenset[Unit] = frozenset(("example",))
    require: PrivacyMode | frozenset[PrivacyMode] | None = frozenset(("distributed", "local"))
    repeat_without_noise: bool = False
    min_corrupt: int | None = None
    partner_keys: frozenset[bytes] | None = None
    allowed_models: frozenset[str] | None = None
    allowed_fingerprints: frozenset[bytes] | None = None
    max_upload_bytes: int = 256 << 20
    max_download_bytes: int = 512 << 20
    max_memory_bytes: int | None = None
    max_tokens: int = 8_192
    max_training_s: float | None = _DAY_S
    min_step_s: float = 1.0
    max_hold_s: float = _DAY_S
    per_period: PeriodLimits | None = None
    witnesses: frozenset[str] = frozenset()
    min_witnesses: int | None = None
    may_train: Callable[[], bool] = field(default=_always)

    def __post_init__(self) -> None:
        admitted = ANY_MODE if self.require is None else self._as_set(self.require)
        if not admitted or not admitted <= ANY_MODE:
            raise ValueError(f"require is {self.require!r}, not a set of {sorted(ANY_MODE)}")
        object.__setattr__(self, "require", admitted)
        units = self._as_set(self.units)
        if not units <= set(ALL_UNITS):
            raise ValueError(f"units is {self.units!r}, not a set of {sorted(ALL_UNITS)}")
        object.__setattr__(self, "units", units)
        check_fields(self)
        if self.per_period is not None and not isinstance(self.per_period, PeriodLimits):
            raise ValueError(f"per_period is {self.per_period!r}, not PeriodLimits(...)")
        if not callable(self.may_train):
            raise ValueError(f"may_train is {self.may_train!r}, not a function or Conditions(...)")
        for print_ in self.allowed_fingerprints or ():
            if len(print_) != DIGEST_BYTES:
                raise ValueError(
                    f"allowed_fingerprints holds {len(print_)} bytes, not {DIGEST_BYTES}: "
                    "bytes.fromhex(...) takes hex"
                )
        if self.min_cohort < 2:
            raise ValueError(f"min_cohort is {self.min_cohort}; a sum needs 2 devices")
        self.witness_policy  # noqa: B018  refuses what no checkpoint could meet

    @property
    def witness_policy(self) -> WitnessPolicy | None:
        """Who must have cosigned a checkpoint; None if nobody is asked for.

        Raises:
            LedgerRefusal: ``verifier-key`` or ``witness-policy``.
        """
        if not self.witnesses and self.min_witnesses is None:
            return None
        return WitnessPolicy.of(sorted(self.witnesses), self.min_witnesses)

    @staticmethod
    def _as_set(named: Any) -> frozenset[Any]:
        several = isinstance(named, Iterable) and not isinstance(named, str)
        return frozenset(named) if several else frozenset((named,))

    def trusted_partners(self, own_partner: bytes) -> frozenset[bytes]:
        """The partner keys that count for this device."""
        return frozenset((own_partner,)) if self.partner_keys is None else self.partner_keys

    def admit(
        self,
        manifest: Manifest,
        *,
        own_partner: bytes,
        account: DeviceAccount,
        usage: Usage | None = None,
    ) -> None:
        """Return if this device may take part in the task's next round.

        ``usage``: of ``per_period``; needed where that has a limit.

        Raises:
            PolicyRefusal: ``manifest-unsound`` (what the validator of task creation refuses),
                ``cohort-too-small``, ``data-in-task``, ``privacy-mode``, ``repeats-without-noise``,
                ``epsilon-too-large``, ``delta-too-large``,
                ``own-releases``, ``own-budget``, ``own-total-budget``, ``partner-unknown``,
                ``corrupt-too-few``, ``model-cohort-too-small``, ``model-not-allowed``,
                ``upload-too-large``, ``download-too-large``, ``tokens-too-many``,
                ``step-too-short``, ``held-too-long``, ``epsilon-of-period``, ``bytes-of-period``,
                ``training-of-period`` or ``not-now``.
        """
        for check in self._checks(manifest, own_partner, account, usage):
            check()

    def refusals(
        self,
        manifest: Manifest,
        *,
        own_partner: bytes,
        account: DeviceAccount,
        usage: Usage | None = None,
    ) -> tuple[PolicyRefusal, ...]:
        """All that :meth:`admit` would refuse, of each of its checks the first; empty: nothing.

        A manifest that does not hold what it promises is refused for that alone.
        """
        found: list[PolicyRefusal] = []
        for check in self._checks(manifest, own_partner, account, usage):
            try:
                check()
            except PolicyRefusal as refusal:
                found.append(refusal)
                if refusal.reason == "manifest-unsound":
                    break
        return tuple(found)

    def _checks(
        self, manifest: Manifest, own_partner: bytes, account: DeviceAccount, usage: Usage | None
    ) -> Iterator[Callable[[], None]]:
        """What :meth:`admit` asks, in this order."""
        yield from self._terms(manifest, own_partner, account, usage)
        if (limits := self.per_period) is not None and usage is not None:
            yield lambda: limits.admit_work(manifest, usage)
        yield self.demand_now

    def demand_now(self) -> None:
        """Return if the app wants to train now.

        Raises:
            PolicyRefusal: ``not-now``; ``found``: the conditions that do not hold, where
                ``may_train`` is a :class:`client_sdk.conditions.Conditions`.
        """
        if not self.may_train():
            missed = self.may_train.missed if isinstance(self.may_train, Conditions) else ()
            raise PolicyRefusal(
                "not-now",
                "The app does not want to train now.",
                found=", ".join(missed) or None,
                remedy="Run again when may_train of this app's policy says yes.",
            )

    def admit_terms(
        self,
        manifest: Manifest,
        *,
        own_partner: bytes,
        account: DeviceAccount,
        usage: Usage | None = None,
    ) -> None:
        """As :meth:`admit` where nothing is fetched or trained any more.

        Raises:
            PolicyRefusal: as :meth:`admit`, but for ``not-now``, ``bytes-of-period`` and
                ``training-of-period``.
        """
        for check in self._terms(manifest, own_partner, account, usage):
            check()

    def _terms(
        self, manifest: Manifest, own_partner: bytes, account: DeviceAccount, usage: Usage | None
    ) -> Iterator[Callable[[], None]]:
        yield lambda: self._admit_structure(manifest, own_partner)
        yield lambda: account.demand_untaken(manifest)
        yield lambda: self._admit_privacy(manifest, account)
        yield lambda: self._admit_work(manifest)
        yield lambda: self._admit_corrupt(manifest)
        limits = self.per_period
        if limits is not None and usage is not None and privacy_modes(manifest) != {"none"}:
            units = self.counted(manifest)
            yield lambda: limits.admit_epsilon(manifest, units, account, usage)

    def _admit_structure(self, manifest: Manifest, own_partner: bytes) -> None:
        try:
            check_manifest(manifest)
        except SecaggError as error:
            raise PolicyRefusal(
                "manifest-unsound",
                f"The manifest does not hold what it promises: {error}",
                found=error.reason,
                remedy="Ask the operator: secagg task create refuses such a task.",
            ) from error
        if manifest.cohort.survivors_min < self.min_cohort:
            raise PolicyRefusal(
                "cohort-too-small",
                "A sum of so few devices could be released.",
                expected=f"at least {self.min_cohort}",
                found=manifest.cohort.survivors_min,
                remedy="Raise the task's survivors_min, or lower min_cohort in this app's policy.",
            )
        if manifest.cohort.versions_back and manifest.cohort.behind_each_model < self.min_cohort:
            raise PolicyRefusal(
                "model-cohort-too-small",
                "One of a buffer's models could have so few devices behind it.",
                expected=f"at least {self.min_cohort}",
                found=manifest.cohort.behind_each_model,
                remedy="Raise the task's model_min, or lower min_cohort in this app's policy.",
            )
        trusted = self.trusted_partners(own_partner)
        if own_partner not in manifest.partner_keys or not trusted & set(manifest.partner_keys):
            raise PolicyRefusal(
                "partner-unknown",
                "The task does not count this device's partner, or none that it trusts.",
                expected=sorted(key.hex() for key in trusted),
                found=[key.hex() for key in manifest.partner_keys],
                remedy="Ask the operator for a task that counts this device's partner, or add keys "
                "that the task counts and you trust to partner_keys in this app's policy.",
            )
        model = manifest.base_model
        if self.allowed_models is not None and (
            model is not None and model.name not in self.allowed_models
        ):
            raise PolicyRefusal(
                "model-not-allowed",
                "This base model is not on the policy's list.",
                expected=sorted(self.allowed_models),
                found=model.name,
                remedy="If you trust this model, add its name to allowed_models in this app's "
                "policy.",
            )
        if self.allowed_fingerprints is not None and (
            model is not None and model.fingerprint not in self.allowed_fingerprints
        ):
            raise PolicyRefusal(
                "model-not-allowed",
                "The weights of this base model are not on the policy's list.",
                expected=sorted(print_.hex() for print_ in self.allowed_fingerprints),
                found=model.fingerprint.hex(),
                remedy="If you trust these weights, add their fingerprint to allowed_fingerprints "
                "in this app's policy.",
            )

    def _admit_corrupt(self, manifest: Manifest) -> None:
        fewest = self.min_corrupt
        if fewest is None:
            fewest = corrupt_floor(manifest.cohort.size_max)
        if manifest.cohort.corrupt_max < fewest:
            raise PolicyRefusal(
                "corrupt-too-few",
                "The task assumes that fewer devices work with the aggregator than this device "
                "wants to be safe from.",
                expected=f"corrupt_max >= {fewest}",
                found=manifest.cohort.corrupt_max,
                remedy="Raise the task's corrupt_max (larger cohorts have room for it), or lower "
                "min_corrupt in this app's policy; 0 must be said there.",
            )

    def _admit_work(self, manifest: Manifest) -> None:
        """What the task takes of this device: bytes, memory and time."""
        for reason, message, named, size in (
            (
                "upload-too-large",
                "One masked vector is larger than the policy allows.",
                "max_upload_bytes",
                upload_size(manifest),
            ),
            (
                "download-too-large",
                "One model is larger than the policy allows.",
                "max_download_bytes",
                download_size(manifest),
            ),
            (
                "tokens-too-many",
                "The task keeps longer examples than the policy allows.",
                "max_tokens",
                0 if manifest.training is None else manifest.training.max_tokens,
            ),
        ):
            limit: int = getattr(self, named)
            if size > limit:
                raise PolicyRefusal(
                    reason,
                    message,
                    expected=f"at most {limit}",
                    found=size,
                    remedy=f"Ask for a smaller task, or raise {named} in this app's policy.",
                )
        deadlines, slot_s = manifest.deadlines, manifest.report_slot_s
        steps = (
            deadlines.share_s,
            deadlines.check_s,
            deadlines.masked_input_s,
            deadlines.confirm_s,
            deadlines.unmask_s,
        )
        shortest = min(*steps, *([slot_s] if slot_s else []))
        if shortest < self.min_step_s:
            raise PolicyRefusal(
                "step-too-short",
                "A step or slot of the task is too short to answer in.",
                expected=f"at least {self.min_step_s:g} s",
                found=shortest,
                remedy="Raise the task's deadlines, or lower min_step_s in this app's policy.",
            )
        longest = max(sum(steps), SLOTS_WAITED_MAX * slot_s)
        if longest > self.max_hold_s:
            raise PolicyRefusal(
                "held-too-long",
                "One cohort, or the wait for a report slot, could hold this device for too long.",
                expected=f"at most {self.max_hold_s:g} s",
                found=longest,
                remedy="Lower the task's deadlines, or raise max_hold_s in this app's policy.",
            )

    def _admit_privacy(self, manifest: Manifest, account: DeviceAccount) -> None:
        modes = privacy_modes(manifest)
        admitted = self._as_set(self.require or ANY_MODE)
        if not modes & admitted:
            raise PolicyRefusal(
                "privacy-mode",
                "The task's kind of privacy is not admitted.",
                expected=sorted(admitted),
                found=sorted(modes),
                remedy="Ask for a task with noise, or admit this kind with require in this app's "
                "policy.",
            )
        if repeats(manifest) and not self.repeat_without_noise:
            raise PolicyRefusal(
                "repeats-without-noise",
                "Two sums over cohorts that overlap would show what a single device sent.",
                expected="noise in the sum",
                found=f"{manifest.algorithm} without noise in the sum",
                remedy="Give the task device-level noise, or, if the app accepts that, "
                "set repeat_without_noise in its policy.",
            )
        if account.charges(manifest.task) >= manifest.budget.releases_max:
            raise PolicyRefusal(
                "own-releases",
                "This device was charged for all releases that the task may make.",
                expected=f"fewer than {manifest.budget.releases_max}",
                found=account.charges(manifest.task),
                remedy="Nothing is left to give to this task; take part in another one.",
            )
        if modes == {"none"}:
            return
        if manifest.budget.delta > self.max_delta:
            raise PolicyRefusal(
                "delta-too-large",
                "The task's delta is larger than the policy allows.",
                expected=self.max_delta,
                found=manifest.budget.delta,
                remedy="Lower the task's delta, or raise max_delta in this app's policy.",
            )
        self._admit_cost(manifest, account)

    def counted(self, manifest: Manifest) -> list[tuple[Unit, bool]]:
        """The units whose cost counts in a task with noise.

        And whether those tasks count too that make no statement about one, at what can be derived.
        """
        stated = {charge.unit for charge in charges_of(manifest) if charge.stated}
        units = [unit for unit in ALL_UNITS if unit in stated or unit in self.units]
        return [(unit, unit in self.units) for unit in units]

    def _admit_cost(self, manifest: Manifest, account: DeviceAccount) -> None:
        """Each unit that counts stays within the limits, in this task and in all of them."""
        stated = {charge.unit for charge in charges_of(manifest) if charge.stated}
        whole, task, every = {}, {}, {}
        for unit, derived in self.counted(manifest):
            after, total = account.after(manifest, unit)
            whole[unit] = cost_of(unit, manifest, manifest.budget.releases_max)
            task[unit] = after.epsilon
            every[unit] = total.bounded if derived else total.stated or 0.0
        for reason, message, limit, costs, remedy in (
            (
                "epsilon-too-large",
                "The whole task may cost one {} too much.",
                self.max_epsilon,
                whole,
                "Give the task more noise or fewer releases, or raise max_epsilon in this app's "
                "policy.",
            ),
            (
                "own-budget",
                "One more round would overdraw this task for one {}.",
                self.max_epsilon,
                task,
                "Leave this task, or raise max_epsilon in this app's policy.",
            ),
            (
                "own-total-budget",
                "One more round would overdraw what all tasks may cost one {}.",
                self.max_total_epsilon,
                every,
                "Leave the task (what was spent stays spent), or raise max_total_epsilon in "
                "this app's policy.",
            ),
        ):
            for unit, found in costs.items():
                if found <= limit:
                    continue
                if math.isinf(found):
                    remedy += " No finite figure holds for it: no other number admits it."
                if unit not in stated:
                    remedy += (
                        f" The task makes no statement about one {unit}: it counts since this "
                        "app's policy has it in units."
                    )
                    remedy += "".join(
                        f" Where rows name their {other}s, units of {other} alone may do."
                        for other in GROUP_UNITS
                        if other in stated
                    )
                if account.data is not None and account.data.spent_without_a_name:
                    remedy += (
                        " Other folders of this user, whose data has no name, count too: if their "
                        "data is other data, name this one's with data_id."
                    )
                raise PolicyRefusal(
                    reason,
                    message.format(unit),
                    expected=f"epsilon <= {limit_shown(limit)}, unamplified",
                    found=upper(found),
                    remedy=remedy,
                )
