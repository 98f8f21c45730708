"""Describe a model on disk for a task: the base model's fingerprint and the adapter's tensors."""

from __future__ import annotations

import secrets
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from secagg.manifest import Adapter, BaseModel
    from secagg_cli.models.presets import AdapterPreset


def public_name(model: str) -> str:
    """A model's name, never a path of this machine: the hub's id, or a folder's own name."""
    from secagg_cli.models.cache import hub_id

    folder = Path(model)
    if known := hub_id(model):
        return known
    return folder.resolve().name if folder.is_dir() or folder.is_absolute() else model


def describe(model: Any, name: str, adapter: AdapterPreset) -> tuple[BaseModel, Adapter]:
    """What a task says of a loaded transformers model.

    Args:
        name: under which devices look for the model, or its folder, of which only the last part
            is said: a ledger is public for good. The fingerprint tells whether it is the same.

    Raises:
        ConfigurationError: ``adapter-targets`` or ``adapter-rank``.
    """
    from client_sdk.training.lora import adapter_spec, base_fingerprint
    from secagg.manifest import BaseModel

    return (
        BaseModel(name=public_name(name), fingerprint=base_fingerprint(model)),
        adapter_spec(
            model,
            adapter.kind,
            adapter.rank,
            adapter.alpha,
            adapter.target_modules,
            secrets.token_bytes(32),
            adapter.sketch,
        ),
    )
