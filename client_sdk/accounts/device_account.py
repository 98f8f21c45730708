"""The device's own account of privacy, over all tasks and for the life of its state folder.

Where the app names its data, what others spent of the same data counts too
(:mod:`client_sdk.accounts.data_account`).

A charge is durable before anything of step 3 exists, and is never given back: a device whose
vector left cannot know whether the sum was unmasked. Charges are composed as events, per unit of
protection, by ``dp.accounting.budget`` (the tasks' data may be the same), and every contribution
charges every unit; a charge counts at the fewest survivors.

The same write says which contribution a charge was for, so that it never serves a second cohort,
and, where no noise is in the ring, from which model it was computed: two sums over cohorts that
overlap differ by single devices, and nothing else hides what those sent.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Container, Iterable, Iterator
from contextlib import contextmanager, nullcontext
from typing import TYPE_CHECKING

import msgspec

from client_sdk.accounts.turns import Turns, turns_of
from client_sdk.errors import StateError
from client_sdk.state.journal import Journal
from dp.accounting.budget import Account, Entry, Total, Unit, charges_of
from dp.schedule import period_of, schedule_of
from secagg.errors import SecaggError
from secagg.manifest import Manifest

if TYPE_CHECKING:
    from client_sdk.accounts.data_account import DataAccount

_NAME = "account"


class Found(msgspec.Struct, frozen=True, kw_only=True):
    """A charge of this device that the ledger shows. ``models``: those of its cohort.

    ``by_identity``: its record is of version 1.
    """

    ctx: bytes
    manifest: Manifest
    models: tuple[bytes, ...]
    by_identity: bool = False


class _Record(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """``deltas``: by task. ``last_cohort``: the last one charged, for ``last_contribution``.

    ``given``: digest of each model that a vector without noise in the ring was computed from -> the
    cohort (ctx) that it was masked for; both hex.
    """

    version: int = 1
    account: Account
    deltas: dict[str, float] = {}
    last_cohort: str = ""
    last_contribution: str = ""
    given: dict[str, str] = {}


class DeviceAccount:
    """The account in a journal, loaded on creation. ``delta``: that of the total."""

    def __init__(self, journal: Journal, delta: float) -> None:
        self._journal = journal
        self._data: DataAccount | None = None
        encoded = journal.load_blob(_NAME)
        self.is_new = encoded is None
        if encoded is None:
            self._record = _Record(account=Account(delta=delta))
            return
        try:
            record = msgspec.json.decode(encoded, type=_Record)
            account = Account.from_json(record.account.to_json())
        except (msgspec.MsgspecError, ValueError, SecaggError) as error:
            raise StateError("state-damaged", f"The account does not parse: {error}.") from error
        self._record = msgspec.structs.replace(
            record, account=msgspec.structs.replace(account, delta=delta)
        )

    @property
    def data(self) -> DataAccount | None:
        """The account of the data, which others share; None: this folder counts alone."""
        return self._data

    def share(self, data: DataAccount) -> None:
        """Count what others spent of the same data from now on."""
        self._data = data

    def refresh(self) -> None:
        """See what others have spent meanwhile.

        Raises:
            StateError: ``data-account-missing``.
        """
        if self._data is not None:
            self._data.refresh()

    def demand_untaken(self, manifest: Manifest) -> None:
        """Return if no other identity serves this task with the same data.

        Raises:
            PolicyRefusal: ``data-in-task``.
        """
        if self._data is not None:
            self._data.demand_untaken(manifest)

    def own(self) -> tuple[list[tuple[Entry, float]], dict[str, str]]:
        """What this folder alone has: charges with their tasks' deltas, and what was given."""
        return _with_deltas(self._record), self._record.given

    def tasks(self) -> tuple[str, ...]:
        """Tasks that were charged, each once."""
        return tuple(dict.fromkeys(entry.task for entry in self._whole().entries))

    def charges(self, task: str) -> int:
        """Cohorts that were charged to a task so far."""
        return sum(entry.task == task for entry in self._whole().entries)

    def charged(self, schedule: str, *, but: bytes = b"") -> int:
        """Cohorts that were charged to a schedule so far, by all folders over the data.

        Args:
            schedule: as :class:`dp.accounting.budget.Charge` has it.
            but: a cohort (ctx) that is not counted.
        """
        whole = self._whole()
        counted = tuple(entry for entry in whole.entries if entry.cohort != but.hex())
        return msgspec.structs.replace(whole, entries=counted).charged(schedule)

    def turns(self, task: str) -> tuple[Turns, ...]:
        """How often an example has served in a task; empty where it has no schedule."""
        return turns_of(entry for entry in self._whole().entries if entry.task == task)

    def cohorts(self) -> tuple[str, ...]:
        """Contexts (hex) of all cohorts that this folder charged, in the order of their charges."""
        return tuple(entry.cohort for entry in self._record.account.entries)

    def counted_cohorts(self) -> tuple[str, ...]:
        """As :meth:`cohorts`, with those that others charged for the same data."""
        return tuple(entry.cohort for entry in self._whole().entries)

    def has_charged(self, ctx: bytes) -> bool:
        """Whether a cohort was charged, by this folder or by one over the same data."""
        return self._whole().entry(ctx.hex()) is not None

    def delta(self, task: str) -> float:
        """The delta of :meth:`epsilon`: the task's own."""
        return self._of_task(task).delta

    def epsilon(self, task: str) -> float:
        """Spent in one task, unamplified, at its own delta: the largest of its statements.

        Infinite if it makes none and was charged.
        """
        account = self._of_task(task)
        totals = map(account.total, account.units)
        stated = [found.stated for found in totals if found.stated is not None]
        return max(stated, default=math.inf if account.entries else 0.0)

    def spent(self, task: str, unit: Unit) -> float:
        """Spent in one task for one unit, unamplified, at the task's own delta; 0 before any."""
        return self._of_task(task).epsilon(unit)

    def total(self, unit: Unit) -> Total:
        """Spent over all tasks for one unit, unamplified, at the account's delta."""
        return self._whole().total(unit)

    def totals(self) -> tuple[Total, ...]:
        """:meth:`total` of each unit; empty before the first charge."""
        account = self._whole()
        return tuple(map(account.total, account.units)) if account.entries else ()

    def after(self, manifest: Manifest, unit: Unit) -> tuple[Total, Total]:
        """What (this task, all tasks) will have cost a unit if one contribution more is charged."""
        task = msgspec.structs.replace(self._of_task(manifest.task), delta=manifest.budget.delta)
        more = charges_of(manifest, part=self._next_part(manifest))
        return (
            task.total(unit, more, manifest.task),
            self._whole().total(unit, more, manifest.task),
        )

    def after_of(self, manifest: Manifest, unit: Unit, cohorts: Container[str]) -> Total:
        """What the charges of some cohorts (hex) and one contribution more will have cost a unit.

        Of all tasks, at the account's delta.
        """
        counted = tuple(entry for entry in self._whole().entries if entry.cohort in cohorts)
        some = msgspec.structs.replace(self._whole(), entries=counted)
        next_ = charges_of(manifest, part=self._next_part(manifest))
        return some.total(unit, next_, manifest.task)

    def served(self, contribution: str) -> bytes | None:
        """The cohort (ctx) that a contribution was last charged for; None if it never was."""
        if self._record.last_contribution != contribution:
            return None
        return bytes.fromhex(self._record.last_cohort)

    def given(self, model_digest: bytes) -> bytes | None:
        """The cohort (ctx) that got a vector computed from this model, without noise in the ring.

        None if none did. Under whatever task and manifest: from the same model the same data may
        give the same values.
        """
        model = model_digest.hex()
        ctx = self._record.given.get(model)
        if ctx is None and self._data is not None:
            ctx = self._data.given(model)
        return None if ctx is None else bytes.fromhex(ctx)

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Nobody else spends of the same data meanwhile; what they spent before is seen.

        What is admitted under it is still so at the debit. Inside of itself it does nothing.

        Raises:
            StateError: ``data-account-missing``, ``state-in-use``.
        """
        with nullcontext() if self._data is None else self._data.locked():
            yield

    def debit(
        self,
        manifest: Manifest,
        ctx: bytes,
        contribution: str,
        model_digest: bytes = b"",
        part: int | None = None,
    ) -> None:
        """Charge one contribution to cohort ``ctx``; on disk when it returns.

        The same cohort is charged once, however often a restarted device asks. The data's account
        comes first: after a kill between the two it has the charge.

        Args:
            contribution: its name; :meth:`served` tells the cohort from now on.
            model_digest: of the model that it was computed from; :meth:`given` tells the cohort
                from now on, unless there is noise in the ring.
            part: of the task's schedule; None: it has none.

        Raises:
            BudgetError: the task has charged all the releases that it may make.
            PolicyRefusal: ``data-in-task``.
            StateError: as :meth:`locked`.
        """
        with self.locked():
            self._debit(manifest, ctx, contribution, model_digest, part)

    def _debit(
        self,
        manifest: Manifest,
        ctx: bytes,
        contribution: str,
        model_digest: bytes,
        part: int | None,
    ) -> None:
        before = self._record
        record = msgspec.structs.replace(
            before,
            account=before.account.spend(ctx.hex(), manifest, part=part),
            deltas={**before.deltas, manifest.task: manifest.budget.delta},
            last_cohort=ctx.hex(),  # also of a charge that the ledger was the first to show
            last_contribution=contribution,
        )
        if manifest.noise is None and model_digest:
            given = {**record.given, model_digest.hex(): ctx.hex()}
            record = msgspec.structs.replace(record, given=given)
        self._share(record)
        if record != before:
            self._journal.save_blob(_NAME, msgspec.json.encode(record))
            self._record = record

    def restore(self, found: Iterable[Found]) -> int:
        """Add charges that the account lacks; on disk when it returns, even if there are none.

        Returns how many were added. The account is no longer new. What it has beside them, such as
        charges that the service gave back, takes no room from them.

        Raises:
            BudgetError: they are more than a task may make releases; nothing was added.
            StateError: as :meth:`debit`.
        """
        with self.locked():
            return self._restore(found)

    def _restore(self, found: Iterable[Found]) -> int:
        """Parts of a schedule that no record of the data has are those of a count that goes on."""
        record = self._record
        shown = Account(delta=record.account.delta)
        unknown: Counter[str] = Counter()
        for charge in found:
            task, ctx = charge.manifest.task, charge.ctx.hex()
            schedule = schedule_of(charge.manifest)
            part = self._next_part(charge.manifest, unknown[schedule])
            shown = shown.spend(ctx, charge.manifest, part=part)
            entry = shown.entries[-1]
            known = None if self._data is None or part is None else self._data.entry(ctx)
            if known is None and record.account.entry(ctx) is None:
                unknown[schedule] += 1
            record = msgspec.structs.replace(
                record,
                account=record.account.including(known or entry),
                deltas={task: charge.manifest.budget.delta, **record.deltas},
            )
            if charge.manifest.noise is None:  # one of them was this device's
                models = {model.hex(): charge.ctx.hex() for model in charge.models}
                record = msgspec.structs.replace(record, given={**models, **record.given})
        added = len(record.account.entries) - len(self._record.account.entries)
        self._share(record, restored=True)
        if record != self._record or self.is_new:
            self._journal.save_blob(_NAME, msgspec.json.encode(record))
        self._record, self.is_new = record, False
        return added

    def _next_part(self, manifest: Manifest, more: int = 0) -> int | None:
        """The part that follows the charges so far, and ``more``; None: there is no schedule."""
        period = period_of(manifest)
        return None if period == 1 else (self.charged(schedule_of(manifest)) + more) % period

    def _share(self, record: _Record, *, restored: bool = False) -> None:
        """Write a folder's charges into the data's account, before its own."""
        if self._data is not None:
            write = self._data.register if restored else self._data.add
            write(_with_deltas(record), record.given)

    def _whole(self) -> Account:
        account = self._record.account
        return account if self._data is None else self._data.whole(account)

    def _of_task(self, task: str) -> Account:
        account = self._whole()
        deltas = {} if self._data is None else self._data.deltas()
        return Account(
            delta={**deltas, **self._record.deltas}.get(task, account.delta),
            entries=tuple(entry for entry in account.entries if entry.task == task),
        )


def whole_account(journal: Journal, delta: float) -> DeviceAccount:
    """The account, if the checkpoints that were remembered before its first charge are there too.

    Raises:
        StateError: ``state-missing``.
    """
    account = DeviceAccount(journal, delta)
    if account.cohorts() and not journal.has_checkpoints():
        raise StateError(
            "state-missing",
            "The state folder has charges, but no checkpoint of any ledger: files were deleted.",
            remedy="Restore the folder from a backup, or begin a new one: the account is found "
            "again in the ledger.",
        )
    return account


def _with_deltas(record: _Record) -> list[tuple[Entry, float]]:
    deltas = record.deltas
    return [(e, deltas.get(e.task, record.account.delta)) for e in record.account.entries]
