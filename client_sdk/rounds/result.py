"""What a participation came to."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from client_sdk.accounts.device_account import DeviceAccount
from client_sdk.errors import PolicyRefusal
from client_sdk.failures import TrainingFailure
from client_sdk.rounds.examples_told import ExamplesTold
from client_sdk.rounds.participant import Outcome
from client_sdk.training.dataset import Cut, LeftOut
from dp.accounting.budget import Total


@dataclass(frozen=True)
class RunResult:
    """What a participation came to.

    Attributes:
        releases: the releases that this device is in, verified in the ledger, in order.
        epsilon: what this task has cost so far by this device's own account, unamplified; over
            the life of the data, or of the state folder where it counts alone, whatever was
            released. The largest of the task's statements; infinite for a task without noise that
            was charged.
        refusals: why this device refused; the run ended there, or the session that was resumed.
        aborted: sessions that ended without a release.
        finished: whether the task is over.
        evidence: files about a ledger that did not bear out what the aggregator said, of sessions
            that ended in this run; to be shown to the operator.
        counted: state folders whose charges the account counts as of the same data. One alone: what
            others spend of the data is not known here; name it with ``data_id`` to change that.
        renewed: how often the app had the data's account begun anew after it was lost.
        totals: what all tasks of this account have cost one example and one device, with the tasks
            without noise, which leave no finite total; empty before the first charge.
        left_out: the examples that counted as zero in this run, by place: for this device's user.
        failed: why the contributor failed, for each session of this run that sent zeros (and noise,
            where it is in the ring) in place of its contribution (``failed`` of its outcome): for
            this device's user.
        cut: the examples that counted, but not whole, since they are longer than the task's
            ``max_tokens``: for this device's user.
        examples: places of the data set; None where nothing was contributed in this run, or the
            contributor does not say.
        owned: examples that name a person or document under ``unit``, though the task protects each
            example by itself; a policy with ``units={"person"}`` refuses such tasks.
        stopped: whether the app's stop ended the run.
        pending: whether a session is unfinished: a cohort counts on this device. The next run, or
            ``Client.resume``, finishes it.
        failures: each training of this run that gave nothing of the examples, with its reason and,
            where one is known, the row or tensor: also what refused the task, and what is not in
            ``failed`` since all examples counted as zero. After three in a row that are not of the
            examples alone the device stays away (``training-failing``) until
            :meth:`client_sdk.Client.try_again`.
    """

    releases: tuple[Outcome, ...] = ()
    epsilon: float = 0.0
    refusals: tuple[PolicyRefusal, ...] = ()
    aborted: int = 0
    finished: bool = False
    evidence: tuple[Path, ...] = ()
    counted: tuple[Path, ...] = ()
    renewed: int = 0
    totals: tuple[Total, ...] = ()
    left_out: tuple[LeftOut, ...] = ()
    failed: tuple[str, ...] = ()
    cut: tuple[Cut, ...] = ()
    examples: int | None = None
    owned: int = 0
    stopped: bool = False
    pending: bool = False
    failures: tuple[TrainingFailure, ...] = ()

    @property
    def used(self) -> int | None:
        """How many of ``examples`` never counted as zero in this run; None as there."""
        if self.examples is None:
            return None
        return self.examples - sum(one.index < self.examples for one in self.left_out)


@dataclass
class Tally:
    """What has come of a participation so far."""

    releases: list[Outcome] = field(default_factory=list)
    refusals: list[PolicyRefusal] = field(default_factory=list)
    aborted: int = 0
    finished: bool = False
    evidence: list[Path] = field(default_factory=list)
    told: ExamplesTold = field(default_factory=ExamplesTold)
    failed: list[str] = field(default_factory=list)
    stopped: bool = False
    pending: bool = False
    failures: list[TrainingFailure] = field(default_factory=list)

    def add(self, outcome: Outcome) -> None:
        if outcome.evidence is not None:
            self.evidence.append(outcome.evidence)
        if outcome.told is not None:
            self.told.add(outcome.told)
        if outcome.failure is not None:
            self.failures.append(outcome.failure)
        if outcome.failed is not None:
            self.failed.append(outcome.failed)
        if outcome.reason is None:
            self.releases.append(outcome)
        else:
            self.aborted += 1

    def result(self, account: DeviceAccount, task: str, folder: Path) -> RunResult:
        """``folder``: this device's."""
        data = account.data
        left_out, cut = self.told.left_out, self.told.cut
        return RunResult(
            tuple(self.releases),
            account.epsilon(task),
            tuple(self.refusals),
            self.aborted,
            self.finished,
            tuple(self.evidence),
            (folder,) if data is None else data.folders,
            0 if data is None else data.renewed,
            account.totals(),
            tuple(left_out[index] for index in sorted(left_out)),
            tuple(self.failed),
            tuple(cut[index] for index in sorted(cut.keys() - left_out.keys())),
            self.told.examples,
            self.told.owned,
            stopped=self.stopped,
            failures=tuple(self.failures),
            pending=self.pending,
        )
