"""An asynchronous cohort: devices of several versions of the model, each with enough behind it."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from secagg import client, messages, ring, server
from secagg.errors import LocalProtocolError
from secagg.keys import signing_key
from secagg.messages import AdmittedModel
from secagg.simulation import (
    Aggregator,
    Device,
    Drop,
    Hooks,
    LocalDevices,
    SimulatedTask,
    drive,
    make_task,
    run_cohort,
    seeded_tools,
)

CLIENTS = 8
Trained = tuple[int, bytes]  # version, digest


def model(version: int) -> Trained:
    return version, version.to_bytes(32, "big")


def devices_on(task: SimulatedTask, trained: list[Trained]) -> list[Device]:
    encoding = task.manifest.encoding

    def vector(number: int) -> ring.Lanes:
        one_hot = np.eye(CLIENTS, dtype=np.int64)[number]
        return ring.with_checks(one_hot, encoding.ring_bits, encoding.slice_length)

    return [
        Device(
            task.devices[number],
            number,
            model_digest=digest,
            model_version=version,
            vector=lambda number=number: vector(number),
            tools=seeded_tools(3, number),
        )
        for number, (version, digest) in enumerate(trained)
    ]


def shown_task(versions_back: int) -> SimulatedTask:
    return make_task(CLIENTS, CLIENTS, slice_length=4, survivors_min=4, versions_back=versions_back)


def test_devices_of_two_versions_make_one_exact_sum_and_know_how_stale_they_are() -> None:
    task = shown_task(2)
    trained = [model(7)] * 4 + [model(5)] * 4
    devices = devices_on(task, trained)
    staleness: dict[int, int] = {}

    def note(number: int, message: bytes) -> list[bytes]:
        state = devices[number].state
        if isinstance(state, client.Checked):
            staleness[number] = state.session.staleness
            assert state.session.models == (AdmittedModel(*model(5)), AdmittedModel(*model(7)))
        return [message]

    result = run_cohort(task, [], devices=devices, hooks=Hooks(downward=note))
    assert isinstance(result.state, server.Released)
    assert result.total is not None
    assert result.total.tolist() == [1] * CLIENTS
    assert staleness == {number: 0 if number < 4 else 2 for number in range(CLIENTS)}
    assert [entry.model for entry in result.state.roster].count(0) == 4


@pytest.mark.parametrize(
    ("versions_back", "trained"),
    [
        (0, [model(7)] * 4 + [model(6)] * 4),
        (1, [model(7)] * 4 + [model(5)] * 4),
        (2, [model(7)] * 5 + [model(6)] * 3),
        (2, [(7, b"a" * 32)] * 4 + [(7, b"b" * 32)] * 4),
    ],
    ids=["synchronous", "beyond the bound", "too few behind one", "two of one version"],
)
def test_the_aggregator_forms_no_cohort_that_devices_would_refuse(
    versions_back: int, trained: list[Trained]
) -> None:
    task = shown_task(versions_back)
    with pytest.raises(LocalProtocolError) as caught:
        run_cohort(task, [], devices=devices_on(task, trained))
    assert caught.value.reason == "cohort-models"


def test_fewer_devices_than_make_a_sum_may_stand_behind_a_model_where_the_manifest_says_so() -> (
    None
):
    """More than half of a cohort must survive, so no two models can have that many behind them."""
    terms = {"slice_length": 4, "survivors_min": 5, "versions_back": 2, "model_min": 3}
    task = make_task(CLIENTS, CLIENTS, **terms)
    result = run_cohort(task, [], devices=devices_on(task, [model(7)] * 5 + [model(5)] * 3))
    assert isinstance(result.state, server.Released)
    with pytest.raises(LocalProtocolError) as caught:
        run_cohort(task, [], devices=devices_on(task, [model(7)] * 6 + [model(5)] * 2))
    assert caught.value.reason == "cohort-models"


TWO_MODELS = {
    "slice_length": 4,
    "size_min": 6,
    "survivors_min": 4,
    "versions_back": 2,
    "model_min": 3,
}


@pytest.mark.parametrize("drop", [Drop.SHARE, Drop.CHECK])
def test_devices_of_a_model_with_too_few_left_are_left_out_while_the_others_go_on(
    drop: Drop,
) -> None:
    task = make_task(CLIENTS, CLIENTS, **TWO_MODELS)
    devices = devices_on(task, [model(7)] * 5 + [model(5)] * 3)
    devices[6].drop = drop
    result = run_cohort(task, [], devices=devices)
    assert isinstance(result.state, server.Released)
    assert result.survivors == (0, 1, 2, 3, 4)
    for number in (5, 7):
        state = devices[number].state
        assert isinstance(state, client.Failed)
        assert state.reason == "left-out"


@pytest.mark.parametrize("drop", [Drop.ANNOUNCE, Drop.UPLOAD])
def test_after_the_masking_set_a_model_with_too_few_left_ends_the_cohort(drop: Drop) -> None:
    task = make_task(CLIENTS, CLIENTS, **TWO_MODELS)
    devices = devices_on(task, [model(7)] * 5 + [model(5)] * 3)
    devices[6].drop = drop
    result = run_cohort(task, [], devices=devices)
    assert isinstance(result.state, server.Aborted)
    assert result.state.reason == "too-few-vectors"


@pytest.mark.parametrize(("drop", "reason"), [(Drop.SHARE, "dealers"), (Drop.CHECK, "ready")])
def test_without_those_devices_the_others_may_be_too_few(drop: Drop, reason: str) -> None:
    task = make_task(CLIENTS, CLIENTS, **{**TWO_MODELS, "survivors_min": 6})
    devices = devices_on(task, [model(7)] * 5 + [model(5)] * 3)
    devices[6].drop = drop
    result = run_cohort(task, [], devices=devices)
    assert isinstance(result.state, server.Aborted)
    assert result.state.reason == f"too-few-{reason}"


def _shown(change) -> set[str | None]:
    """How devices end that are shown a changed roster by whoever holds the task key."""
    task = shown_task(2)
    devices = devices_on(task, [model(7)] * 4 + [model(5)] * 4)
    pool = LocalDevices(devices)
    key = signing_key(task.server.task_key)

    def downward(number: int, message: bytes) -> list[bytes]:
        content, _ = messages.peek(message, *messages.KINDS)
        if isinstance(content, messages.Roster):
            return [messages.sign(change(content), b"", key)]
        return [message]

    aggregator = Aggregator(
        task, pool.advertise(), cohort=bytes(32), attempt=0, hooks=Hooks(downward=downward)
    )
    result = drive(aggregator, pool)
    assert isinstance(result.state, server.Aborted)
    return {getattr(device.state, "reason", None) for device in devices}


def _models(roster: messages.Roster, *models: Trained) -> messages.Roster:
    return replace_struct(roster, models=tuple(AdmittedModel(*shown) for shown in models))


replace_struct = messages.msgspec.structs.replace


@pytest.mark.parametrize(
    "change",
    [
        lambda r: _models(r, model(7), model(5)),
        lambda r: _models(r, model(5), model(7), model(8)),
        lambda r: _models(r, model(3), model(7)),
        lambda r: _models(r, model(5), (7, b"short")),
        lambda r: _models(r, model(7), (8, model(7)[1])),
        lambda r: _models(r, model(5)),
        lambda r: replace_struct(
            r, entries=tuple(replace_struct(e, model=1 - e.model) for e in r.entries)
        ),
        lambda r: replace_struct(
            r, entries=(replace_struct(r.entries[0], model=2), *r.entries[1:])
        ),
    ],
    ids=[
        "out of order",
        "nobody behind one",
        "too old a version",
        "a short digest",
        "one digest twice",
        "an entry without its model",
        "entries with each other's models",
        "a place beyond the models",
    ],
)
def test_a_roster_with_other_models_ends_the_exchange_for_whoever_sees_it(change) -> None:
    assert _shown(change) <= {"roster-models", None, "cohort-aborted"}
    assert "roster-models" in _shown(change)


def test_a_device_with_a_minimum_of_its_own_wants_that_many_behind_each_model() -> None:
    task = shown_task(2)
    devices = devices_on(task, [model(7)] * 4 + [model(5)] * 4)
    devices[0].config = replace(devices[0].config, survivors_min=5)
    run_cohort(task, [], devices=devices)
    state = devices[0].state
    assert isinstance(state, client.Failed)
    assert state.reason == "roster-models"
