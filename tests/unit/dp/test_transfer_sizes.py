"""What a model file of a task holds, and the most bytes that it may have."""

from __future__ import annotations

from dp.contracts import AdaptiveClipSpec, BudgetSpec
from dp.transfer_sizes import MODEL_HEADER_BYTES, download_size, model_tensors
from tests.kits.quadratics import LENGTH, quadratic_spec
from tests.kits.tasks import built

VECTOR = ("float32", (LENGTH,))


def test_a_model_file_holds_what_its_algorithm_keeps() -> None:
    plain = built(quadratic_spec("fedavg"))
    assert model_tensors(plain) == {"vector": VECTOR}
    assert download_size(plain) == 4 * LENGTH + MODEL_HEADER_BYTES
    scaffold = built(quadratic_spec("scaffold"))
    assert model_tensors(scaffold) == {"vector": VECTOR, "control": VECTOR}
    assert download_size(scaffold) == 2 * 4 * LENGTH + MODEL_HEADER_BYTES


def test_a_clip_that_adapts_is_in_the_file() -> None:
    spec = quadratic_spec(
        "fednova",
        budget=BudgetSpec(max_epsilon=None, releases_max=4),
        adaptive_clip=AdaptiveClipSpec(),
        device_noise_multiplier=1.0,
        removable_noise=False,
    )
    assert model_tensors(built(spec)) == {"vector": VECTOR, "clip": ("float64", (1,))}
