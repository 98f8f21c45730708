"""How much memory a round of training takes, said before it starts.

A device that would run out is better told so than killed. The estimate counts what one process of
``LoraTrainer`` holds at its peak: the frozen base weights, the adapter with its per-example
gradients, what autograd keeps of one pass, the logits, and the libraries themselves.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from secagg.errors import ConfigurationError
from secagg.manifest import Manifest

Precision = Literal["float32", "bfloat16"]

_BYTES = {"float32": 4, "bfloat16": 2}
_LIBRARIES_BYTES = 420 << 20  # torch, transformers, peft and opacus after import (measured)
# Numbers that autograd keeps per token and layer with frozen weights: norms, queries, attention
# and residuals (hidden size each), gate, up, activation and product (MLP size each).
_HIDDEN_SAVED = 9
_MLP_SAVED = 4
_LOGITS_COPIES = 4  # logits, log-softmax, and the gradients of both
_EXPERTS = ("num_local_experts", "num_experts", "n_routed_experts")  # names in configs
_GRADIENT_COPIES = 4  # per example: grad_sample, float64 and integers of the one being added


@dataclass(frozen=True)
class MemoryPlan:
    """``mode``: ``hooks`` runs ``micro_batch`` examples at once; ``loop`` one after the other."""

    peak_bytes: int
    mode: Literal["hooks", "loop"]
    micro_batch: int


def plan_memory(
    config: Any,
    *,
    rank: int = 4,
    targets: Sequence[str] = ("q_proj", "v_proj"),
    batch: int = 4,
    length: int = 64,
    precision: Precision = "float32",
    available_bytes: int | None = None,
) -> MemoryPlan:
    """The largest micro-batch up to ``batch`` that fits, and what it takes.

    Args:
        config: of a transformers Llama-like model.
        length: tokens per example, at most.
        available_bytes: None: no limit, ``batch`` is taken as it is.

    Raises:
        ConfigurationError: ``memory-too-small`` if not even one example at a time fits;
            ``planner-model`` if the config does not tell the sizes.
    """
    for micro_batch in range(batch, 0, -1):
        peak = peak_bytes(
            config,
            rank=rank,
            targets=targets,
            micro_batch=micro_batch,
            length=length,
            precision=precision,
        )
        if available_bytes is None or peak <= available_bytes:
            return MemoryPlan(peak, "hooks" if micro_batch > 1 else "loop", micro_batch)
    raise ConfigurationError(
        "memory-too-small",
        "Training one example at a time would not fit.",
        expected=f"{peak} bytes",
        found=f"{available_bytes} bytes",
        remedy="Use shorter examples, a smaller model, or half precision.",
    )


def task_bytes(
    config: Any, manifest: Manifest, *, micro_batch: int, precision: Precision
) -> int | None:
    """Predicted peak of a task's training, and a tenth: measured ones were up to 9 % above it.

    Args:
        config: of the base model.
        micro_batch: most examples in one pass; the manifest may ask for fewer.

    Returns:
        Bytes; None for a task that trains no adapter, and for a model that cannot be planned, such
        as one of experts.
    """
    if manifest.adapter is None or manifest.training is None:
        return None
    if any(getattr(config, name, None) for name in _EXPERTS):
        return None
    try:
        peak = peak_bytes(
            config,
            rank=manifest.adapter.rank,
            targets=manifest.adapter.target_modules,
            micro_batch=min(micro_batch, manifest.training.micro_batch),
            length=manifest.training.max_tokens,
            precision=precision,
        )
    except ConfigurationError:
        return None
    return peak + peak // 10


def peak_bytes(
    config: Any,
    *,
    rank: int,
    targets: Sequence[str],
    micro_batch: int,
    length: int,
    precision: Precision,
) -> int:
    """Predicted peak of resident memory of the training process.

    Raises:
        ConfigurationError: ``planner-model``.
    """
    try:
        hidden = int(config.hidden_size)
        mlp = int(config.intermediate_size)
        layers = int(config.num_hidden_layers)
        vocabulary = int(config.vocab_size)
        heads = int(config.num_attention_heads)
        kv_heads = int(getattr(config, "num_key_value_heads", None) or heads)
        head = int(getattr(config, "head_dim", None) or hidden // heads)
    except (AttributeError, TypeError) as error:
        raise ConfigurationError(
            "planner-model",
            f"The model's config does not tell its sizes: {error}.",
            remedy="Only models with Llama's names of sizes can be planned.",
        ) from error
    query, key = heads * head, kv_heads * head
    shapes = {
        "q_proj": (hidden, query),
        "k_proj": (hidden, key),
        "v_proj": (hidden, key),
        "o_proj": (query, hidden),
        "gate_proj": (hidden, mlp),
        "up_proj": (hidden, mlp),
        "down_proj": (mlp, hidden),
    }
    linear = sum(rows * columns for rows, columns in shapes.values())
    embeddings = vocabulary * hidden * (1 if config.tie_word_embeddings else 2)
    weights = layers * (linear + 2 * hidden) + hidden + embeddings
    adapter = layers * rank * sum(sum(shapes[t]) for t in targets if t in shapes)
    tokens = micro_batch * length
    size = _BYTES[precision]
    saved = tokens * layers * (_HIDDEN_SAVED * hidden + _MLP_SAVED * mlp) * size
    logits = tokens * vocabulary * _LOGITS_COPIES * 4
    gradients = adapter * (micro_batch + _GRADIENT_COPIES) * 4
    return _LIBRARIES_BYTES + weights * size + saved + logits + gradients
