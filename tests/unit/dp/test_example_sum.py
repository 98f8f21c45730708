"""What a sum over a device's examples refuses."""

from __future__ import annotations

import numpy as np
import pytest

from dp import example_sum
from dp.errors import MechanismError
from tests.kits.noisy_tasks import device_level
from tests.kits.said import Case, refused
from tests.kits.tasks import built, seeded

REFUSED = {
    "an example without privacy": Case(
        lambda: example_sum.ExampleSum(device_level(), seeded()), "privacy-missing"
    ),
    "a gradient of another shape": Case(
        lambda: example_sum.ExampleSum(built(), seeded()).add(np.zeros(63)),
        "segment-shape",
        (64,),
        (63,),
    ),
    "local noise elsewhere": Case(
        lambda: example_sum.noisy_total(built(), np.zeros(64, np.int64), seeded()), "privacy-mode"
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_refusal_says_what_was_expected_and_what_was_found(name: str) -> None:
    refused(REFUSED[name], MechanismError)
