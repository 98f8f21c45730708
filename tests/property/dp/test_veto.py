"""A device's veto: whatever a server puts into a manifest, it passes or is refused by reason."""

from __future__ import annotations

import math
from typing import Any

import msgspec
from hypothesis import given, settings
from hypothesis import strategies as st

from dp.accounting.statements import headline, lines
from dp.contracts import (
    AdaptiveClipSpec,
    BudgetSpec,
    CohortSpec,
    TaskSpec,
    build_manifest,
    check_manifest,
)
from secagg.errors import ConfigurationError, RemoteProtocolError
from secagg.manifest import Manifest, decode_manifest, encode_manifest
from tests.kits.tasks import VERIFIER, adapter, built, spec, statistics

MANIFESTS = [
    built(),
    built(report_slot_s=5.0, device_noise_multiplier=2.0, examples_max=16),
    built(algorithm="fedavg", noise_multiplier=3.0),
    built(adaptive_clip=AdaptiveClipSpec()),
    built(report_slot_s=5.0, slot_overrun=1e-9),
    built(algorithm="fedavg", privacy="none"),
    built(statistics(("x", 3, 2.0), ("y", 1, 9.0), device_noise_multiplier=9.0)),
]

integers = st.one_of(
    st.integers(-3, 3), st.sampled_from([1 << 31, 1 << 52, 1 << 63, -(1 << 63), (1 << 64) - 1])
)
floats = st.one_of(
    st.floats(),
    st.sampled_from([0.0, -1.0, 1e-300, 1e300, float("inf"), float("-inf"), float("nan")]),
)


def leaves(value: Any, path: tuple = ()) -> list[tuple]:
    """Paths to all scalars of a manifest as builtin objects."""
    if isinstance(value, dict):
        return [leaf for key in value for leaf in leaves(value[key], (*path, key))]
    if isinstance(value, (list, tuple)):
        return [leaf for i, inner in enumerate(value) for leaf in leaves(inner, (*path, i))]
    return [path]


@given(st.sampled_from(MANIFESTS), st.data())
@settings(max_examples=400, deadline=None)
def test_any_changed_manifest_is_refused_by_reason_or_still_keeps_its_promise(
    manifest: Manifest, data: st.DataObject
) -> None:
    raw = msgspec.msgpack.decode(encode_manifest(manifest))
    for _ in range(data.draw(st.integers(1, 2))):
        path = data.draw(st.sampled_from(leaves(raw)))
        holder = raw
        for step in path[:-1]:
            holder = holder[step]
        old = holder[path[-1]]
        if isinstance(old, float):
            new = data.draw(floats)
        elif isinstance(old, int):
            new = data.draw(integers)
        elif isinstance(old, str):
            new = data.draw(st.sampled_from(["", "x", "local", "distributed", "momentum", "sum"]))
        elif isinstance(old, bytes):
            new = data.draw(st.binary(max_size=40))
        else:
            new = data.draw(st.sampled_from([None, 1, [], {}]))
        holder[path[-1]] = new
    try:
        changed = decode_manifest(msgspec.msgpack.encode(raw))
        check_manifest(changed)
    except (ConfigurationError, RemoteProtocolError):
        return
    cost = headline(lines(changed, changed.budget.releases_max))
    if changed.budget.max_epsilon is not None:
        assert cost <= changed.budget.max_epsilon
    if changed.overrun:
        amplified = lines(changed, changed.budget.releases_max)[1]
        assert amplified.amplified
        assert math.isfinite(amplified.epsilon)
    if changed.noise is not None:
        assert changed.noise.honest_min >= 1
        assert changed.cohort.silent_max >= 1


@given(
    st.builds(
        TaskSpec,
        task=st.just("t"),
        algorithm=st.sampled_from(["fedsgd", "fedavg", "fedprox", "sum", "other"]),
        privacy=st.sampled_from([None, "distributed", "local", "none"]),
        clip=floats,
        noise_multiplier=st.one_of(floats, st.floats(0.3, 5)),
        sampling_rate=st.one_of(floats, st.floats(0.01, 1)),
        examples_max=st.one_of(integers, st.integers(1, 300)),
        device_noise_multiplier=st.one_of(st.just(0.0), floats, st.floats(0.5, 10)),
        update_clip=floats,
        cohort=st.builds(
            CohortSpec,
            size_min=st.integers(-1, 12),
            size_max=st.one_of(st.integers(-1, 20), integers),
            survivors_min=st.integers(-1, 12),
            corrupt_max=st.integers(-1, 6),
            silent_max=st.one_of(st.none(), st.integers(-1, 6)),
        ),
        budget=st.builds(
            BudgetSpec,
            max_epsilon=st.one_of(st.none(), floats),
            delta=st.one_of(floats, st.just(1e-5)),
            releases_max=integers,
        ),
        adapter=st.sampled_from([None, adapter()]),
        segments=st.sampled_from([(), statistics(("x", 3, 1.0)).segments]),
    )
)
@settings(max_examples=400, deadline=None)
def test_any_spec_becomes_a_valid_manifest_or_is_refused_by_reason(task: TaskSpec) -> None:
    try:
        manifest = build_manifest(
            task,
            created_at=1,
            task_key=b"k" * 32,
            ledger_verifier=VERIFIER,
            partner_keys=[b"p" * 32],
        )
    except ConfigurationError:
        return
    check_manifest(decode_manifest(encode_manifest(manifest)))


def test_the_base_spec_of_these_tests_is_admissible() -> None:
    check_manifest(built(spec()))
