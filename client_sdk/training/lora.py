"""The adapter as a flat vector, and as a folder that plain peft loads.

What devices send is the change of the trainable LoRA tensors from their initialisation. That
initialisation comes from the manifest's public seed through an integer stream, so every device
and every auditor has it bit for bit, whatever its numpy, torch or processor. This module needs
numpy and safetensors alone; only :func:`adapter_spec` and :func:`base_fingerprint` look at a
torch model.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from numpy.typing import NDArray
from safetensors import safe_open
from safetensors.numpy import save

from client_sdk import outputs
from client_sdk.errors import TaskRefusal
from secagg.errors import ConfigurationError, LocalProtocolError
from secagg.hashing import encode_parts
from secagg.lora.forms import initial_tensor, tensors_to_vector, vector_length, vector_to_tensors
from secagg.manifest import Adapter, AdapterKind, Manifest, TensorShape

if TYPE_CHECKING:
    from torch import nn

__all__ = [
    "adapter_spec",
    "base_fingerprint",
    "check_peft_folder",
    "initial_tensor",
    "tensors_to_vector",
    "vector_length",
    "vector_to_tensors",
    "write_peft_folder",
]

_WRAPPERS = {  # of torch, and where each keeps the model
    "OptimizedModule": "_orig_mod",
    "DataParallel": "module",
    "DistributedDataParallel": "module",
}
_LINEAR = ("torch.nn.modules.linear", "Linear")
_OWN_KINDS = "transformers.models."
_PREFIX = "base_model.model."  # peft's, in every adapter file
_HEADS = ("classifier", "score")  # peft saves and loads these with an adapter of type SEQ_CLS
_FINGERPRINT_CHUNK = 1 << 22
_CONFIG, _WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
_MARK = "secagg_config_sha256"  # in the weights' metadata: peft itself would not write it


def write_peft_folder(
    path: str | os.PathLike[str],
    manifest: Manifest,
    vector: NDArray[Any],
    *,
    base: nn.Module | Any | None = None,
    base_name: str | None = None,
) -> Path:
    """Write ``adapter_config.json`` and ``adapter_model.safetensors`` as peft itself would.

    ``PeftModel.from_pretrained(base, path)`` then gives the global model. A new folder appears
    whole or not at all. In a folder that is there, an adapter that this function wrote is replaced;
    anything else is refused.

    Args:
        base: the task's base model. It is needed for a sequence classifier, whose folder is of
            peft's type ``SEQ_CLS`` and holds the head, which was frozen; without it, or with a
            language model, the type is ``CAUSAL_LM``.
        base_name: hub id or folder from which the caller loaded the base model, where loaders that
            are given this folder alone will look (``AutoPeftModelForCausalLM``). None:
            ``base.name_or_path``, or no name at all. The manifest's own name is not used: whoever
            wrote it may have made it up. It stands, with the base model's fingerprint, in the
            metadata of the weights.

    Raises:
        LocalProtocolError: ``no-adapter`` if the manifest trains no adapter; ``adapter-length``;
            ``classifier-head`` for a classifier whose head peft would not find.
        OutputError: ``path`` is taken or cannot be written; nothing there was changed.
    """
    if manifest.adapter is None or manifest.base_model is None:
        raise LocalProtocolError("no-adapter", "The task of this manifest trains no adapter.")
    adapter = manifest.adapter
    head = None if base is None else _classifier_head(base)
    tensors = vector_to_tensors(adapter, vector) | (head or {})
    config = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM" if head is None else "SEQ_CLS",
        "base_model_name_or_path": base_name or getattr(base, "name_or_path", None) or None,
        "r": adapter.rank,
        "lora_alpha": adapter.alpha,
        "lora_dropout": 0.0,
        "target_modules": sorted(adapter.target_modules),
        "bias": "none",
        "fan_in_fan_out": False,
        "inference_mode": True,
        "init_lora_weights": True,
        "use_dora": False,
        "use_rslora": False,
    } | ({} if head is None else {"modules_to_save": list(_HEADS)})
    encoded = json.dumps(config, indent=2).encode() + b"\n"
    metadata = {
        "format": "pt",
        _MARK: hashlib.sha256(encoded).hexdigest(),
        "secagg_base_model": manifest.base_model.name,
    }
    if fingerprint := getattr(manifest.base_model, "fingerprint", b""):
        metadata["secagg_base_model_fingerprint"] = fingerprint.hex()
    weights = save(tensors, metadata=metadata)
    return outputs.write_folder(path, {_WEIGHTS: weights, _CONFIG: encoded}, _is_our_adapter)


def check_peft_folder(path: str | os.PathLike[str]) -> None:
    """See, before any work, that :func:`write_peft_folder` may write there.

    Raises:
        OutputError: as there.
    """
    outputs.check_folder(path, frozenset((_WEIGHTS, _CONFIG)), _is_our_adapter)


def _is_our_adapter(folder: Path) -> bool:
    """Whether both files are as they were written here: neither edited nor trained on by others."""
    config, weights = folder / _CONFIG, folder / _WEIGHTS
    if config.is_symlink() or weights.is_symlink():
        return False
    with safe_open(weights, "numpy") as file:
        marked = (file.metadata() or {}).get(_MARK)
    return bool(marked == hashlib.sha256(config.read_bytes()).hexdigest())


def _classifier_head(base: Any) -> dict[str, NDArray[Any]] | None:
    """The tensors of a sequence classifier's head, by peft's names; None for another model."""
    if not type(base).__name__.endswith("ForSequenceClassification"):
        return None
    names = tuple(f"{name}." for name in _HEADS)
    state = base.state_dict()
    head = {
        _PREFIX + name: tensor.detach().cpu().float().numpy().copy()
        for name, tensor in state.items()
        if name.startswith(names)
    }
    if not head:
        raise LocalProtocolError(
            "classifier-head",
            f"{type(base).__name__} has no head where peft looks for one.",
            expected=" or ".join(_HEADS),
            found=sorted({name.partition(".")[0] for name in state}),
        )
    return head


def adapter_spec(
    model: nn.Module | Any,
    kind: AdapterKind,
    rank: int,
    alpha: int,
    target_modules: Sequence[str],
    seed: bytes,
    sketch: int = 0,
) -> Adapter:
    """Describe the adapter for a model, or for a transformers config (built without weights).

    Tensors are listed layer by layer in the model's own order, A before B, under the names of
    peft's files. ``ffa-lora`` (Sun et al., arXiv 2403.12313) and ``fedsvd`` train B alone.

    Args:
        sketch: columns of a layer's sketch for ``product``: the sum of the devices' ranks, plus
            ``rank``, for an exact sum.

    Raises:
        ConfigurationError: ``adapter-targets`` if a target matches no linear layer;
            ``adapter-tied`` if one shares its weights with another part of the model;
            ``adapter-rank``.
    """
    if not 1 <= rank <= 1024:
        raise ConfigurationError(
            "adapter-rank", "The rank is out of range.", expected="1..1024", found=rank
        )
    model = unwrapped(model) if hasattr(model, "named_modules") else _skeleton(model)
    a_shapes, b_shapes, order = {}, {}, []
    found: set[str] = set()
    for name, module in model.named_modules():
        target = name.rpartition(".")[2]
        size = _linear_size(module)
        if target not in target_modules or size is None:
            continue
        found.add(target)
        name = name.removeprefix(_PREFIX)
        a_shapes[name] = TensorShape(
            name=f"{_PREFIX}{name}.lora_A.weight", rows=rank, columns=size[0]
        )
        b_shapes[name] = TensorShape(
            name=f"{_PREFIX}{name}.lora_B.weight", rows=size[1], columns=rank
        )
        order.append(name)
    if found != set(target_modules):
        raise ConfigurationError(
            "adapter-targets",
            "Some targets of the adapter are not linear layers of this model.",
            expected=sorted(target_modules),
            found=sorted(found),
            remedy=candidates_said(model),
        )
    if tied := tied_targets(model, target_modules):
        raise ConfigurationError(
            "adapter-tied",
            f"Weights of {', '.join(sorted(tied))} are also those of another part of this model "
            "(of its embedding, as a rule), which a merged adapter would move too.",
            expected="targets with weights of their own",
            found=sorted(target_modules),
            remedy=f"Leave out {', '.join(sorted(tied))}.",
        )
    if kind in ("ffa-lora", "fedsvd"):
        trainable = tuple(b_shapes[name] for name in order)
        frozen = tuple(a_shapes[name] for name in order)
    else:
        trainable = tuple(s for name in order for s in (a_shapes[name], b_shapes[name]))
        frozen = ()
    return Adapter(
        kind=kind,
        rank=rank,
        alpha=alpha,
        target_modules=tuple(target_modules),
        seed=seed,
        trainable=trainable,
        frozen=frozen,
        sketch=sketch,
    )


def unwrapped(model: Any) -> Any:
    """The model within ``torch.compile(model)`` or a wrapper of data-parallel training."""
    while (inner := _WRAPPERS.get(type(model).__name__)) is not None:
        model = getattr(model, inner)
    return model


def tied_targets(model: Any, target_modules: Sequence[str]) -> set[str]:
    """Those targets whose weights another module uses too.

    Merging adds ``B A`` to the weight itself, and so to every use of it (peft, issue 2018).
    """
    users: dict[int, set[str]] = {}
    for name, module in model.named_modules(remove_duplicate=False):
        weight = getattr(module, "weight", None)
        if weight is not None:
            users.setdefault(id(weight), set()).add(name)
    shared = set().union(*(names for names in users.values() if len(names) > 1), set())
    if getattr(getattr(model, "config", None), "tie_word_embeddings", False):
        head = model.get_output_embeddings() if hasattr(model, "get_output_embeddings") else None
        shared |= {name for name, module in model.named_modules() if module is head}
    return {name.rpartition(".")[2] for name in shared} & set(target_modules)


def candidates_said(model: Any) -> str:
    """A sentence with the layers that an adapter may have in this model."""
    names = linear_targets(model)
    known = ", ".join(sorted(names - tied_targets(model, sorted(names))))
    if not known:
        return "This model has no plain linear layer: load it without quantisation."
    return f"Name linear layers by the last part of their path; this model has {known}."


def linear_targets(model: Any) -> set[str]:
    """The last parts of the paths of layers that take an adapter; some may be tied."""
    return {name.rpartition(".")[2] for name, m in model.named_modules() if _linear_size(m)}


def _linear_size(module: Any) -> tuple[int, int] | None:
    """Inputs and outputs of a plain linear layer, or of GPT-2's transposed one; else None.

    Plain is torch's own, and what a model of transformers derives from it (``FalconLinear``). Other
    libraries' are not: their weights may be quantised, or used past the layer.
    """
    kind = type(module)
    if kind.__name__ == "Conv1D" and hasattr(module, "nf"):
        return int(module.nx), int(module.nf)
    if not any((k.__module__, k.__name__) == _LINEAR for k in kind.__mro__):
        return None
    if (kind.__module__, kind.__name__) != _LINEAR and not kind.__module__.startswith(_OWN_KINDS):
        return None
    return int(module.in_features), int(module.out_features)


def _skeleton(config: Any) -> nn.Module:
    import torch
    from transformers import AutoModelForCausalLM

    build: Any = AutoModelForCausalLM.from_config
    with torch.device("meta"):
        model: nn.Module = build(config)
    return model


def base_fingerprint(model: nn.Module) -> bytes:
    """SHA-256 over names, shapes and values of the base model's parameters; 32 bytes.

    Values are hashed as little-endian float32, so a checkpoint has one fingerprint whether it was
    loaded in its own half precision or in float32. Tensors of an injected adapter are left out and
    tied weights count once.

    Raises:
        TaskRefusal: ``model-offloaded``: a tensor is on no device.
    """
    model = unwrapped(model)
    hasher = hashlib.sha256(encode_parts("base-model"))
    for name, parameter in model.named_parameters():
        if ".lora_" in name:
            continue
        name = name.removeprefix(_PREFIX).replace(".base_layer.", ".")
        if parameter.is_meta:
            raise TaskRefusal(
                "model-offloaded",
                "Weights of the model are not in memory.",
                expected="every tensor on the CPU or a GPU",
                found=f"{name} on no device",
                remedy="Load the whole model, without device_map and offload folder.",
            )
        shape = ",".join(map(str, parameter.shape))
        hasher.update(encode_parts("tensor", name.encode(), shape.encode()))
        flat = parameter.detach().reshape(-1)
        for start in range(0, flat.numel(), _FINGERPRINT_CHUNK):
            chunk = flat[start : start + _FINGERPRINT_CHUNK].float().cpu().numpy()
            hasher.update(chunk.astype("<f4", copy=False).data)
    return hasher.digest()
