"""Removable noise: enough is left for every number of survivors, and what goes, goes exactly."""

from __future__ import annotations

import hashlib
import math

import msgspec
import numpy as np
import pytest
from scipy import stats

from dp.accounting.budget import Account, charges_of, example_of
from dp.accounting.events import (
    SkellamRelease,
)
from dp.accounting.statements import (
    ReleaseFacts,
    draws_per_release,
    guaranteed_variance,
    headline,
    lines,
)
from dp.contracts import BudgetSpec, CohortSpec, check_manifest, overshoot
from dp.encoding import decode, encode
from dp.errors import AccountingError, MechanismError
from dp.noise.removable import (
    RemovablePart,
    Removed,
    add_parts,
    drop_levels,
    kept_share,
    most_variance,
    removable_part,
    remove_parts,
    share_levels,
)
from dp.noise.sampling import skellam
from dp.noise_meter import noise_interval
from secagg.errors import ConfigurationError
from secagg.limits import SLICE_LENGTH
from secagg.manifest import Manifest
from secagg.ring import add_into, centred, split_checks, with_checks
from secagg.secret import Secret
from tests.kits.noisy_tasks import in_parts
from tests.kits.said import Case, refused
from tests.kits.tasks import built, seeded, statistics

CTX = b"c" * 32
NO_LIMIT = BudgetSpec(max_epsilon=None)


def removable(
    size_min: int = 6,
    size_max: int = 10,
    survivors_min: int = 5,
    *,
    length: int = 50,
    multiplier: float = 1.0,
    silent: int | None = None,
    drops: tuple[int, ...] | None = None,
) -> Manifest:
    cohort = CohortSpec(
        size_min=size_min,
        size_max=size_max,
        survivors_min=survivors_min,
        corrupt_max=0,
        silent_max=silent,
    )
    manifest = built(
        statistics(
            ("x", length, 1.0), device_noise_multiplier=multiplier, cohort=cohort, budget=NO_LIMIT
        )
    )
    levels = drop_levels(size_max - survivors_min) if drops is None else drops
    noise = msgspec.structs.replace(manifest.noise, removable_drops=levels)
    return msgspec.structs.replace(manifest, noise=noise)


def secret(device: int, level: int) -> Secret:
    return Secret(hashlib.sha256(b"%d %d" % (device, level)).digest())


def seeds(manifest: Manifest, device: int) -> tuple[Secret, ...]:
    return tuple(secret(device, level) for level in range(len(manifest.noise.removable_drops)))


def opened(manifest: Manifest, members: int, survivors: int) -> list[int]:
    """Levels whose parts are not needed."""
    lost = members - survivors
    needed_beyond = (0, *manifest.noise.removable_drops)
    return [
        level
        for level in range(len(manifest.noise.removable_drops))
        if lost <= needed_beyond[level]
    ]


def unmasked_sum(manifest: Manifest, members: int, survivors: int) -> np.ndarray:
    """Zeros of every survivor, noise added and the needless parts removed, lanes[p]."""
    total = None
    zeros = {"x": np.zeros(manifest.data_length)}
    for device in range(survivors):
        lanes = encode(
            manifest,
            zeros,
            rotation_seed=CTX,
            random_bytes=seeded(device),
            masking_set_size=members,
            noise_seeds=seeds(manifest, device),
        )
        if total is None:
            total = lanes
        else:
            add_into(total, lanes, manifest.encoding.ring_bits)
    parts = [
        removable_part(manifest, members, level, secret(device, level), CTX)
        for device in range(survivors)
        for level in opened(manifest, members, survivors)
    ]
    remove_parts(total, parts, manifest.encoding.ring_bits, 0, len(total))
    return total


@pytest.mark.parametrize(
    ("most", "levels", "expected"),
    [
        (0, 3, ()),
        (1, 3, (1,)),
        (2, 3, (1, 2)),
        (5, 3, (2, 4, 5)),
        (30, 3, (10, 20, 30)),
        (7, 1, (7,)),
    ],
)
def test_levels_are_even_distinct_and_reach_the_most(
    most: int, levels: int, expected: tuple[int, ...]
) -> None:
    assert drop_levels(most, levels) == expected


@pytest.mark.parametrize(
    "rules",
    [(6, 10, 5, None), (40, 100, 35, 3), (2, 3, 2, None), (5, 128, 5, 2)],
)
def test_enough_noise_is_left_for_every_masking_set_and_number_of_survivors(
    rules: tuple[int, int, int, int | None],
) -> None:
    size_min, size_max, survivors_min, silent = rules
    manifest = removable(size_min, size_max, survivors_min, silent=silent)
    noise, cohort = manifest.noise, manifest.cohort
    target = noise.share_variance * noise.honest_min
    most, least = 0, math.inf
    for members in range(survivors_min, size_max + 1):
        shares = share_levels(noise, cohort, members)
        assert list(shares) == sorted(shares)
        for survivors in range(survivors_min, members + 1):
            kept = kept_share(noise, cohort, members, survivors)
            # What the opened levels leave is this share.
            assert kept == shares[len(shares) - 1 - len(opened(manifest, members, survivors))]
            facts = ReleaseFacts(survivors=survivors, masking_set_size=members)
            guaranteed = guaranteed_variance(manifest, facts)
            assert guaranteed == kept * (survivors - cohort.silent_max) >= target
            most, least = max(most, survivors * kept), min(least, guaranteed)
    assert least == target == guaranteed_variance(manifest, ReleaseFacts(survivors=survivors_min))
    assert most == most_variance(noise, cohort)
    assert overshoot(manifest) == most / target


def test_the_overshoot_is_far_below_that_of_shares_for_the_fewest() -> None:
    manifest = removable(60, 100, 60, silent=5)
    plain = msgspec.structs.replace(
        manifest, noise=msgspec.structs.replace(manifest.noise, removable_drops=())
    )
    assert overshoot(plain) == pytest.approx(100 / 55)
    # With nobody lost the noise is that of 100 devices of which 95 count.
    full = 100 * kept_share(manifest.noise, manifest.cohort, 100, 100)
    target = manifest.noise.share_variance * manifest.noise.honest_min
    assert full / target == pytest.approx(100 / 95, rel=1e-4)
    assert overshoot(manifest) < 1.35


# Ten tests at significance 1e-4: honest code with fresh streams would fail one run in 1,000.
# The streams are fixed, so these results repeat.
@pytest.mark.parametrize(
    ("members", "lost"), [(10, lost) for lost in range(6)] + [(8, lost) for lost in range(4)]
)
def test_measured_variance_of_released_sums_at_each_drop_out_count(members: int, lost: int) -> None:
    manifest = removable(length=20_000)
    survivors = members - lost
    payload = unmasked_sum(manifest, members, survivors)
    sums = centred(split_checks(payload, SLICE_LENGTH)[1], manifest.encoding.ring_bits)
    expected = survivors * kept_share(manifest.noise, manifest.cohort, members, survivors)
    # Nearly normal (excess kurtosis 1 / variance), so the energy is chi-square.
    energy = float((sums.astype(float) ** 2).sum()) / expected
    tail = stats.chi2.sf(energy, len(sums))
    assert 5e-5 < tail < 1 - 5e-5
    # The target itself is refuted from above: at least as much is there.
    target = manifest.noise.share_variance * manifest.noise.honest_min
    assert expected > target
    facts = ReleaseFacts(survivors=survivors, masking_set_size=members)
    measured = noise_interval(manifest, payload, facts)
    assert measured.guaranteed == guaranteed_variance(manifest, facts)
    assert measured.low <= expected <= measured.high
    assert not measured.missing


@pytest.mark.parametrize("survivors", [5, 6, 8, 10])
def test_what_is_left_is_the_parts_that_stay_and_the_signal_bit_for_bit(survivors: int) -> None:
    manifest = removable(length=SLICE_LENGTH + 100)
    bits, noise, cohort = manifest.encoding.ring_bits, manifest.noise, manifest.cohort
    shares = share_levels(noise, cohort, 10)
    values = np.full(manifest.data_length, 1 / 300)
    gone = opened(manifest, 10, survivors)
    total, expected = None, None
    for device in range(survivors):
        lanes = encode(
            manifest,
            {"x": values},
            rotation_seed=CTX,
            random_bytes=seeded(device),
            masking_set_size=10,
            noise_seeds=seeds(manifest, device),
        )
        # The same device, had it known who would survive: only the parts that stay.
        bare = msgspec.structs.replace(
            manifest,
            noise=msgspec.structs.replace(noise, share_variance=shares[0], removable_drops=()),
        )
        stays = encode(bare, {"x": values}, rotation_seed=CTX, random_bytes=seeded(device))
        data = np.zeros(manifest.data_length, np.int64)
        kept = [level for level in range(len(noise.removable_drops)) if level not in gone]
        add_parts(
            data,
            [removable_part(manifest, 10, k, secret(device, k), CTX) for k in kept],
        )
        noisy = with_checks(data, bits, SLICE_LENGTH)
        noisy[:: SLICE_LENGTH + 1] = 0
        add_into(stays, noisy, bits)
        if total is None:
            total, expected = lanes, stays
        else:
            add_into(total, lanes, bits)
            add_into(expected, stays, bits)
    assert gone == [] or not np.array_equal(total, expected)
    parts = [
        removable_part(manifest, 10, level, secret(device, level), CTX)
        for device in range(survivors)
        for level in gone
    ]
    # Slice by slice, the last one first.
    remove_parts(total, parts, bits, SLICE_LENGTH + 1, len(total))
    remove_parts(total, parts, bits, 0, SLICE_LENGTH + 1)
    assert np.array_equal(total, expected)
    assert decode(manifest, total, survivors=survivors, rotation_seed=CTX)["x"].std() > 0


@pytest.mark.parametrize("silent", [0, 1, 3])
def test_noise_that_is_taken_off_but_was_never_added_does_not_count_as_noise(silent: int) -> None:
    """A device that leaves all its noise out still deals seeds; their noise is then in the sum."""
    manifest = removable(length=20_000)
    bits, members = manifest.encoding.ring_bits, 10
    facts = ReleaseFacts(survivors=members, masking_set_size=members)
    total = unmasked_sum(manifest, members, members)
    parts = [
        removable_part(manifest, members, level, secret(device, level), CTX)
        for device in range(members)
        for level in range(len(manifest.noise.removable_drops))
    ]
    # What unmasked_sum took off is put back; the silent devices' shares are taken out whole.
    data = np.zeros(manifest.data_length, np.int64)
    add_parts(data, parts)
    lanes = with_checks(data, bits, SLICE_LENGTH)
    lanes[0] = 0
    add_into(total, lanes, bits)
    for device in range(silent):
        payload = encode(
            manifest,
            {"x": np.zeros(manifest.data_length)},
            rotation_seed=CTX,
            random_bytes=seeded(device),
            masking_set_size=members,
            noise_seeds=seeds(manifest, device),
        )
        payload[0] = 0
        np.subtract(total, payload, out=total)
    np.bitwise_and(total, (1 << bits) - 1, out=total)
    product = remove_parts(total, parts, bits, 0, len(total))
    removed = Removed(sum(part.variance for part in parts), product)
    share = kept_share(manifest.noise, manifest.cohort, members, members)
    real = (members - silent) * share
    measured = noise_interval(manifest, total, facts, removed)
    assert measured.low <= real <= measured.high < 1.5 * real
    # One device is assumed to add nothing, three are not.
    assert measured.missing == (silent == 3)
    if silent:
        assert noise_interval(manifest, total, facts).high > 1.05 * measured.high


def test_parts_are_removed_from_whole_slices_only() -> None:
    payload = with_checks(np.zeros(SLICE_LENGTH + 9, np.int64), 20, SLICE_LENGTH)
    for lo, hi in ((1, len(payload)), (0, 7), (0, len(payload) + 1), (SLICE_LENGTH + 1, 0)):
        with pytest.raises(MechanismError) as caught:
            remove_parts(payload, [], 20, lo, hi)
        assert caught.value.reason == "noise-slice"


def test_every_seed_level_context_and_slice_has_noise_of_its_own() -> None:
    manifest = removable(length=SLICE_LENGTH * 2)

    def noise(device: int = 0, level: int = 0, ctx: bytes = CTX) -> np.ndarray:
        part = removable_part(manifest, 10, level, secret(device, 0), ctx)
        data = np.zeros(manifest.data_length, np.int64)
        add_parts(data, [RemovablePart(part.key, 1000)])
        return data

    first = noise()
    assert np.array_equal(first, noise())
    others = [noise(device=1), noise(level=1), noise(ctx=b"d" * 32)]
    halves = [first[:SLICE_LENGTH], first[SLICE_LENGTH:]]
    for one, other in [(first, other) for other in others] + [(halves[0], halves[1])]:
        correlation = float(np.corrcoef(one, other)[0, 1])
        assert abs(correlation) < 5 / math.sqrt(len(one))


def test_the_noise_of_a_seed_is_a_known_answer() -> None:
    """A device and an aggregator of different versions must agree on every number."""
    manifest = removable(length=1000)
    part = removable_part(manifest, 10, 1, Secret(bytes(range(32))), CTX)
    data = np.zeros(1000, np.int64)
    add_parts(data, [RemovablePart(part.key, 10**6)])
    assert hashlib.sha256(data.astype("<i8").tobytes()).hexdigest() == (
        "62e2f2b6a64444d7f0d19ece1e52211564b4cf4ea6395cc6e2d13a991a7d0b88"
    )


def test_a_part_that_does_not_exist_is_refused() -> None:
    manifest = removable()
    with pytest.raises(MechanismError) as caught:
        removable_part(manifest, 10, 3, secret(0, 0), CTX)
    assert caught.value.reason == "noise-level"
    with pytest.raises(MechanismError) as caught:
        removable_part(manifest, 10, 0, Secret(bytes(31)), CTX)
    assert caught.value.reason == "seed-size"
    with pytest.raises(AccountingError) as wrong:
        removable_part(manifest, 11, 0, secret(0, 0), CTX)
    assert wrong.value.reason == "masking-set-size"
    with pytest.raises(MechanismError) as caught:
        encode(manifest, {"x": np.zeros(50)}, rotation_seed=CTX, random_bytes=seeded())
    assert caught.value.reason == "noise-seeds"


def test_a_masking_set_without_room_for_drop_outs_has_nothing_to_remove() -> None:
    manifest = removable()
    assert len(set(share_levels(manifest.noise, manifest.cohort, 5))) == 1
    part = removable_part(manifest, 5, 2, secret(0, 2), CTX)
    data = np.zeros(10, np.int64)
    add_parts(data, [part])
    assert not data.any()


def test_accounting_charges_what_is_left_for_the_real_survivors() -> None:
    manifest = removable()
    full = ReleaseFacts(survivors=10, masking_set_size=10)
    lost = ReleaseFacts(survivors=8, masking_set_size=10)
    unknown = ReleaseFacts(survivors=10)
    costs = {facts: headline(lines(manifest, [facts])) for facts in (full, lost, unknown)}
    worst = headline(lines(manifest, 1))
    assert costs[unknown] == worst
    # Eight of ten keep what two drop-outs need, and there are no more: hardly more than needed.
    assert costs[full] <= worst
    assert costs[lost] <= worst
    one_lost = headline(lines(manifest, [ReleaseFacts(survivors=9, masking_set_size=10)]))
    assert one_lost < 0.95 * worst
    account = Account(delta=manifest.budget.delta).spend("a", manifest, full)
    assert account.epsilon("device") == pytest.approx(costs[full])
    example, charge = charges_of(manifest, lost)
    assert example == example_of(charge)
    event = charge.event()
    assert isinstance(event, SkellamRelease)
    assert event.variance == guaranteed_variance(manifest, lost)
    plain = msgspec.structs.replace(
        manifest, noise=msgspec.structs.replace(manifest.noise, removable_drops=())
    )
    # Four parts are drawn where one was: each takes its slack from delta.
    assert draws_per_release(manifest) == 4 * draws_per_release(plain)


@pytest.mark.parametrize(
    "facts",
    [ReleaseFacts(survivors=8, masking_set_size=7), ReleaseFacts(survivors=8, masking_set_size=11)],
)
def test_impossible_masking_sets_are_typed_errors(facts: ReleaseFacts) -> None:
    with pytest.raises(AccountingError) as caught:
        guaranteed_variance(removable(), facts)
    assert caught.value.reason == "masking-set-size"


def test_the_ring_holds_what_is_opened_not_what_is_removed() -> None:
    manifest = removable(5, 120, 5)
    check_manifest(manifest)
    plain = msgspec.structs.replace(
        manifest, noise=msgspec.structs.replace(manifest.noise, removable_drops=())
    )
    assert most_variance(manifest.noise, manifest.cohort) < most_variance(plain.noise, plain.cohort)
    # Noise beyond the ring's half range on every device, and a sum that fits: exact all the same.
    bits = 12
    total = with_checks(np.zeros(100, np.int64), bits, SLICE_LENGTH)
    total[0] = 0
    part = RemovablePart(secret(0, 0), 1 << 24)
    data = skellam(100, 100, seeded(1))
    noisy = data.copy()
    add_parts(noisy, [part])
    assert np.abs(noisy).max() > 1 << (bits - 1)
    add_into(total, with_checks(noisy, bits, SLICE_LENGTH), bits)
    remove_parts(total, [part], bits, 0, len(total))
    assert np.array_equal(centred(total[1:], bits), data)


@pytest.mark.parametrize(
    ("drops", "mechanism", "reason"),
    [
        ((2, 4), "skellam", "removable-drops"),
        ((2, 4, 6), "skellam", "removable-drops"),
        ((2, 2, 5), "skellam", "removable-drops"),
        ((0, 5), "skellam", "removable-drops"),
        ((-1, 5), "skellam", "removable-drops"),
        ((5,), "discrete-gaussian", "removable-mechanism"),
    ],
)
def test_levels_that_leave_drop_outs_uncovered_are_refused(
    drops: tuple[int, ...], mechanism: str, reason: str
) -> None:
    manifest = removable(drops=drops)
    noise = msgspec.structs.replace(manifest.noise, mechanism=mechanism)
    with pytest.raises(ConfigurationError) as caught:
        check_manifest(msgspec.structs.replace(manifest, noise=noise))
    assert caught.value.reason == reason


REFUSED = {
    "a part that is not there": Case(
        lambda: removable_part(in_parts(), 8, 2, Secret(bytes(32)), b"c"),
        "noise-level",
        None,
        2,
    ),
    "a part's seed": Case(
        lambda: removable_part(in_parts(), 8, 0, Secret(bytes(31)), b"c"),
        "seed-size",
        32,
        31,
    ),
    "half a slice": Case(
        lambda: remove_parts(np.zeros(9, "<u4"), (), 24, 0, 5),
        "noise-slice",
        "multiples of 65537, up to 9",
        (0, 5),
    ),
    "a masking set too small": Case(
        lambda: share_levels(in_parts().noise, in_parts().cohort, 4),
        "masking-set-size",
        (5, 10),
        4,
        error=AccountingError,
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_refusal_says_what_was_expected_and_what_was_found(name: str) -> None:
    refused(REFUSED[name], MechanismError)
