"""One task: its open cohort, budget, charts, and the cohorts that have ended."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec
from markupsafe import Markup

from aggregator.cohorts.progress import STEPS
from aggregator.http.dashboard import attention, charts
from aggregator.http.dashboard.acts import offered
from aggregator.http.dashboard.forecast import Plans, ends_at, most
from aggregator.http.dashboard.records import address
from aggregator.http.dashboard.render import Page
from aggregator.overview import task_view
from aggregator.service import Service
from aggregator.store import drop_outs, reads, seen
from aggregator.tasks import Task
from aggregator.views import EndedCohort, ReleaseView, TaskView
from dp.accounting.figures import shown_up
from dp.contracts import algorithm_of
from secagg.manifest import Manifest

PAGE = Page(
    "task", ("head", "attention", "cohort", "budget", "charts", "history", "devices", "check")
)
CHARGES_CHARTED = 200
CHARGES_LISTED = 30
_EVALUATIONS = 8  # tasks that evaluate this one's models
_EVALUATED = 25  # newest releases of each
_UNITS = {"loss": "nats per token", "accuracy": "share", "examples": "examples"}
_DEVICES = (("in the sum", "sum"), ("dropped", "lost"), ("charged without a sum", "unused"))


@dataclass(frozen=True)
class Chart:
    """``keys``: (name, class) of the colours in it."""

    title: str
    svg: Markup
    note: str = ""
    keys: Sequence[tuple[str, str]] = ()


async def values(service: Service, plans: Plans, name: str) -> dict[str, Any]:
    """
    Raises:
        Refusal: ``not-found``.
    """
    core = service.core
    task = await service.tasks.shown(name)
    view = await task_view(core, task, service.driver.live, newest=CHARGES_CHARTED)
    async with core.database.read() as connection:
        lost = await drop_outs.of_task(connection, name)
        failed = await seen.failed_in_a_row(connection)
        evaluated = {
            other: await reads.releases_of(connection, other, newest=_EVALUATED)
            for other in await reads.started_from(connection, name, _EVALUATIONS)
            if _evaluates((await service.tasks.get(other)).manifest)
        }
    planned = plans.of(task)
    return {
        "now": core.clock(),
        "task": view,
        "attention": attention.of_task(view, failed.get(name, {})),
        "acts": offered(view),
        "ends_at": ends_at(view),
        "planned": planned,
        "charts": _charts(task, view, lost, most(planned), evaluated),
        "evaluations": [
            (other, releases[-1] if releases else None) for other, releases in evaluated.items()
        ],
        "history": _history(view),
        "older": view.releases[-CHARGES_LISTED].release
        if len(view.releases) > CHARGES_LISTED
        else None,
        "verifier": service.ledger.verifier,
        "address": address(service),
    }


def _evaluates(manifest: Manifest) -> bool:
    """Whether a task measures a model, and moves none."""
    algorithm = algorithm_of(manifest)
    return algorithm.has_adapter and not algorithm.moves_model


async def charges(service: Service, name: str, before: int | None) -> dict[str, Any]:
    """Charges with a smaller number than ``before``.

    Raises:
        Refusal: ``not-found``.
    """
    task = await service.tasks.shown(name)
    async with service.core.database.read() as connection:
        found = await reads.releases_of(connection, task.name, newest=CHARGES_LISTED, before=before)
    older = found[0].release if found and found[0].release > 1 else None
    return {"task": task.name, "history": found[::-1], "older": older}


async def manifest(service: Service, name: str) -> dict[str, Any]:
    """
    Raises:
        Refusal: ``not-found``.
    """
    task = await service.tasks.shown(name)
    found = msgspec.to_builtins(task.manifest, builtin_types=(bytes,))
    return {
        "task": task.name,
        "digest": task.digest.hex(),
        "text": json.dumps(_readable(found), indent=2, ensure_ascii=False),
    }


def _readable(value: Any) -> Any:
    """Bytes as hex."""
    if isinstance(value, bytes):
        return value.hex()
    if isinstance(value, dict):
        return {str(_readable(key)): _readable(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_readable(inner) for inner in value]
    return value


def _charts(
    task: Task,
    view: TaskView,
    lost: Mapping[str, int],
    planned: float | None,
    evaluated: Mapping[str, Sequence[ReleaseView]],
) -> list[Chart]:
    """Those that have something to show."""
    done = view.releases
    first = done[0].release if done else 1
    far = view.releases_max - first + 1 > CHARGES_CHARTED  # it would squeeze what is
    ahead = None if planned is None or view.state == "finished" or far else planned
    found = [
        Chart(
            "Epsilon spent",
            _safe(
                charts.steps(
                    "Epsilon spent",
                    [charge.epsilon for charge in done],
                    view.max_epsilon,
                    shown_up,
                    "epsilon",
                    first=first,
                    planned=None if ahead is None else (view.releases_max, ahead),
                )
            ),
            ""
            if ahead is None
            else "Dashed: to the most that it can be after the last charge, which is with the "
            "fewest survivors. What lies between is not computed.",
        ),
        Chart(
            "Devices of each charged cohort",
            _safe(
                charts.stacks(
                    "Devices of each charged cohort",
                    _DEVICES,
                    [_devices(charge) for charge in done],
                    "devices",
                    first=first,
                )
            ),
            keys=_DEVICES,
        ),
        Chart(
            "Devices lost, by step",
            _safe(
                charts.rows(
                    "Devices lost, by step",
                    [(step, lost.get(step, 0)) for step in STEPS],
                    "devices, in all cohorts that ended",
                )
            ),
        ),
        *_metrics(done, first),
        _evaluations(evaluated),
        Chart(
            "Noise meter",
            _safe(
                charts.spans(
                    "Noise meter",
                    [_noise(charge) for charge in done],
                    1.0,
                    "guaranteed",
                    "x guaranteed variance",
                    first=first,
                )
            ),
            "Between these multiples of the guaranteed variance, as far as the unmasked sum shows. "
            "An upper end below 1 means that noise is missing.",
        ),
        Chart(
            "Norm of the released sum",
            _safe(
                charts.steps(
                    "Norm of the released sum",
                    [charge.sum_norm for charge in done],
                    unit="L2 norm",
                    first=first,
                )
            ),
        ),
    ]
    return [chart for chart in found if chart.svg]


def _metrics(done: Sequence[ReleaseView], first: int) -> list[Chart]:
    """Loss and accuracy, where the task's own sums tell them."""
    made = []
    for name in ("loss", "accuracy"):
        title = f"{name.capitalize()} that devices sent"
        drawn = charts.steps(
            title, [charge.metrics.get(name) for charge in done], unit=_UNITS[name], first=first
        )
        made.append(Chart(title, _safe(drawn), "Mean of the devices in the sum, on their data."))
    return made


def _evaluations(evaluated: Mapping[str, Sequence[ReleaseView]]) -> Chart:
    title = "Loss of evaluations"
    found = [
        charge
        for releases in evaluated.values()
        for charge in releases
        if charge.outcome == "released"
    ]
    found.sort(key=lambda charge: charge.released_at)
    drawn = charts.steps(
        title, [charge.metrics.get("loss") for charge in found], unit=_UNITS["loss"]
    )
    return Chart(title, _safe(drawn), "Of the tasks that evaluate models of this one, by time.")


def _devices(charge: ReleaseView) -> tuple[int, int, int]:
    if charge.outcome == "released":
        return charge.survivors, charge.dropped, 0
    return 0, 0, charge.cohort_size


def _noise(charge: ReleaseView) -> tuple[float, float] | None:
    measured = charge.noise
    if measured is None or not measured.guaranteed:
        return None
    return max(0.0, measured.low / measured.guaranteed), measured.high / measured.guaranteed


def _history(task: TaskView) -> list[ReleaseView | EndedCohort]:
    """Cohorts that ended, newest first: the newest that were charged, and of the others."""
    cohorts: list[ReleaseView | EndedCohort] = [
        *task.releases[-CHARGES_LISTED:],
        *task.ended_free,
    ]
    return sorted(cohorts, key=_ended_at, reverse=True)


def _ended_at(cohort: ReleaseView | EndedCohort) -> float:
    at = cohort.released_at if isinstance(cohort, ReleaseView) else cohort.ended_at
    return at or 0.0


def _safe(svg: str) -> Markup:
    return Markup(svg)  # noqa: S704  charts escape their texts
