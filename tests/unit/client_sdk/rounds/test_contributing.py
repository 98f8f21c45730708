"""From an offer to a contribution: slots show no batch, failures become zeros where noise hides."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import re
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from client_sdk.accounts.device_account import Found
from client_sdk.contribution import TrainingJob, check_values, zero_contribution
from client_sdk.errors import ContributionError, PolicyRefusal, TaskRefusal
from client_sdk.policy import SLOTS_WAITED_MAX
from client_sdk.rounds.contributing import Training, report_at
from client_sdk.rounds.examples_told import ExamplesTold
from client_sdk.training.dataset import Cut, LeftOut
from client_sdk.training.trainer import LoraTrainer
from dp.accounting.statements import lines
from dp.encoding import encode
from secagg.errors import ConfigurationError
from secagg.manifest import Manifest
from secagg.secret import Secret
from secagg_cli.join.trainer import LazyTrainer
from tests.kits.contributing import OPENED, Clock, Runs, Setting, checkin_of
from tests.kits.device import fedsgd_spec, make_manifest, sum_spec
from tests.kits.quadratics import local_spec

VERIFIER = "ledger.test+b311a02c+ATtqJ7zOtqQtYqOo0CpvDXNlMhV3HeJDpjrASKGLWdop"


def counts(job: TrainingJob) -> dict[str, np.ndarray]:
    return {"counts": np.array([0.5, 0, 0, 1.0])}


def fails(job: TrainingJob) -> dict[str, np.ndarray]:
    raise MemoryError("out of memory")


NOISY = make_manifest(sum_spec(), VERIFIER)
PLAIN = make_manifest(sum_spec(device_noise_multiplier=0.0), VERIFIER)
SLOTTED = make_manifest(fedsgd_spec(report_slot_s=60.0), VERIFIER)


@pytest.mark.parametrize(
    ("checked_in_after", "slot"),
    [(0.0, 1), (0.1, 2), (30.0, 2), (60.0, 2), (60.1, 3), (119.0, 3), (600.0, 11)],
)
def test_the_slot_follows_from_public_times_alone(checked_in_after: float, slot: int) -> None:
    assert report_at(checkin_of(SLOTTED, now=OPENED + checked_in_after)) == OPENED + 60 * slot


@given(
    slot_s=st.floats(1e-3, 30 * 86_400),
    opened_at=st.floats(0, 4e9),
    now_s=st.floats(0, 4e9),
)
def test_a_slot_leaves_its_whole_length_and_never_more_than_two(
    slot_s: float, opened_at: float, now_s: float
) -> None:
    """Whatever the aggregator says of when the version opened, and of what time it is."""
    checkin = checkin_of(replace(SLOTTED, report_slot_s=slot_s), now=now_s)
    offer = replace(checkin.offer, model=replace(checkin.offer.model, opened_at=opened_at))
    at = report_at(dataclasses.replace(checkin, offer=offer))
    assert at is not None
    rounding = 1e-6  # of a double at four billion seconds
    assert slot_s - rounding <= at - now_s <= SLOTS_WAITED_MAX * slot_s + rounding


async def test_training_starts_with_a_whole_slot_after_a_long_download(tmp_path: Path) -> None:
    """The model came 45 s after the offer: they are not taken from the slot."""
    setting = Setting(tmp_path)
    checkin = checkin_of(SLOTTED)
    setting.clock.now += 45
    runs = Runs(lambda job: zero_contribution(job.manifest))
    await Training(setting.device, runs).contribution(checkin)
    assert runs.jobs[0].deadline_s == pytest.approx(75 - setting.device.settings.slot_reserve_s)
    assert setting.clock.now == OPENED + 120


@pytest.mark.parametrize("said_s", [5_000.0, -800.0])
@pytest.mark.parametrize("works_s", [1.0, 40.0])
async def test_a_later_word_about_time_neither_ends_a_slot_nor_stretches_it(
    tmp_path: Path, said_s: float, works_s: float
) -> None:
    """Were the word believed, the report would come as soon as training ends, and show its time."""
    setting = Setting(tmp_path)
    setting.device.time.hear(OPENED)

    def work(job: TrainingJob) -> Mapping[str, np.ndarray]:
        setting.clock.now += works_s
        setting.device.time.hear(setting.clock.now + said_s)
        return zero_contribution(job.manifest)

    contribution = await Training(setting.device, Runs(work)).contribution(checkin_of(SLOTTED))
    assert contribution.failed is None
    assert setting.clock.now == OPENED + 60


def test_without_a_slot_a_device_reports_when_it_is_ready() -> None:
    assert report_at(checkin_of(NOISY)) is None


def test_a_version_that_opens_in_the_future_makes_nobody_wait_for_it() -> None:
    checkin = checkin_of(SLOTTED, now=OPENED - 1e6)
    assert report_at(checkin) == OPENED - 1e6 + 60


async def test_the_report_waits_for_the_slot_on_the_servers_clock(tmp_path: Path) -> None:
    """A device whose clock is 1,000 s behind still reports at the same moment as the others."""
    clock = Clock(OPENED - 1_000 + 2.5)
    setting = Setting(tmp_path, clock)
    checkin = checkin_of(SLOTTED, now=OPENED + 2.5)
    setting.device.time.hear(checkin.offer.now)
    runs = Runs(lambda job: zero_contribution(job.manifest))
    await Training(setting.device, runs).contribution(checkin)
    assert clock.slept == [117.5]
    assert setting.device.time.now() == OPENED + 120
    assert runs.jobs[0].deadline_s == pytest.approx(117.0)


async def test_a_ready_contribution_waits_for_its_slot_too(tmp_path: Path) -> None:
    """After an aborted cohort: reporting at once would tell who had finished before."""
    setting = Setting(tmp_path)
    runs = Runs(lambda job: zero_contribution(job.manifest))
    training = Training(setting.device, runs)
    first = await training.contribution(checkin_of(SLOTTED))
    setting.clock.now = OPENED + 62
    again = await training.contribution(checkin_of(SLOTTED, now=OPENED + 62))
    assert again.name == first.name
    assert setting.clock.slept == [60.0, 118.0]
    assert len(runs.jobs) == 1


def works_for(seconds_each: float, batch: int, clock: Clock, fails_above: int = 100) -> Runs:
    """With distributed noise: time by the size of its batch, out of memory for large ones."""

    def work(job: TrainingJob) -> Mapping[str, np.ndarray]:
        clock.now += seconds_each * batch
        if batch > fails_above:
            raise MemoryError(f"{batch} examples")
        values = zero_contribution(job.manifest)
        values["gradient"][:batch] = batch
        return values

    return Runs(work)


@pytest.mark.parametrize("fails_above", [100, 0, 7])
async def test_neither_the_time_nor_the_form_of_a_report_shows_the_batch(
    tmp_path: Path, fails_above: int
) -> None:
    """Small, large and failing batches: the same moment, the same segments, the same length.

    Without slots the moment shows the batch, and then no line of the report is amplified.
    """
    reports: dict[float, set[tuple[Any, ...]]] = {}
    for slot_s in (60.0, 0.0):
        manifest = make_manifest(fedsgd_spec(report_slot_s=slot_s), VERIFIER)
        seen = reports.setdefault(slot_s, set())
        for batch in (0, 1, 8, 16):
            setting = Setting(tmp_path / f"{slot_s}-{batch}")
            runs = works_for(2.5, batch, setting.clock, fails_above)
            checkin = checkin_of(manifest)
            contribution = await Training(setting.device, runs).contribution(checkin)
            assert (contribution.failed is not None) == (batch > fails_above)
            form = [(k, v.shape, v.dtype) for k, v in contribution.values().items()]
            payload = encode(
                manifest,
                contribution.values(),
                rotation_seed=b"",
                random_bytes=os.urandom,
                masking_set_size=manifest.cohort.size_max,
                noise_seeds=[Secret(os.urandom(32)) for _ in manifest.removable_drops],
            )
            assert np.count_nonzero(payload) > 0.9 * payload.size  # the noise is there
            seen.add((setting.clock.now, str(form), payload.nbytes, tuple(setting.kinds())))
        assert all(not line.amplified for line in lines(manifest, 1)) == (slot_s == 0)
    assert len(reports[60.0]) == 1
    assert len(reports[0.0]) == 4  # what slots are for


async def test_a_failure_sends_zeros_where_noise_hides_it(tmp_path: Path) -> None:
    setting = Setting(tmp_path)
    checkin = checkin_of(NOISY, version=3)
    contribution = await Training(setting.device, Runs(fails)).contribution(checkin)
    assert not contribution.values()["counts"].any()
    assert contribution.failed is not None
    assert "MemoryError" in contribution.failed
    assert setting.kinds() == ["training", "trained"]
    assert [event.detail["version"] for event in setting.events] == [3, 3]
    assert "MemoryError" in str(setting.events[-1].detail["failed"])


async def test_a_task_that_no_data_would_serve_is_refused_and_not_hidden_as_zeros(
    tmp_path: Path,
) -> None:
    def refuses(job: TrainingJob) -> dict[str, np.ndarray]:
        raise TaskRefusal("task-without-model", "This task trains no model.")

    setting = Setting(tmp_path)
    with pytest.raises(PolicyRefusal, match="task-without-model"):
        await Training(setting.device, Runs(refuses)).contribution(checkin_of(NOISY))
    assert setting.device.journal.load_contribution() is None


async def test_a_failure_without_noise_is_an_error(tmp_path: Path) -> None:
    setting = Setting(tmp_path, require=None)
    with pytest.raises(ContributionError, match="MemoryError") as caught:
        await Training(setting.device, Runs(fails)).contribution(checkin_of(PLAIN))
    assert caught.value.reason == "contribution-failed"
    assert re.fullmatch(rf"Look at {Path(__file__).name}, line \d+\.", str(caught.value.remedy))
    assert setting.device.journal.load_contribution() is None


async def test_a_late_contributor_is_told_to_stop_and_its_zeros_go_out(tmp_path: Path) -> None:
    """Its next call waits until the late one has ended: one call at a time."""
    setting = Setting(tmp_path, max_training_s=0.01)
    running: list[int] = []

    def slow(job: TrainingJob) -> dict[str, np.ndarray]:
        running.append(1)
        assert len(running) == 1
        assert job.stop.wait(30)
        running.pop()
        return {"counts": np.full(4, 7.0)}

    training = Training(setting.device, Runs(slow))
    first = await training.contribution(checkin_of(NOISY))
    assert first.failed is not None
    assert "contribution-late" in first.failed
    second = await training.contribution(checkin_of(NOISY, version=1))
    assert not second.values()["counts"].any()


async def test_the_app_thread_is_not_the_event_loops(tmp_path: Path) -> None:
    threads: list[int] = []

    def work(job: TrainingJob) -> dict[str, np.ndarray]:
        threads.append(threading.get_ident())
        assert not job.vector.size or job.vector.dtype == np.float32
        return counts(job)

    await Training(Setting(tmp_path).device, Runs(work)).contribution(checkin_of(NOISY))
    assert threads != [threading.get_ident()]


async def test_a_restarted_device_does_not_train_again(tmp_path: Path) -> None:
    first = await Training(Setting(tmp_path).device, Runs(counts)).contribution(checkin_of(NOISY))
    runs, setting = Runs(counts), Setting(tmp_path)
    again = await Training(setting.device, runs).contribution(checkin_of(NOISY))
    assert (again.name, runs.jobs) == (first.name, [])
    assert setting.events[-1].detail["reused"] is True


async def test_another_model_version_wants_another_contribution(tmp_path: Path) -> None:
    setting, runs = Setting(tmp_path), Runs(counts)
    training = Training(setting.device, runs)
    first = await training.contribution(checkin_of(NOISY))
    second = await training.contribution(checkin_of(NOISY, version=1))
    assert first.name != second.name
    assert [job.version for job in runs.jobs] == [0, 1]


LOCAL = make_manifest(local_spec(), VERIFIER)


@pytest.mark.parametrize(
    "manifest",
    [make_manifest(fedsgd_spec(), VERIFIER), NOISY, PLAIN, LOCAL],
    ids=["batch-secret", "device-level", "plain", "local"],
)
async def test_a_contribution_serves_one_cohort_that_reached_masking(
    tmp_path: Path, manifest: Manifest
) -> None:
    """In every mode: in a second sum the difference of both would show it."""
    setting = Setting(tmp_path)
    runs = Declares(True, lambda job: zero_contribution(job.manifest))
    training = Training(setting.device, runs)
    first = await training.contribution(checkin_of(manifest))
    await training.contribution(checkin_of(manifest))
    assert len(runs.jobs) == 1
    setting.device.account.debit(manifest, b"c" * 32, first.name)
    second = await training.contribution(checkin_of(manifest))
    assert (len(runs.jobs), second.name == first.name) == (2, False)


async def test_a_contribution_from_a_model_that_was_given_serves_no_more(tmp_path: Path) -> None:
    """Another contribution was given for it, as the ledger showed after a loss: each cohort that
    this one joined would lose the device at the mask."""
    setting, runs = Setting(tmp_path), Runs(counts)
    training = Training(setting.device, runs)
    checkin = checkin_of(PLAIN)
    first = await training.contribution(checkin)
    models = (checkin.offer.model.digest,)
    setting.device.account.restore([Found(ctx=b"c" * 32, manifest=PLAIN, models=models)])
    assert (await training.contribution(checkin)).name != first.name


@pytest.mark.parametrize(
    ("values", "reason"),
    [
        (None, "contribution-segments"),
        ({}, "contribution-segments"),
        ({"counts": np.zeros(4), "more": np.zeros(1)}, "contribution-segments"),
        ({"counts": np.zeros(5)}, "contribution-shape"),
        ({"counts": np.zeros((4, 1))}, "contribution-shape"),
        ({"counts": np.array([1, 2, 3, "x"])}, "contribution-dtype"),
        ({"counts": np.zeros(4, complex)}, "contribution-dtype"),
        ({"counts": np.array([object()] * 4)}, "contribution-dtype"),
        ({"counts": np.array([1, np.nan, 0, 0])}, "contribution-not-finite"),
        ({"counts": np.array([1, np.inf, 0, 0], np.float16)}, "contribution-not-finite"),
    ],
)
def test_values_that_do_not_fit_are_refused(values: Any, reason: str) -> None:
    with pytest.raises(ContributionError) as caught:
        check_values(NOISY, values)
    assert caught.value.reason == reason


def test_a_secret_batchs_total_must_be_exact_integers() -> None:
    values = {"gradient": np.zeros(SLOTTED.data_length)}
    with pytest.raises(ContributionError, match="contribution-dtype"):
        check_values(SLOTTED, values)
    assert check_values(SLOTTED, zero_contribution(SLOTTED))["gradient"].dtype == np.int64


class Declares(Runs):
    def __init__(self, word: object, work: Callable[[TrainingJob], Mapping[str, np.ndarray]]):
        super().__init__(work)
        self.adds_local_noise = word


def local(**changes: Any) -> Manifest:
    """Local noise, where the contributor adds the noise."""
    return make_manifest(fedsgd_spec(algorithm="fedavg", noise_multiplier=4.0, **changes), VERIFIER)


def update(job: TrainingJob) -> dict[str, np.ndarray]:
    return {"delta": np.zeros(12)}


@pytest.mark.parametrize("word", [None, False, "yes", 1])
@pytest.mark.parametrize(
    "manifest",
    [local(), local(device_noise_multiplier=4.0)],
    ids=["local", "local and device-level"],
)
async def test_local_privacy_wants_a_contributor_that_says_it_adds_the_noise(
    tmp_path: Path, manifest: Manifest, word: object
) -> None:
    """Also beside noise in the ring: the account counts the local noise for examples."""
    setting = Setting(tmp_path, require=None)
    contributor = Runs(update) if word is None else Declares(word, update)
    with pytest.raises(PolicyRefusal) as caught:
        await Training(setting.device, contributor).contribution(checkin_of(manifest))
    assert caught.value.reason == "local-noise-undeclared"
    assert "adds_local_noise" in str(caught.value.remedy) + str(caught.value.expected)
    assert (contributor.jobs, setting.kinds()) == ([], [])
    assert setting.device.journal.load_contribution() is None


async def test_the_word_lets_a_contributor_in_and_is_not_asked_elsewhere(tmp_path: Path) -> None:
    declared = Declares(True, update)
    await Training(Setting(tmp_path / "a").device, declared).contribution(checkin_of(local()))
    assert len(declared.jobs) == 1
    for name, manifest in (("b", NOISY), ("c", PLAIN)):
        contributor = Runs(counts)
        setting = Setting(tmp_path / name, require=None)
        await Training(setting.device, contributor).contribution(checkin_of(manifest))
        assert len(contributor.jobs) == 1


async def test_a_stored_contribution_of_an_undeclared_contributor_is_not_sent(
    tmp_path: Path,
) -> None:
    """One process computed it; a contributor of another may not carry it into a local task."""
    setting, checkin = Setting(tmp_path), checkin_of(local())
    await Training(setting.device, Declares(True, update)).contribution(checkin)
    with pytest.raises(PolicyRefusal):
        await Training(setting.device, Runs(update)).contribution(checkin)


def test_lora_trainer_gives_its_word_for_every_algorithm_that_admits_local_noise() -> None:
    """The algorithms that a task can combine with local noise are those of the one private step."""
    from client_sdk.training.algorithms import ALGORITHMS
    from dp.contracts import BudgetSpec, TrainingSpec

    spec = fedsgd_spec(privacy="local", budget=BudgetSpec(max_epsilon=None))
    admitted = set()
    for name in ALGORITHMS:
        training = TrainingSpec(
            population=100 if name == "scaffold" else 0,
            proximal_mu=0.05 if name == "fedprox" else 0.0,
        )
        with contextlib.suppress(ConfigurationError):
            make_manifest(
                msgspec.structs.replace(spec, algorithm=name, training=training), VERIFIER
            )
            admitted.add(name)
    private = {
        name
        for name, algorithm in ALGORITHMS.items()
        if "local_steps" in algorithm.__code__.co_names  # type: ignore[attr-defined]
    }
    assert admitted == private
    assert LoraTrainer.adds_local_noise is True
    assert LazyTrainer.adds_local_noise is True


class Panic(BaseException):
    """As panics of compiled libraries are: no ``Exception``."""


async def test_a_panic_in_the_contributor_is_a_failure_like_any_other(tmp_path: Path) -> None:
    def panics(job: TrainingJob) -> dict[str, np.ndarray]:
        raise Panic

    setting = Setting(tmp_path)
    contribution = await Training(setting.device, Runs(panics)).contribution(checkin_of(NOISY))
    assert "Panic" in str(contribution.failed)
    assert not contribution.values()["counts"].any()


async def test_examples_that_counted_as_zero_are_told_to_the_app_once(tmp_path: Path) -> None:
    setting, runs = Setting(tmp_path), Runs(counts)
    bad = LeftOut(3, "example-label", "The model's classes are 0 to 1.")
    more = LeftOut(1, "example-failed", "The example raised MemoryError.")
    training = Training(setting.device, runs)
    for version, found in enumerate(((), (bad,), (bad,), (more, bad), "no such", 7)):
        runs.left_out = found  # type: ignore[attr-defined]
        await training.contribution(checkin_of(NOISY, version=version))
    told = [event.detail for event in setting.events if event.kind == "examples-left-out"]
    assert told == [
        {
            "examples": 1,
            "reasons": {"example-label": 1},
            "first": "Example 3: The model's classes are 0 to 1.",
        },
        {
            "examples": 2,
            "reasons": {"example-label": 1, "example-failed": 1},
            "first": "Example 1: The example raised MemoryError.",
        },
    ]
    assert training.left_out == {3: bad, 1: more}


async def test_examples_that_are_cut_are_told_to_the_app_once_and_kept(tmp_path: Path) -> None:
    setting, runs = Setting(tmp_path), Runs(counts)
    first, second = Cut(3, 100, 64, "line 4 of data.jsonl"), Cut(1, 70, 64)
    training = Training(setting.device, runs)
    for version, found in enumerate(((), (first,), (first,), (second, first), "no such", 7)):
        runs.cut = found  # type: ignore[attr-defined]
        runs.examples = 5 if version < 4 else True  # type: ignore[attr-defined]
        contribution = await training.contribution(checkin_of(NOISY, version=version))
        if version == 3:
            again = ExamplesTold.of_contribution(contribution)
            assert again == ExamplesTold(5, {}, {1: second, 3: Cut(3, 100, 64)})
    told = [event.detail for event in setting.events if event.kind == "examples-cut"]
    assert told == [
        {
            "examples": 1,
            "first": "Line 4 of data.jsonl: only the first 64 of 100 tokens are used.",
        },
        {"examples": 2, "first": "Example 1: only the first 64 of 70 tokens are used."},
    ]
    assert (training.told.cut, training.told.examples) == ({3: first, 1: second}, 5)


async def test_numbers_longer_than_their_clip_are_told(tmp_path: Path) -> None:
    """They are sent shortened; only the app can choose another clip, or count otherwise."""
    segment = NOISY.segments[0]
    longer = np.full(segment.length, 2.0 * segment.clip)
    for name, values, told in (
        ("long", longer, [{"segment": "counts", "norm": 4.0 * segment.clip, "clip": segment.clip}]),
        ("short", longer / 4, []),
    ):
        setting = Setting(tmp_path / name)

        def gives(job: TrainingJob, values: np.ndarray = values) -> dict[str, np.ndarray]:
            return {"counts": values}

        await Training(setting.device, Runs(gives)).contribution(checkin_of(NOISY))
        found = [event.detail for event in setting.events if event.kind == "values-shortened"]
        assert found == told
