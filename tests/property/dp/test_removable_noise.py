"""Whatever the rules and levels: enough noise is left, and exactly what the parts add up to."""

from __future__ import annotations

from fractions import Fraction
from itertools import pairwise

from hypothesis import given, settings
from hypothesis import strategies as st

from dp.noise.removable import drop_levels, kept_share, most_variance, share_levels
from secagg.context import removed_levels
from secagg.manifest import CohortRules, Noise


@st.composite
def tasks(draw: st.DrawFn) -> tuple[Noise, CohortRules]:
    silent = draw(st.integers(1, 40))
    survivors_min = silent + draw(st.integers(1, 300))
    most = draw(st.integers(1, 200))
    levels = draw(st.sets(st.integers(1, most), max_size=7)) | {most}
    rules = CohortRules(
        size_min=survivors_min,
        size_max=survivors_min + most,
        survivors_min=survivors_min,
        corrupt_max=0,
        silent_max=silent,
    )
    noise = Noise(
        mechanism="skellam",
        share_variance=draw(st.integers(1, 1 << 42)),
        honest_min=survivors_min - silent,
        removable_drops=tuple(sorted(levels)),
    )
    return noise, rules


@given(tasks(), st.data())
@settings(max_examples=300, deadline=None)
def test_what_is_left_is_at_least_the_target_and_little_more(
    task: tuple[Noise, CohortRules], data: st.DataObject
) -> None:
    noise, rules = task
    members = data.draw(st.integers(rules.survivors_min, rules.size_max))
    survivors = data.draw(st.integers(rules.survivors_min, members))
    shares = share_levels(noise, rules, members)
    parts = [shares[0], *(high - low for low, high in pairwise(shares))]
    assert min(parts) >= 0
    assert parts[0] >= 1
    kept = kept_share(noise, rules, members, survivors)
    removed = removed_levels(noise.removable_drops, members, survivors)
    assert sum(parts) - sum(parts[1 + level] for level in removed) == kept

    target = noise.share_variance * noise.honest_min
    counted = survivors - rules.silent_max
    assert counted * kept >= target
    # Never more than a share for the most drop-outs of the same level, rounded up.
    lost = members - survivors
    level = next(t for t in (0, *noise.removable_drops) if t >= lost)
    fewest = max(rules.survivors_min, members - level) - rules.silent_max
    assert kept < Fraction(target, fewest) + 1
    assert kept <= noise.share_variance
    assert survivors * kept <= most_variance(noise, rules)


@given(st.integers(0, 10_000), st.integers(1, 8))
def test_levels_cover_every_number_of_drop_outs(most: int, levels: int) -> None:
    drops = drop_levels(most, levels)
    assert list(drops) == sorted(set(drops))
    assert len(drops) == min(most, levels)
    if drops:
        assert drops[0] >= 1
        assert drops[-1] == most
        widths = [high - low for low, high in zip((0, *drops), drops, strict=False)]
        assert max(widths) - min(widths) <= 1
