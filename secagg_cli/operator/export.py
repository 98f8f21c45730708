"""A task's current global model as a peft folder, for whoever serves it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from secagg.errors import ConfigurationError
from secagg_cli.output import CommandError

if TYPE_CHECKING:
    import numpy as np

    from secagg.manifest import Manifest


def read_vector(model_file: bytes) -> np.ndarray:
    """The global vector (float32[d]) in an aggregator's model file."""
    from safetensors.numpy import load

    vector: np.ndarray = load(model_file)["vector"]
    return vector


def is_model_file(path: Path) -> bool:
    """Whether this is a global vector of some aggregator's task."""
    from safetensors import safe_open

    with safe_open(path, "numpy") as file:
        names, metadata = file.keys(), file.metadata() or {}
    return "vector" in names and {"task", "version"} <= metadata.keys()


def write_adapter(
    folder: Path, server: str, task: str, model_file: bytes, model: str | None
) -> dict[str, Any]:
    """Write the folder; returns its config, which peft reads.

    The manifest is the ledger's; the base model is loaded, for a classifier's head belongs into
    the folder, and to see that it is the task's.

    Args:
        model: the base model's name or folder; None: as the manifest names it.

    Raises:
        CommandError: ``ledger-incomplete``, ``task-without-model``, ``base-model``.
        ConfigurationError: the base model cannot be had.
    """
    from client_sdk.training.lora import base_fingerprint, write_peft_folder
    from secagg_cli.models.cache import ensure_model, hub_id, load_model

    manifest = _manifest(server, task)
    if manifest.base_model is None:
        raise CommandError("task-without-model", f"The task {task} trains no model.")
    name = model or manifest.base_model.name
    try:
        base_folder = ensure_model(name)
        base: Any = load_model(base_folder)[0]
    except ConfigurationError as error:
        if model is not None or error.reason != "model-unknown":
            raise
        raise CommandError(
            "base-model",
            f"The task names its base model {name!r}, which is not known here.",
            remedy="Give its folder with --model.",
        ) from error
    found, expected = base_fingerprint(base), manifest.base_model.fingerprint
    if found != expected:
        raise CommandError(
            "base-model",
            f"This is not the base model of the task: fingerprint {found.hex()}, expected "
            f"{expected.hex()}.",
            remedy="Give its folder with --model.",
        )
    written = write_peft_folder(
        folder,
        manifest,
        read_vector(model_file),
        base=base,
        base_name=hub_id(name) or hub_id(str(base_folder)) or str(base_folder),
    )
    config: dict[str, Any] = json.loads((written / "adapter_config.json").read_text("utf-8"))
    return config


def _manifest(server: str, task: str) -> Manifest:
    from secagg_cli.audit.command import audit_ledger
    from secagg_cli.operator.client import server_info

    audit = audit_ledger(server.rstrip("/") + "/ledger", server_info(server).ledger_verifier)
    for audited in audit.tasks:
        if audited.manifest.task == task:
            return audited.manifest
    raise CommandError("ledger-incomplete", f"The ledger does not know the task {task!r}.")
