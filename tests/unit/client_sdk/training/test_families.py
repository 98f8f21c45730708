"""The table of models in docs/quickstart-sdk.md: what it says trains does, what it says does not is
refused with the reason that it names."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
import torch

from client_sdk import LoraTrainer, base_fingerprint
from client_sdk.errors import ContributionError
from tests.kits.families import FAMILIES, REFUSED, contribution_of, manifest_of, model_of
from tests.kits.tiny_training import job, tiny

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


def test_a_decoder_classifier_without_a_pad_token_needs_the_loop_and_is_told_so() -> None:
    """It finds the last token of each row of a pass by the padding."""
    model = model_of("LlamaForSequenceClassification")
    model.config.pad_token_id = None
    with pytest.raises(ContributionError, match="method='loop'"):
        contribution_of("LlamaForSequenceClassification", model)
    trainer, values = contribution_of("LlamaForSequenceClassification", model, method="loop")
    assert trainer.left_out == ()
    assert np.count_nonzero(values["gradient"]) > 10


def test_weights_that_are_not_in_memory_are_refused_with_the_way_out() -> None:
    """As accelerate leaves them, which lays them in a folder."""
    model = model_of("LlamaForCausalLM")
    manifest = manifest_of("LlamaForCausalLM", model)
    layer = model.model.layers[0].self_attn.q_proj
    layer.weight = torch.nn.Parameter(layer.weight.detach().to("meta"), requires_grad=False)
    with pytest.raises(ContributionError, match="without device_map") as caught:
        base_fingerprint(model)
    assert caught.value.reason == "model-offloaded"
    trainer = LoraTrainer(model, tiny()[1], [{"prompt": "What?", "answer": "That."}])
    with pytest.raises(ContributionError) as caught:
        trainer.contribute(job(manifest))
    assert caught.value.reason == "model-offloaded"
