"""FedBuff: what it admits, how a buffer is chosen, and what a stale update counts."""

from __future__ import annotations

from collections import Counter
from typing import Any

import msgspec
import numpy as np
import pytest

from aggregator.algorithms import StepInput, server_step
from aggregator.cohorts.choosing import WaitingDevice, choose
from client_sdk.errors import PolicyRefusal
from client_sdk.payload import weighed
from client_sdk.policy import PrivacyPolicy
from dp.contracts import BudgetSpec, CohortSpec, build_manifest, warnings
from dp.encoding import decode, encode
from dp.ledger.builder import LedgerBuilder
from dp.ledger.records import ReleaseEntry, release_record, task_record
from dp.ledger.verification import verify_ledger
from secagg.errors import ConfigurationError, LocalProtocolError
from secagg.manifest import CohortRules, Manifest, encode_manifest, manifest_digest
from tests.kits.device import PARTNER, TASK_KEY, account_in
from tests.kits.quadratics import LENGTH, quadratic_spec
from tests.kits.tasks import ORIGIN, VERIFIER, built, entry, seeded, served, signed_task

COHORT = CohortSpec(size_min=6, size_max=6, survivors_min=4)
CORRUPT = CohortSpec(size_min=9, size_max=9, corrupt_max=2, survivors_min=7)
NO_LIMIT = BudgetSpec(max_epsilon=None, releases_max=10)


def manifest(**changes: Any) -> Manifest:
    return built(quadratic_spec("fedbuff", **{"cohort": COHORT, "budget": NO_LIMIT, **changes}))


class TestDeclaration:
    def test_defaults_of_the_bounds(self) -> None:
        rules = manifest().cohort
        assert (rules.versions_back, rules.model_min) == (4, 2)
        assert manifest(cohort=CORRUPT).cohort.model_min == 4  # two of them honest
        assert built(quadratic_spec("fedavg")).cohort.versions_back == 0

    @pytest.mark.parametrize(
        ("changes", "reason"),
        [
            ({"privacy": "distributed"}, "privacy-mode"),
            ({"training": {"weight_unit": 10}}, "weights-with-buffer"),
            ({"training": {"denominator": 6.0}}, "weights-with-buffer"),
            ({"training": {"proximal_mu": 0.1}}, "proximal-without-fedprox"),
            ({"training": {"server_optimiser": "adam"}}, "optimiser-with-buffer"),
            ({"cohort": msgspec.structs.replace(COHORT, versions_back=0)}, "versions-back"),
            ({"cohort": msgspec.structs.replace(COHORT, versions_back=65)}, "versions-back"),
            ({"cohort": msgspec.structs.replace(COHORT, model_min=1)}, "model-min"),
            ({"cohort": msgspec.structs.replace(COHORT, model_min=5)}, "model-min"),
            ({"cohort": msgspec.structs.replace(CORRUPT, model_min=3)}, "model-min"),
            ({"report_slot_s": 60.0}, "slot-with-buffer"),
        ],
    )
    def test_what_it_cannot_be_combined_with(self, changes: dict[str, Any], reason: str) -> None:
        with pytest.raises(ConfigurationError) as refused:
            manifest(**changes)
        assert refused.value.reason == reason

    def test_a_buffer_without_room_for_two_versions_is_warned_of(self) -> None:
        crowded = manifest(cohort=msgspec.structs.replace(COHORT, model_min=4))
        assert any("room for two versions" in warning for warning in warnings(crowded))
        assert not any("room for two versions" in warning for warning in warnings(manifest()))

    @pytest.mark.parametrize("field", ["versions_back", "model_min"])
    def test_only_a_buffer_admits_more_than_one_version(self, field: str) -> None:
        cohort = msgspec.structs.replace(COHORT, **{field: 2})
        with pytest.raises(ConfigurationError) as refused:
            built(quadratic_spec("fedavg", cohort=cohort))
        assert refused.value.reason == "versions-without-buffer"

    @pytest.mark.parametrize(
        "terms",
        [{}, {"privacy": "local", "noise_multiplier": 8.0}, {"device_noise_multiplier": 8.0}],
    )
    def test_both_units_of_privacy_are_admitted(self, terms: dict[str, Any]) -> None:
        task = manifest(**terms)
        warnings(task)
        names = [segment.name for segment in task.segments]
        assert names == (["delta"] if terms else ["delta", "loss"])

    def test_a_policy_refuses_models_with_fewer_behind_them_than_its_minimum(
        self, tmp_path
    ) -> None:
        spec = quadratic_spec(
            "fedbuff",
            cohort=CohortSpec(size_min=20, size_max=20, survivors_min=12, model_min=4),
            budget=NO_LIMIT,
        )
        task = build_manifest(
            spec,
            created_at=1,
            task_key=TASK_KEY,
            ledger_verifier=VERIFIER,
            partner_keys=(PARTNER.key,),
        )
        policy = PrivacyPolicy(min_cohort=10, require=None)
        with pytest.raises(PolicyRefusal) as refused:
            policy.admit(task, own_partner=PARTNER.key, account=account_in(tmp_path))
        assert refused.value.reason == "model-cohort-too-small"


def rules(size: int = 6, behind: int = 2, size_min: int | None = None) -> CohortRules:
    return CohortRules(
        size_min=size_min or size,
        size_max=size,
        survivors_min=size // 2 + 1,
        corrupt_max=0,
        silent_max=0,
        versions_back=4,
        model_min=behind,
    )


def waiting(*versions: int) -> list[WaitingDevice]:
    """Devices in order of arrival, by the versions that they trained on."""
    return [WaitingDevice(f"s{n}", b"", version, float(n)) for n, version in enumerate(versions)]


class TestChoice:
    @pytest.mark.parametrize(
        ("versions", "chosen"),
        [
            ((5, 5, 5, 5, 5), ()),
            ((5, 5, 5, 5, 5, 5), (0, 1, 2, 3, 4, 5)),
            ((3, 5, 5, 5, 5, 5), ()),  # nobody else trained on 3: it waits, the others go on
            ((3, 5, 5, 5, 5, 5, 5), (1, 2, 3, 4, 5, 6)),
            ((3, 5, 5, 5, 5, 3), (0, 1, 2, 3, 4, 5)),
            ((3, 5, 5, 5, 5, 5, 5, 3), (0, 1, 2, 3, 4, 7)),  # its second came last and counts
            ((3, 4, 5, 3, 4, 5), (0, 1, 2, 3, 4, 5)),
            ((2, 3, 4, 5, 2, 3, 4, 5), (0, 1, 2, 4, 5, 6)),  # four would not fit: older first
        ],
    )
    def test_whole_groups_in_order_of_arrival(
        self, versions: tuple[int, ...], chosen: tuple[int, ...]
    ) -> None:
        found = choose(waiting(*versions), rules())
        assert tuple(int(ready.session[1:]) for ready in found) == chosen

    def test_every_choice_is_one_that_devices_accept(self) -> None:
        generator = np.random.default_rng(5)
        formed = 0
        for _ in range(300):
            versions = generator.integers(0, 5, generator.integers(0, 25))
            behind = int(generator.integers(1, 4))
            cohort = rules(int(generator.integers(4, 12)), behind, 4)
            ready = waiting(*map(int, versions))
            chosen = choose(ready, cohort)
            counts = Counter(r.version for r in ready)
            if not chosen:
                fits = [count for count in counts.values() if count >= behind]
                room = cohort.size_max // behind  # versions that a cohort can hold
                assert sum(sorted(fits)[-room:]) < cohort.size_min
                continue
            formed += 1
            assert cohort.size_min <= len(chosen) <= cohort.size_max
            assert min(Counter(r.version for r in chosen).values()) >= behind
            assert list(chosen) == [r for r in ready if r in chosen]
        assert formed > 100

    def test_a_synchronous_cohort_is_the_first_to_arrive(self) -> None:
        synchronous = CohortRules(
            size_min=3, size_max=4, survivors_min=3, corrupt_max=0, silent_max=0
        )
        chosen = choose(waiting(7, 7, 7, 7, 7), synchronous)
        assert [ready.session for ready in chosen] == ["s0", "s1", "s2", "s3"]
        assert choose(waiting(7, 7), synchronous) == ()


class TestWeights:
    @pytest.mark.parametrize(("staleness", "weight"), [(0, 1.0), (1, 0.5**0.5), (3, 0.5)])
    def test_s_is_one_over_the_root_of_one_plus_tau(self, staleness: int, weight: float) -> None:
        values = {"delta": np.array([3.0, 0, 0, 0, 0, -4.0]), "loss": np.ones(1)}
        found = weighed(manifest(), values, staleness)
        np.testing.assert_allclose(found["delta"], weight * values["delta"])
        assert found["loss"] == values["loss"]

    def test_a_long_update_is_clipped_before_it_is_weighed(self) -> None:
        task = manifest(update_clip=2.0)
        found = weighed(task, {"delta": np.full(LENGTH, 1e200), "loss": np.ones(1)}, 3)
        assert np.linalg.norm(found["delta"]) == pytest.approx(1.0)

    @pytest.mark.parametrize("bad", [np.nan, np.inf])
    def test_what_is_not_finite_is_left_to_the_encoding(self, bad: float) -> None:
        values = {"delta": np.full(LENGTH, bad)}
        np.testing.assert_array_equal(weighed(manifest(), values, 1)["delta"], values["delta"])

    def test_the_sum_is_the_papers_up_to_the_rounding(self) -> None:
        """x + eta (1/K) sum s(tau) delta in float64, through the ring."""
        task = manifest(training={"server_learning_rate": 0.5})
        generator = np.random.default_rng(2)
        deltas, ages = generator.normal(size=(6, LENGTH)), [0, 0, 1, 1, 4, 4]
        total = None
        for n, (delta, age) in enumerate(zip(deltas, ages, strict=True)):
            values = weighed(task, {"delta": delta, "loss": np.full(1, float(n))}, age)
            lanes = encode(task, values, rotation_seed=bytes(32), random_bytes=seeded(n))
            total = lanes if total is None else total + lanes
        mask = (1 << task.encoding.ring_bits) - 1
        sums = decode(task, total & mask, survivors=6, rotation_seed=bytes(32))
        start = np.ones(LENGTH, np.float32)
        step = server_step(StepInput(task, start, {}, sums, 9, 6))
        expected = 1 + 0.5 * sum(d / np.sqrt(1 + a) for d, a in zip(deltas, ages, strict=True)) / 6
        np.testing.assert_allclose(step.vector, expected, atol=2 / task.segments[0].scale)
        assert step.metrics["loss"] == pytest.approx(2.5, abs=1e-3)

    def test_those_who_are_expected_to_abstain_are_not_counted(self) -> None:
        task = manifest(device_noise_multiplier=8.0, participation_rate=0.5)
        sums = {"delta": np.full(LENGTH, 6.0)}
        step = server_step(StepInput(task, np.zeros(LENGTH, np.float32), {}, sums, 9, 6))
        np.testing.assert_allclose(step.vector, 2.0)

    def test_the_number_of_contributors_is_needed(self) -> None:
        sums = {"delta": np.zeros(LENGTH), "loss": np.zeros(1)}
        with pytest.raises(LocalProtocolError, match="survivors-missing"):
            server_step(StepInput(manifest(), np.zeros(LENGTH, np.float32), {}, sums))


class TestLedger:
    """Version n's digest is bytes of n; the task begins with version 0."""

    def audited(self, *starts: dict[str, Any], first: bytes = bytes(32), back: int = 2) -> set[str]:
        """Reasons that an auditor finds when release n + 1 starts from ``starts[n]``."""
        cohort = msgspec.structs.replace(COHORT, versions_back=back)
        task = manifest(cohort=cohort)
        encoded = encode_manifest(task)
        signature = bytes.fromhex(msgspec.json.decode(signed_task(task))["manifest_signature"])
        builder = LedgerBuilder(ORIGIN, [task_record(encoded, signature, first)])
        facts: list[Any] = []
        for number, start in enumerate(starts, 1):
            after = number.to_bytes(32, "big")
            shown: ReleaseEntry = msgspec.structs.replace(
                entry(number, 4), new_model_digest=after, **start
            )
            builder.append(release_record(task, manifest_digest(encoded), facts, shown))
            facts.append(shown.facts(task))
        result = verify_ledger(served(builder).get, VERIFIER)
        return {problem.reason for problem in result.problems}

    def start(self, *versions: int) -> dict[str, Any]:
        digests = tuple(version.to_bytes(32, "big") for version in versions)
        return {"model_digests": digests, "model_versions": versions}

    def test_buffers_of_admitted_versions_verify(self) -> None:
        chain = [self.start(0), self.start(0, 1), self.start(0), self.start(1, 2, 3)]
        assert self.audited(*chain) == set()

    def test_an_old_ledger_that_does_not_name_version_0_verifies(self) -> None:
        chain = [self.start(0), self.start(0, 1)]
        assert self.audited(*chain, first=b"") == set()

    @pytest.mark.parametrize(
        ("last", "reason"),
        [
            ({"versions": (0, 3)}, "model-chain"),  # older than the manifest admits
            ({"versions": (7,)}, "model-chain"),  # never released
            ({"versions": ()}, "model-chain"),
        ],
    )
    def test_a_model_that_the_buffer_may_not_admit_is_a_problem(
        self, last: dict[str, Any], reason: str
    ) -> None:
        chain = [self.start(0), self.start(1), self.start(2), self.start(*last["versions"])]
        assert self.audited(*chain) == {reason}

    def test_another_first_model_than_the_tasks_is_a_problem(self) -> None:
        assert self.audited(self.start(0), first=b"x" * 32) == {"model-chain"}

    def test_versions_that_are_not_their_models_are_a_problem(self) -> None:
        wrong = {**self.start(0, 1), "model_versions": (1, 0)}
        assert self.audited(self.start(0), wrong) == {"model-versions"}
