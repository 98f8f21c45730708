"""Shares that the aggregator takes, and what it says of those that open to nothing."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from secagg.messages import (
    RevealedShare,
    Unmask,
)
from secagg.secret import Secret
from secagg.server import unmask
from tests.kits.asked import (
    CONFIG,
    CTX,
    EVERYONE,
    FACTS,
    FIRST,
    INDEX,
    OTHERS,
    SELF,
    STATES,
    UNMASK,
)
from tests.kits.said import Case, refused

DUE = [(owner, 0) for owner in OTHERS]  # every neighbour survived: shares of their self seeds


def take_unmask(shares: tuple[RevealedShare, ...]) -> None:
    unmask.take_unmask(STATES["unmasking"], INDEX, Unmask(CTX, INDEX, shares))


def plan_from_shares(value: int, **facts: Any) -> None:
    """Open from shares of a constant polynomial, as dealers who lie could deal them."""
    share = Secret(value.to_bytes(33, "little"))
    shares = {
        holder: {(owner, 0): share for owner in EVERYONE if owner != holder} for holder in EVERYONE
    }
    state = STATES["unmasking"]
    unmask.make_plan(CONFIG, replace(state, shares=shares, facts=replace(state.facts, **facts)))


REFUSED: dict[str, Case] = {
    "a share missing": Case(
        lambda: take_unmask(UNMASK.shares[1:]), "unmask-shares", DUE, DUE[1:], culprit=SELF
    ),
    "a share of the other kind": Case(
        lambda: take_unmask((RevealedShare(FIRST, 1, UNMASK.shares[0].share), *UNMASK.shares[1:])),
        "unmask-shares",
        DUE,
        [(FIRST, 1), *DUE[1:]],
        culprit=SELF,
    ),
    "shares that open to no secret": Case(
        lambda: plan_from_shares(1 << 256),
        "dealer-self-seed",
        culprit=FACTS.identity(0),
        error=unmask.Convicted,
    ),
    "shares that open to another seed": Case(
        lambda: plan_from_shares(1),
        "dealer-self-seed",
        culprit=FACTS.identity(0),
        error=unmask.Convicted,
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_device_that_breaks_the_rules_is_told_how_and_named(name: str) -> None:
    refused(REFUSED[name])
