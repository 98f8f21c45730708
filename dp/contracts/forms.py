"""What each form of LoRA can be combined with; ``secagg.lora.forms`` says what the forms are."""

from __future__ import annotations

from dp.contracts.algorithms.declaration import PLAIN_FORMS
from dp.contracts.algorithms.registry import algorithm_of, names_where
from dp.contracts.rules import refuse
from secagg.errors import ConfigurationError, LocalProtocolError
from secagg.lora.forms import pairs
from secagg.manifest import Adapter, Manifest


def check_form(manifest: Manifest, adapter: Adapter) -> None:
    """Refuse a form that the algorithm, the optimiser, or the privacy mode would make wrong.

    Raises:
        ConfigurationError: ``sketch-size``, ``moments-across-factors``, ``adapter-algorithm``,
            ``product-example-privacy``, ``adapter-form`` or ``adapter-pairs``.
    """
    _check_sketch(adapter)
    if adapter.kind in PLAIN_FORMS:
        return
    if manifest.training is not None and manifest.training.server_optimiser != "sgd":
        refuse(
            "moments-across-factors",
            "Moments of one release mean nothing for the factors of the next.",
            expected="server_optimiser = 'sgd'",
            found=manifest.training.server_optimiser,
            remedy="Use the plain optimiser, or the form ffa-lora.",
        )
    if adapter.kind not in algorithm_of(manifest).forms:
        refuse(
            "adapter-algorithm",
            f"{manifest.algorithm} does not go with the adapter form {adapter.kind}.",
            expected=names_where(lambda algorithm: adapter.kind in algorithm.forms),
            found=manifest.algorithm,
            remedy="Use one of these, or the form ffa-lora.",
        )
    if adapter.kind == "product" and manifest.example_privacy is not None:
        refuse(
            "product-example-privacy",
            "Sketches of a product are not sums of clipped gradients.",
            expected="device-level privacy or none",
            found=manifest.example_privacy.mode,
            remedy="Use fedsvd or ffa-lora for example-level privacy.",
        )
    _check_tensors(adapter)


def _check_sketch(adapter: Adapter) -> None:
    wanted = adapter.kind == "product"
    if wanted != (adapter.sketch > 0) or not 0 <= adapter.sketch <= 1 << 14:
        refuse(
            "sketch-size",
            "Sketches have columns in the form product, and only there.",
            expected="1 to 16384" if wanted else 0,
            found=adapter.sketch,
            remedy="The sum of the devices' ranks plus the task's makes the sum exact.",
        )


def _check_tensors(adapter: Adapter) -> None:
    try:
        pairs(adapter)
    except LocalProtocolError as error:
        raise ConfigurationError("adapter-pairs", f"The tensors are not pairs: {error}") from error
    only_b = all(".lora_B." in shape.name for shape in adapter.trainable)
    if (adapter.kind == "fedsvd") != only_b or (adapter.kind != "fedsvd" and adapter.frozen):
        refuse(
            "adapter-form",
            f"The trained tensors are not those of {adapter.kind}.",
            expected="every B" if adapter.kind == "fedsvd" else "every A and B",
            found=[shape.name for shape in adapter.trainable[:4]],
        )
