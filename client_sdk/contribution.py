"""What an app gives to a round: the contributor, and its job.

A contributor is any object with ``contribute(job)``; ``LoraTrainer`` is one, an app that sums
statistics with numpy alone writes its own in five lines. It runs in a thread of its own, one call
at a time. What its values become is ``client_sdk.payload``.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import msgspec
import numpy as np
from numpy.typing import NDArray

from client_sdk.errors import ContributionError, PolicyRefusal, TaskRefusal
from client_sdk.payload import check_values, zero_contribution
from dp.example_sum import ExampleSum
from dp.schedule import period_of, places_of
from secagg.manifest import Manifest, encode_manifest, manifest_digest

__all__ = [
    "Contributor",
    "ExampleSum",
    "TrainingJob",
    "check_contributor",
    "check_memory",
    "check_values",
    "memory_needed",
    "zero_contribution",
]


def _unheard(done: int, total: int) -> None:
    """Where nobody asks how far the work is."""


@dataclass(frozen=True)
class TrainingJob:
    """One round's work.

    Attributes:
        manifest: the signed task manifest, already admitted by the device's policy.
        version: version number of the global model.
        vector: float32, read-only: the global adapter's change from its initialisation (empty
            for tasks without a model).
        releases: releases of the task so far, i.e. the step number of the global optimiser.
        correction: float64, with SCAFFOLD c - c_k: to be added to the gradient of every local step,
            after clip and noise. None elsewhere.
        clip: of this version, where the clip adapts; an ``ExampleSum`` needs it. None: it is fixed.
        deadline_s: seconds from now after which the result is ignored; None without a limit.
        stop: set when the result is no longer wanted: it is late, or the app stops or pauses the
            run, or a condition of its policy fails. Long work calls :meth:`demand_wanted` now and
            then.
        progress: to be called with how much is done, and of how much, in units of one's own; cheap,
            as often as one likes. The app hears of it as events ``progress``, nobody else does.
        part: of the examples, the one that this contribution is made of, from 0
            (:meth:`places`); None: the task has no schedule, all examples serve.
        known: compares a list of examples with the one before (:meth:`check_list`).
        known_units: of each unit the first row, and the length of the list -> the places that they
            had before, or those of their first rows, and how many places there are
            (:meth:`groups`).
    """

    manifest: Manifest
    version: int
    vector: np.ndarray
    releases: int
    deadline_s: float | None = None
    correction: np.ndarray | None = None
    clip: float | None = None
    stop: threading.Event = field(default_factory=threading.Event)
    part: int | None = None
    known: Callable[[Sequence[bytes]], None] | None = None
    known_units: Callable[[Mapping[str, int], int], tuple[list[int], int]] | None = None
    progress: Callable[[int, int], None] = _unheard

    def demand_wanted(self) -> None:
        """Return if the result is still wanted.

        Raises:
            ContributionError: ``training-stopped``: let it leave ``contribute``.
        """
        if self.stop.is_set():
            raise ContributionError("training-stopped", "The result is no longer wanted.")

    def groups(self, units: Sequence[str | None]) -> list[tuple[int, ...]]:
        """Rows that are one unit of protection: of each unit its rows, at the unit's place.

        Each row by itself where the task protects examples. Where it protects persons or documents,
        the first ``unit_rows_max`` rows of each: which ones follows from the unit's own rows alone,
        and its place from its name, or from where the first of them stands: so a unit that is taken
        out moves no other one, and lets none in. A place that is empty belongs to no unit's rows.

        Args:
            units: of each row of the whole list, the unit that it names; None: it is in no group.
        """
        privacy = self.manifest.example_privacy
        if privacy is None or privacy.unit_rows_max is msgspec.UNSET:
            return [(row,) for row in range(len(units))]
        rows: dict[str, list[int]] = {}
        for row, unit in enumerate(units):
            if unit is not None:
                rows.setdefault(unit, []).append(row)
        first = {unit: own[0] for unit, own in rows.items()}
        if self.known_units is None:
            places, count = list(first.values()), len(units)
        else:
            places, count = self.known_units(first, len(units))
        found: list[tuple[int, ...]] = [()] * count
        for place, own in zip(places, rows.values(), strict=True):
            found[place] = tuple(own[: privacy.unit_rows_max])
        return found

    def places(self, count: int) -> NDArray[np.int64]:
        """Places of the examples that this contribution may be made of, rising.

        All, or those of :attr:`part`: at most ``examples_max`` with distributed noise.

        Args:
            count: places of the device's whole list, with those whose example is taken out; where
                the task protects persons or documents, of its :meth:`groups`.

        Raises:
            TaskRefusal: ``part-missing``: the task has a schedule, and the job is none of the
                client's.
        """
        privacy, period = self.manifest.example_privacy, period_of(self.manifest)
        if privacy is None or period == 1:
            return np.arange(count)
        if self.part is None:
            raise TaskRefusal(
                "part-missing",
                "The task's examples serve by a schedule, and this job does not say which part.",
                expected=f"a part from 0 to {period - 1}",
                remedy="Take part through client_sdk.Client, which counts this device's charges.",
            )
        most = privacy.examples_max if privacy.mode == "distributed" else count
        seed = manifest_digest(encode_manifest(self.manifest))
        return places_of(self.part, count, period, most, seed)

    def check_list(self, contents: Sequence[bytes]) -> None:
        """Return if each example has the place that it had before, and remember the new ones.

        Without a schedule nothing is compared, nor where units have names.

        Args:
            contents: of each place of the whole list what tells its example from others, the same
                in every process; empty where no example is, or one that adds nothing to a sum.

        Raises:
            TaskRefusal: ``data-moved``.
        """
        if self.known is not None:
            self.known(contents)


class Contributor(Protocol):
    """The app's side of a round.

    What each mode rests on: device-level noise and the noise of distributed sums are the SDK's,
    whatever the contributor is. With distributed noise the contributor clips each example
    (``ExampleSum`` does). With local noise (``local``) the contributor clips and adds the noise,
    before the SDK sees a value, and only one that says so is let into such a task: with the
    attribute ``adds_local_noise = True``, which is its word that in such a task every step of
    ``contribute`` adds the manifest's noise.

    In a task with a schedule a contribution is made of the examples at ``job.places(n)`` and of
    nothing else, and only a contributor that says so is let in: with the attribute
    ``schedules_examples = True``. It is its word for two more things. An example keeps its place in
    a list that only grows: one that is taken out leaves its place empty, and none is sorted,
    shuffled, balanced or filled up (``job.check_list`` compares). And nothing of one job goes into
    a later one but caches of single examples and what noise was added to before it was kept: no
    momentum, no moments of an optimiser, no running mean, no left-over of a clip.

    In a task that protects persons or documents, one clip bounds all rows of a unit, and only a
    contributor with ``groups_units = True`` is let in: its word that it adds up the gradients of
    each of ``job.groups(units)``, and of nothing else, before one ``ExampleSum.add``; that a name
    stays with its person; and that no row is of two.

    A contributor may have ``memory_bytes(manifest)``: the most resident memory, in bytes, that a
    process will have while it contributes to such a task; None where it cannot say. A policy with
    ``max_memory_bytes`` admits no contributor that does not say.

    A contributor may have, of the last job and for the device's user alone: ``left_out``
    (:class:`client_sdk.training.dataset.LeftOut`), the examples that counted as zero; ``cut``
    (:class:`client_sdk.training.dataset.Cut`), those that counted, but not whole; ``examples``, the
    places of the data set; ``owned``, examples that named a unit in a task that protects each
    example by itself. What one example raises must not leave ``contribute`` with distributed
    noise: the whole batch would count as zero, and no clip bounds that.
    """

    def contribute(self, job: TrainingJob) -> Mapping[str, np.ndarray]:
        """Values by segment name, each one-dimensional with the segment's length.

        Floats in real units; with distributed noise ``gradient`` is the int64 total of an
        ``ExampleSum``, whose
        ``values()`` have ``below`` too where the clip adapts (with device-level privacy alone the
        SDK adds it). May block. An exception means that the contribution failed: where noise
        protects the sum the device then sends zero plus noise, so that failure tells nothing;
        elsewhere it does not join the round. A ``TaskRefusal`` ends the run instead, before an
        advert: it says that the task cannot be served, whatever the data.
        """
        ...


def check_contributor(manifest: Manifest, contributor: object) -> None:
    """Refuse a contributor that does not declare what the task counts on.

    Raises:
        PolicyRefusal: ``local-noise-undeclared``, ``schedule-undeclared``, ``units-undeclared``.
    """
    _check_schedule(manifest, contributor)
    _check_units(manifest, contributor)
    privacy = manifest.example_privacy
    if privacy is None or privacy.mode != "local":
        return
    declared = getattr(contributor, "adds_local_noise", False)
    if declared is not True:
        raise PolicyRefusal(
            "local-noise-undeclared",
            "In this task each device adds its own noise to every local step, and this contributor "
            "does not declare that it does.",
            expected="adds_local_noise = True",
            found=declared,
            remedy="Use LoraTrainer, which adds it; or add the manifest's noise in contribute() "
            "and declare it; or take part in a task whose noise is added with the mask "
            "(privacy = 'distributed').",
        )


def memory_needed(manifest: Manifest, contributor: object) -> int | None:
    """Bytes of resident memory, by the contributor's own word; None where it says nothing."""
    say = getattr(contributor, "memory_bytes", None)
    found: int | None = None if say is None else say(manifest)
    return found


def check_memory(manifest: Manifest, contributor: object, most_bytes: int | None) -> None:
    """Refuse a contributor that needs more memory than the policy gives, or does not say.

    Raises:
        PolicyRefusal: ``memory-undeclared``, ``memory-too-large``.
    """
    if most_bytes is None:
        return
    needed = memory_needed(manifest, contributor)
    if needed is None:
        raise PolicyRefusal(
            "memory-undeclared",
            "The policy limits the memory of training, and this contributor does not say what it "
            "needs.",
            expected=f"memory_bytes(manifest) of at most {most_bytes}",
            remedy="Give the contributor a method memory_bytes(manifest), or take max_memory_bytes "
            "out of this app's policy.",
        )
    if needed > most_bytes:
        raise PolicyRefusal(
            "memory-too-large",
            "Training would need more memory than the policy allows.",
            expected=f"at most {most_bytes}",
            found=needed,
            remedy="Ask for a task with shorter examples or a smaller model, or raise "
            "max_memory_bytes in this app's policy.",
        )


def _check_schedule(manifest: Manifest, contributor: object) -> None:
    declared = getattr(contributor, "schedules_examples", False)
    if period_of(manifest) == 1 or declared is True:
        return
    raise PolicyRefusal(
        "schedule-undeclared",
        f"In this task an example is in one of {period_of(manifest)} contributions, and this "
        "contributor does not declare that it keeps to that.",
        expected="schedules_examples = True",
        found=declared,
        remedy="Use LoraTrainer, which does; or use the examples at job.places(n) alone and "
        "declare it; or take part in a task without a period.",
    )


def _check_units(manifest: Manifest, contributor: object) -> None:
    privacy, declared = manifest.example_privacy, getattr(contributor, "groups_units", False)
    if privacy is None or privacy.protects == "example" or declared is True:
        return
    raise PolicyRefusal(
        "units-undeclared",
        f"In this task all rows of a {privacy.protects} are clipped as one, and this contributor "
        "does not declare that it does so.",
        expected="groups_units = True",
        found=declared,
        remedy="Use LoraTrainer, which does; or add up each of job.groups(units) before it is "
        "clipped and declare it; or take part in a task that protects examples.",
    )
