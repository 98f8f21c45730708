"""The demo's rounds: who is held, who is killed, who comes back, and what was released.

A device waits at ``masking`` (the masking set is fixed, nothing is uploaded) and at ``uploaded``
(its vector is in the sum, nothing is unmasked) until the conductor lets it go on or kills it. One
that was killed before its upload starts again at once, but waits at ``resumed`` until the round is
over without it; meanwhile it loads its model, since the cohort waits for the dead anyway.
"""

from __future__ import annotations

import json
import queue
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, TextIO

from secagg_cli.demo.board import Board
from secagg_cli.demo.devices import EXIT, HOLD_AT, DemoDevice, Report, device_failed
from secagg_cli.demo.kills import KillPlan
from secagg_cli.demo.service import Service
from secagg_cli.exit_codes import EXIT_INCOMPLETE
from secagg_cli.output import CommandError

if TYPE_CHECKING:
    from aggregator.views import ReleaseView, TaskView

SILENCE_MAX_S = 900.0  # a device's training may take long; nothing at all for this long is a fault
_POLL_S = 1.0
_ENDING_S = 2.0  # from a broken connection to the end of a process that was killed
_ATTEMPTS_WITH_KILLS = 2  # after that a round runs undisturbed, so that the demo ends


@dataclass(frozen=True)
class RoundRecord:
    """One release as the aggregator tells it, and what the conductor did to the devices."""

    number: int
    release: ReleaseView
    killed: tuple[int, ...]
    resumed: int | None
    seconds: float


class Conductor:
    """Runs all rounds (``run``), then waits for the devices (``end_devices``).

    Both raise CommandError if a device or the service fails.
    """

    def __init__(
        self,
        *,
        task: str,
        service: Service,
        devices: Sequence[DemoDevice],
        reports: queue.SimpleQueue[Report],
        plan: KillPlan,
        board: Board,
        on_round: Callable[[RoundRecord], None],
        say: Callable[[str], None],
        log: TextIO,
    ) -> None:
        self._task = task
        self._service = service
        self._operator = service.operator()
        self._devices = devices
        self._reports = reports
        self._plan = plan
        self._board = board
        self._on_round = on_round
        self._say = say
        self._log = log
        self._start = time.monotonic()

    def run(self, rounds: int) -> list[RoundRecord]:
        records = []
        for number in range(1, rounds + 1):
            record = _Round(self, number, last=number == rounds).run()
            records.append(record)
            self._board.round_done(number)
            self._on_round(record)
        return records

    def next_report(self) -> Report | None:
        """The next report of a living process; None when it is time to look around."""
        try:
            report = self._reports.get(timeout=_POLL_S)
        except queue.Empty:
            return None
        self._write(report)
        device = self._devices[report.device]
        if report.life != device.life or not device.running:
            return None
        if report.kind == EXIT:
            device.forget()
            if report.detail["code"] not in (0, EXIT_INCOMPLETE):
                raise device_failed(device, f"ended with code {report.detail['code']}")
        elif report.kind == "refused":
            raise device_failed(device, f"refused the task: {report.detail}")
        else:
            self._board.show(report.device, report.kind)
        return report

    def _write(self, report: Report) -> None:
        seconds = time.monotonic() - self._start
        detail = json.dumps(report.detail)
        self._log.write(
            f"{seconds:8.2f} device {report.device + 1} life {report.life} {report.kind} {detail}\n"
        )

    def releases(self) -> list[ReleaseView]:
        """The task's releases so far, oldest first."""
        return [entry for entry in self.task_view().releases if entry.outcome == "released"]

    def task_view(self) -> TaskView:
        try:
            return self._operator.task(self._task)
        except CommandError:
            self.check_service(_ENDING_S)  # the better reason, if the process is gone
            raise

    def check_service(self, within_s: float = 0.0) -> None:
        error = self._service.failed(within_s)
        if error is not None:
            raise error

    def end_devices(self) -> None:
        """The task is over; devices see it and end by themselves."""
        deadline = time.monotonic() + 60.0
        while any(device.running for device in self._devices) and time.monotonic() < deadline:
            report = self.next_report()
            if report is not None and report.kind in HOLD_AT:
                self._devices[report.device].go()
            self.check_service()
        for device in self._devices:
            device.kill()


class _Round:
    """One release, over as many cohorts as it takes."""

    def __init__(self, conductor: Conductor, number: int, *, last: bool) -> None:
        self._c = conductor
        self._last = last
        self._number = number
        self._start = time.monotonic()
        self._heard = self._start
        self._attempt = 1
        self._killed: set[int] = set()
        self._back: set[int] = set()  # killed, started again, and held at "resumed"
        self._resumed: int | None = None
        self._sessions: set[str] = set()

    def run(self) -> RoundRecord:
        self._start_all()
        look = True
        while True:
            if look and len(releases := self._c.releases()) >= self._number:
                killed = tuple(sorted(self._killed))
                self._let_back_in()
                seconds = time.monotonic() - self._start
                release = releases[self._number - 1]
                return RoundRecord(self._number, release, killed, self._resumed, seconds)
            report = self._c.next_report()
            look = report is not None and report.kind == "released"
            if report is not None:
                self._heard = time.monotonic()
                self._handle(report)
            self._c.check_service()
            if time.monotonic() - self._heard > SILENCE_MAX_S:
                raise CommandError(
                    "demo-silent",
                    f"No device has said anything for {SILENCE_MAX_S:.0f} s.",
                    remedy="See the logs in the demo's folder.",
                )

    def _handle(self, report: Report) -> None:
        device = self._c._devices[report.device]
        if report.kind == EXIT:
            raise self._left_early(device)
        if report.kind == "reported" and report.session is not None:
            self._sessions.add(report.session)
        elif report.kind == "resumed" and report.device in self._killed:
            self._back.add(report.device)
        elif report.kind == "masking" and report.device in self._victims(report):
            device.kill()
            self._killed.add(report.device)
            if not self._last:
                device.start(preload=True)
            self._c._board.show(report.device, "killed")
        elif report.kind == "uploaded" and report.device == self._next_resumer():
            device.kill()
            self._resumed = report.device
            device.start()
            self._c._board.show(report.device, "killed, resuming")
        elif report.kind in HOLD_AT:
            device.go()
        elif report.kind == "aborted" and report.session in self._sessions:
            self._begin_again(report)

    def _victims(self, report: Report) -> frozenset[int]:
        """Nobody for a report about an earlier cohort, which a revived device still finishes."""
        if self._attempt > _ATTEMPTS_WITH_KILLS or report.session not in self._sessions:
            return frozenset()
        return self._c._plan.victims(self._number)

    def _next_resumer(self) -> int | None:
        if self._resumed is not None or self._attempt > _ATTEMPTS_WITH_KILLS:
            return None
        return self._c._plan.resumer(self._number)

    def _begin_again(self, report: Report) -> None:
        """The cohort was aborted (a machine that is too busy can do that): form a new one."""
        self._c._say(
            f"round {self._number}: the cohort was aborted "
            f"({report.detail.get('reason', 'no reason given')}); forming another"
        )
        self._attempt += 1
        self._sessions.clear()  # the other devices' word of the same abort
        self._let_back_in()
        self._start_all()
        self._resumed = None

    def _let_back_in(self) -> None:
        """The round is over: who was left out of it goes on to the next."""
        for number in self._back:
            self._c._devices[number].go()
        self._back.clear()
        self._killed.clear()

    def _left_early(self, device: DemoDevice) -> CommandError:
        task = self._c.task_view()
        charged = [entry for entry in task.releases if entry.outcome != "released"]
        if task.state != "finished" or not charged:
            return device_failed(device, "left before the task was over")
        return CommandError(
            "budget-spent",
            f"Round {self._number} cannot be released: {len(charged)} cohort(s) ended after their "
            f"vectors were sent ({charged[-1].reason}), which is charged like a release.",
            remedy="Run the demo again; on a busy machine with fewer --clients.",
        )

    def _start_all(self) -> None:
        for device in self._c._devices:
            if not device.running:
                device.start()
