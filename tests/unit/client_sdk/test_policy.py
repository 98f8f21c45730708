"""The device's veto: every reason, and that a sound task passes."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path

import msgspec
import pytest

from client_sdk.enrolment import new_partner_key
from client_sdk.errors import PolicyRefusal
from client_sdk.policy import PrivacyPolicy, upload_size
from client_sdk.privacy_modes import privacy_modes
from dp.accounting.budget import UNITS, cost_of
from dp.accounting.statements import headline, lines
from dp.contracts import BudgetSpec, TaskSpec
from secagg.manifest import BaseModel, Manifest
from tests.kits.device import (
    PARTNER,
    account_in,
    evaluation_spec,
    fedsgd_spec,
    make_manifest,
    sum_spec,
)
from tests.kits.quadratics import local_spec, quadratic_spec
from tests.kits.scheduled import scheduled_spec

VERIFIER = "ledger.test+b311a02c+ATtqJ7zOtqQtYqOo0CpvDXNlMhV3HeJDpjrASKGLWdop"
EASY = PrivacyPolicy(min_cohort=4)


def manifest_of(**changes: object) -> Manifest:
    return make_manifest(sum_spec(**changes), VERIFIER)


def admit(policy: PrivacyPolicy, manifest: Manifest, folder: Path, charges: int = 0) -> None:
    account = account_in(folder)
    for number in range(charges):
        account.debit(manifest, bytes((number,)) * 32, "c")
    policy.admit(manifest, own_partner=PARTNER.key, account=account)


def refusal(policy: PrivacyPolicy, manifest: Manifest, folder: Path, charges: int = 0) -> str:
    with pytest.raises(PolicyRefusal) as caught:
        admit(policy, manifest, folder, charges)
    assert caught.value.remedy
    return caught.value.reason


def test_a_sound_task_within_the_limits_is_admitted(tmp_path: Path) -> None:
    admit(EASY, manifest_of(), tmp_path)


def test_the_default_policy_wants_a_cohort_and_noise() -> None:
    policy = PrivacyPolicy()
    assert policy.min_cohort >= 10
    assert policy.require == {"distributed", "local"}
    assert policy.max_epsilon <= 8
    assert policy.max_delta <= 1e-5


def test_one_unit_alone_is_a_set_of_it() -> None:
    assert PrivacyPolicy(units="device").units == frozenset(("device",))


def test_a_small_cohort_is_refused(tmp_path: Path) -> None:
    policy = dataclasses.replace(EASY, min_cohort=5)
    assert refusal(policy, manifest_of(), tmp_path) == "cohort-too-small"


def test_a_task_without_noise_is_refused_unless_admitted(tmp_path: Path) -> None:
    plain = manifest_of(device_noise_multiplier=0.0)
    assert privacy_modes(plain) == {"none"}
    assert refusal(EASY, plain, tmp_path) == "privacy-mode"
    repeating = dataclasses.replace(EASY, repeat_without_noise=True)
    admit(dataclasses.replace(repeating, require=None), plain, tmp_path)
    admit(dataclasses.replace(repeating, require="none"), plain, tmp_path)


@pytest.mark.parametrize(
    ("spec", "admitted"),
    [
        (sum_spec(device_noise_multiplier=0.0), False),
        (sum_spec(), True),
        (evaluation_spec(), False),
        (evaluation_spec(device_noise_multiplier=4.0), True),
        (quadratic_spec("fedavg", 8, 5), True),
        (local_spec("fedavg", devices=8, survivors=5), True),
    ],
    ids=["sum", "noisy sum", "evaluation", "noisy evaluation", "fedavg", "fedavg, local"],
)
def test_functions_of_the_data_want_noise_in_the_sum_or_the_policys_word(
    tmp_path: Path, spec: TaskSpec, admitted: bool
) -> None:
    """Two sums over cohorts that overlap differ by what single devices sent."""
    policy = dataclasses.replace(
        EASY,
        min_corrupt=0,
        require=None,
        max_epsilon=math.inf,
        max_total_epsilon=math.inf,
        max_delta=0.1,
    )
    manifest = make_manifest(spec, VERIFIER)
    if admitted:
        admit(policy, manifest, tmp_path)
    else:
        with pytest.raises(PolicyRefusal) as caught:
            admit(policy, manifest, tmp_path)
        assert caught.value.reason == "repeats-without-noise"
        assert caught.value.found == f"{manifest.algorithm} without noise in the sum"
    admit(dataclasses.replace(policy, repeat_without_noise=True), manifest, tmp_path)


def test_the_wrong_kind_of_noise_is_refused(tmp_path: Path) -> None:
    assert refusal(dataclasses.replace(EASY, require="local"), manifest_of(), tmp_path) == (
        "privacy-mode"
    )
    admit(dataclasses.replace(EASY, require="distributed"), manifest_of(), tmp_path)


def test_a_manifest_that_promises_more_noise_than_it_adds_is_unsound(tmp_path: Path) -> None:
    manifest = manifest_of()
    assert manifest.noise is not None
    weaker = msgspec.structs.replace(
        manifest, noise=msgspec.structs.replace(manifest.noise, share_variance=1)
    )
    with pytest.raises(PolicyRefusal) as caught:
        admit(EASY, weaker, tmp_path)
    assert caught.value.reason == "manifest-unsound"
    assert caught.value.found == "noise-too-small"


BOTH = make_manifest(
    fedsgd_spec(device_noise_multiplier=1.5, examples_max=4, budget=BudgetSpec(max_epsilon=None)),
    VERIFIER,
)
LOCAL = make_manifest(local_spec("fedavg", devices=8, survivors=5), VERIFIER)
OF_EXAMPLES = make_manifest(fedsgd_spec(), VERIFIER)


@pytest.mark.parametrize("manifest", [manifest_of(), OF_EXAMPLES, LOCAL, BOTH])
def test_epsilon_is_recomputed_over_all_releases(tmp_path: Path, manifest: Manifest) -> None:
    """Of an example in every task, of a device in those that protect devices."""
    units = ("example", "device") if manifest.device_privacy else ("example",)
    whole = max(cost_of(unit, manifest, manifest.budget.releases_max) for unit in units)
    policy = dataclasses.replace(EASY, min_corrupt=0, max_delta=0.1, max_total_epsilon=math.inf)
    admit(dataclasses.replace(policy, max_epsilon=whole), manifest, tmp_path)
    tighter = dataclasses.replace(policy, max_epsilon=math.nextafter(whole, 0))
    assert refusal(tighter, manifest, tmp_path) == "epsilon-too-large"


def test_a_task_that_protects_devices_alone_costs_an_example_more(tmp_path: Path) -> None:
    """Changing one example may move a device's whole clipped vector by twice its bound."""
    manifest = manifest_of(device_noise_multiplier=2.3, budget=BudgetSpec(max_epsilon=None))
    stated = headline(lines(manifest, manifest.budget.releases_max))
    assert stated is not None
    assert stated < 8 < cost_of("example", manifest, manifest.budget.releases_max)
    with pytest.raises(PolicyRefusal) as caught:
        admit(EASY, manifest, tmp_path)
    assert caught.value.reason == "epsilon-too-large"
    assert "one example" in caught.value.message
    assert "units" in str(caught.value.remedy)
    admit(dataclasses.replace(EASY, units=frozenset()), manifest, tmp_path)
    admit(dataclasses.replace(EASY, units="device"), manifest, tmp_path)


@pytest.mark.parametrize("manifest", [OF_EXAMPLES, LOCAL])
def test_a_policy_may_limit_whole_devices_in_every_task(tmp_path: Path, manifest: Manifest) -> None:
    policy = dataclasses.replace(EASY, min_corrupt=0, max_delta=0.1, max_epsilon=1e6)
    roomy = dataclasses.replace(policy, max_total_epsilon=1e6)
    admit(roomy, manifest, tmp_path)
    strict = dataclasses.replace(roomy, units=frozenset(("example", "device")))
    with pytest.raises(PolicyRefusal) as caught:
        admit(strict, manifest, tmp_path)
    assert (caught.value.reason, caught.value.found) == ("epsilon-too-large", "infinite")
    assert "one device" in caught.value.message
    assert "no other number admits it" in str(caught.value.remedy)  # what does is the next
    assert "has it in units" in str(caught.value.remedy)


def test_where_persons_are_protected_a_refusal_for_their_rows_says_who_else_may_count(
    tmp_path: Path,
) -> None:
    persons = make_manifest(scheduled_spec(unit="person"), VERIFIER)
    policy = dataclasses.replace(EASY, min_cohort=3, min_corrupt=0, max_total_epsilon=1e6)
    cost = cost_of("person", persons, persons.budget.releases_max)
    tight = dataclasses.replace(policy, max_epsilon=cost)
    with pytest.raises(PolicyRefusal) as caught:
        admit(tight, persons, tmp_path)
    assert caught.value.reason == "epsilon-too-large"
    assert "units of person alone may do" in str(caught.value.remedy)
    admit(dataclasses.replace(tight, units="person"), persons, tmp_path)


def test_units_are_known() -> None:
    with pytest.raises(ValueError, match="units"):
        PrivacyPolicy(units=frozenset(("household",)))  # type: ignore[arg-type]


def test_limits_go_on_for_the_other_tasks_beside_one_without_noise(tmp_path: Path) -> None:
    bare = manifest_of(task="bare", device_noise_multiplier=0.0)
    first, second = manifest_of(), manifest_of(task="other")
    account = account_in(tmp_path)
    account.debit(bare, b"n" * 32, "c")
    for number in range(4):
        account.debit(first, bytes((number,)) * 32, "c")
    total = max(account.after(second, unit)[1].bounded for unit in UNITS)
    assert all(account.after(second, unit)[1].epsilon == math.inf for unit in UNITS)
    enough = dataclasses.replace(EASY, max_total_epsilon=total)
    tight = dataclasses.replace(EASY, max_total_epsilon=math.nextafter(total, 0))
    enough.admit(second, own_partner=PARTNER.key, account=account)
    with pytest.raises(PolicyRefusal) as caught:
        tight.admit(second, own_partner=PARTNER.key, account=account)
    assert caught.value.reason == "own-total-budget"


def test_a_looser_delta_is_refused(tmp_path: Path) -> None:
    loose = manifest_of(budget=BudgetSpec(max_epsilon=8.0, delta=1e-4, releases_max=4))
    assert refusal(EASY, loose, tmp_path) == "delta-too-large"


def test_a_task_that_aborts_too_often_is_left(tmp_path: Path) -> None:
    """Aborted cohorts are charged too, so charges may outnumber the task's releases."""
    admit(EASY, manifest_of(), tmp_path / "a", charges=3)
    assert refusal(EASY, manifest_of(), tmp_path / "b", charges=4) == "own-releases"


def test_a_task_without_privacy_is_left_too_when_its_charges_are_used_up(tmp_path: Path) -> None:
    """Else the device would be lost to every further cohort at its debit, after it was ready."""
    plain = manifest_of(device_noise_multiplier=0.0)
    bare = dataclasses.replace(EASY, require=None, repeat_without_noise=True)
    admit(bare, plain, tmp_path / "a", charges=3)
    assert refusal(bare, plain, tmp_path / "b", charges=4) == "own-releases"


def test_a_task_that_begins_anew_does_not_begin_a_new_account(tmp_path: Path) -> None:
    """The same name under a noisier manifest: what the device gave before still counts."""
    before = manifest_of()
    after = manifest_of(
        device_noise_multiplier=5.0,
        budget=BudgetSpec(max_epsilon=8.0, delta=1e-5, releases_max=5),
    )
    whole = max(cost_of(unit, after, 5) for unit in UNITS)
    policy = dataclasses.replace(EASY, max_epsilon=whole, max_total_epsilon=math.inf)
    account = account_in(tmp_path)
    for number in range(4):
        account.debit(before, bytes((number,)) * 32, "c")
    with pytest.raises(PolicyRefusal) as caught:
        policy.admit(after, own_partner=PARTNER.key, account=account)
    assert caught.value.reason == "own-budget"


def test_all_tasks_together_have_a_limit(tmp_path: Path) -> None:
    first, second = manifest_of(), manifest_of(task="other")
    account = account_in(tmp_path)
    for number in range(4):
        account.debit(first, bytes((number,)) * 32, "c")
    total = max(account.after(second, unit)[1].epsilon for unit in UNITS)
    enough = dataclasses.replace(EASY, max_total_epsilon=total)
    tight = dataclasses.replace(EASY, max_total_epsilon=math.nextafter(total, 0))
    enough.admit(second, own_partner=PARTNER.key, account=account)
    with pytest.raises(PolicyRefusal) as caught:
        tight.admit(second, own_partner=PARTNER.key, account=account)
    assert caught.value.reason == "own-total-budget"


def test_a_task_of_other_partners_is_refused(tmp_path: Path) -> None:
    stranger = new_partner_key().key
    other = make_manifest(sum_spec(), VERIFIER, partner=stranger)
    assert refusal(EASY, other, tmp_path) == "partner-unknown"
    trusting_others_only = dataclasses.replace(EASY, partner_keys=frozenset((stranger,)))
    assert refusal(trusting_others_only, manifest_of(), tmp_path) == "partner-unknown"


def test_a_model_off_the_list_is_refused(tmp_path: Path) -> None:
    policy = dataclasses.replace(EASY, allowed_models=frozenset(("smollm2",)))
    base = BaseModel(name="elsewhere", fingerprint=bytes(32))
    manifest = msgspec.structs.replace(manifest_of(), base_model=base)
    with pytest.raises(PolicyRefusal) as caught:
        policy._admit_structure(manifest, PARTNER.key)
    assert caught.value.reason == "model-not-allowed"
    admit(policy, manifest_of(), tmp_path)


def test_a_large_upload_is_refused(tmp_path: Path) -> None:
    manifest = manifest_of()
    exact = dataclasses.replace(EASY, max_upload_bytes=upload_size(manifest))
    admit(exact, manifest, tmp_path)
    less = dataclasses.replace(EASY, max_upload_bytes=upload_size(manifest) - 1)
    assert refusal(less, manifest, tmp_path) == "upload-too-large"


def test_the_app_may_say_not_now(tmp_path: Path) -> None:
    policy = dataclasses.replace(EASY, may_train=lambda: False)
    assert refusal(policy, manifest_of(), tmp_path) == "not-now"


@pytest.mark.parametrize("require", [frozenset(), frozenset(("perfect",)), "perfect"])
def test_a_policy_with_unknown_modes_is_a_programming_error(require: object) -> None:
    with pytest.raises(ValueError, match="require"):
        PrivacyPolicy(require=require)  # type: ignore[arg-type]


def test_a_policy_that_admits_a_sum_of_one_is_a_programming_error() -> None:
    with pytest.raises(ValueError, match="a sum needs 2 devices"):
        PrivacyPolicy(min_cohort=1)


def test_a_refusal_has_both_values_and_the_way_out(tmp_path: Path) -> None:
    with pytest.raises(PolicyRefusal) as caught:
        admit(dataclasses.replace(EASY, min_cohort=5), manifest_of(), tmp_path)
    assert caught.value.expected == "at least 5"
    assert caught.value.found == 4
    assert caught.value.remedy


class TestPersons:
    """A policy that counts persons demands of every task what the app's rows name as theirs."""

    strict = dataclasses.replace(EASY, units="person", min_cohort=2, min_corrupt=0)

    @pytest.mark.parametrize(
        "manifest",
        [
            make_manifest(fedsgd_spec(budget=BudgetSpec(releases_max=4)), VERIFIER),
            make_manifest(local_spec(), VERIFIER),
            make_manifest(
                fedsgd_spec(unit="document", budget=BudgetSpec(releases_max=4)), VERIFIER
            ),
        ],
        ids=["examples", "local", "documents"],
    )
    def test_a_task_that_does_not_clip_their_rows_as_one_is_refused(
        self, manifest: Manifest, tmp_path: Path
    ) -> None:
        assert refusal(self.strict, manifest, tmp_path) == "epsilon-too-large"

    def test_one_that_protects_them_is_admitted_at_what_it_states(self, tmp_path: Path) -> None:
        """What changing one row costs, twice the bound, is more than this policy admits of an
        example."""
        manifest = make_manifest(
            fedsgd_spec(unit="person", budget=BudgetSpec(releases_max=4)), VERIFIER
        )
        stated = headline(lines(manifest, 4))
        assert stated is not None
        at = dataclasses.replace(self.strict, max_epsilon=stated, max_total_epsilon=stated)
        admit(at, manifest, tmp_path / "a", charges=3)
        below = dataclasses.replace(at, max_epsilon=0.999 * stated)
        assert refusal(below, manifest, tmp_path / "b") == "epsilon-too-large"
        rows = dataclasses.replace(at, units="example")
        assert refusal(rows, manifest, tmp_path / "c") == "epsilon-too-large"

    def test_what_a_task_protects_counts_whatever_the_policy_counts(self, tmp_path: Path) -> None:
        manifest = make_manifest(
            fedsgd_spec(unit="person", budget=BudgetSpec(releases_max=4)), VERIFIER
        )
        stated = headline(lines(manifest, 4))
        assert stated is not None
        loose = dataclasses.replace(self.strict, units=frozenset(), max_epsilon=stated)
        admit(loose, manifest, tmp_path / "a", charges=3)
        task = dataclasses.replace(loose, max_epsilon=0.99 * stated)
        assert refusal(task, manifest, tmp_path / "b") == "epsilon-too-large"
        every = dataclasses.replace(loose, max_total_epsilon=0.99 * stated)
        assert refusal(every, manifest, tmp_path / "c", charges=3) == "own-total-budget"


def test_weights_are_admitted_by_what_they_are_whatever_they_are_called(tmp_path: Path) -> None:
    manifest = make_manifest(fedsgd_spec(), VERIFIER)
    assert manifest.base_model is not None
    admit(with_fingerprints(manifest.base_model.fingerprint), manifest, tmp_path)
    with pytest.raises(PolicyRefusal) as caught:
        admit(with_fingerprints(b"f" * 32), manifest, tmp_path)
    error = caught.value
    assert (error.reason, error.expected, error.found) == (
        "model-not-allowed",
        [(b"f" * 32).hex()],
        bytes(32).hex(),
    )
    admit(with_fingerprints(b"f" * 32), manifest_of(), tmp_path)  # it trains no model


def with_fingerprints(*allowed: bytes) -> PrivacyPolicy:
    return dataclasses.replace(
        EASY, max_epsilon=1e6, max_total_epsilon=1e6, allowed_fingerprints=frozenset(allowed)
    )
