"""The table of models in docs/quickstart-sdk.md: what it says trains does, what it says does not is
refused with the reason that it names."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest

from client_sdk.errors import ContributionError
from tests.kits.families import FAMILIES, REFUSED, contribution_of

PAGE = (Path(__file__).resolve().parents[4] / "docs" / "quickstart-sdk.md").read_text()
ROWS = {
    name: (tuple(targets.split(",")), said)
    for name, targets, said in re.findall(r"^\| `(\w+)` \| `([\w,]+)` \| (.+) \|$", PAGE, re.M)
}
pytestmark = [
    pytest.mark.filterwarnings("ignore:Full backward hook is firing"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore:fan_in_fan_out is set to False"),
]


def test_the_page_lists_what_is_tried_here() -> None:
    trains = {name: (family.targets, "yes") for name, family in FAMILIES.items()}
    refused = {
        name: (family.targets, f"no: `{reason}`") for name, (family, reason) in REFUSED.items()
    }
    assert trains | refused == ROWS


@pytest.mark.parametrize("name", FAMILIES)
def test_a_model_that_trains_gives_a_gradient_and_leaves_nothing_out(name: str) -> None:
    trainer, values = contribution_of(name)
    assert trainer.left_out == ()
    assert np.count_nonzero(values["gradient"]) > 10


@pytest.mark.parametrize("name", REFUSED)
def test_a_model_that_does_not_is_refused_with_a_reason(name: str) -> None:
    with pytest.raises(ContributionError) as caught:
        contribution_of(name)
    assert caught.value.reason == REFUSED[name][1]
