"""No coins but ours: a pass of the model is a function of its weights and its rows.

Dropout, layer drop, stochastic depth, router jitter and noisy embeddings draw from torch's
generator, some models from numpy's or Python's. Anyone may have seeded those, and their state tells
how many examples went before: one more example would then change every other's gradient, which no
clip bounds. So passes run in evaluation mode with every such rate at zero, and
``client_sdk.training.self_test`` refuses what draws all the same.
"""

from __future__ import annotations

import random
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import nn
from transformers import PretrainedConfig
from transformers.modeling_layers import GradientCheckpointingLayer

_RATE = re.compile("drop|jitter|noise")  # in names of attributes, as attn_pdrop and layerdrop


# Trainers of one process share the generators: what one puts back, another would see move.
GENERATORS = threading.RLock()


@contextmanager
def without_coins(model: nn.Module, *, training: bool = False) -> Iterator[None]:
    """Evaluation mode and every rate of dropout, jitter and noise at zero; then all as it was.

    Args:
        training: leave in training mode what needs it for gradients: layers under gradient
            checkpointing, recurrent layers (cuDNN) and those that own trained tensors (Opacus).
            None of them draws once its rates are zero.
    """
    modes = [(module, module.training) for module in model.modules()]
    rates = list(_rates(model))
    try:
        # Not model.eval(), which a model may have overridden to do more than that.
        for module, _ in modes:
            module.training = training and _needs_training_mode(module)
        for attributes, name, _ in rates:
            attributes[name] = 0.0
        yield
    finally:
        for attributes, name, rate in rates:
            attributes[name] = rate
        for module, mode in modes:
            module.training = mode


def _needs_training_mode(module: nn.Module) -> bool:
    if isinstance(module, GradientCheckpointingLayer):
        return module.gradient_checkpointing
    own = module.parameters(recurse=False)
    return isinstance(module, nn.RNNBase) or any(p.requires_grad for p in own)


def _rates(model: nn.Module) -> Iterator[tuple[dict[str, Any], str, float]]:
    """What modules and their configurations call a rate, as (attributes, name, value)."""
    configs: dict[int, PretrainedConfig] = {}
    for module in model.modules():
        if isinstance(module, nn.modules.dropout._DropoutNd):
            yield vars(module), "p", module.p
        yield from _named(vars(module))
        _collect(vars(module).get("config"), configs)
    for config in configs.values():
        yield from _named(vars(config))


def _named(attributes: dict[str, Any]) -> Iterator[tuple[dict[str, Any], str, float]]:
    for name, value in attributes.items():
        if isinstance(value, float) and value != 0.0 and _RATE.search(name):
            yield attributes, name, value


def _collect(config: object, found: dict[int, PretrainedConfig]) -> None:
    """A configuration and those inside it, each once."""
    if isinstance(config, PretrainedConfig) and id(config) not in found:
        found[id(config)] = config
        for inner in vars(config).values():
            _collect(inner, found)


def generator_states(model: nn.Module) -> dict[str, bytes]:
    """The state of every generator that a pass might draw from, by name."""
    states = {
        "random": repr(random.getstate()).encode(),
        "numpy.random": _encoded(np.random.get_state(legacy=False)),
    }
    for name, generator in _torch_generators(model).items():
        states[name] = generator.get_state().numpy().tobytes()
    return states


def _encoded(state: object) -> bytes:
    """Of numpy's generators, whose states are arrays and numbers in dictionaries."""
    if isinstance(state, dict):
        return b"".join(repr(name).encode() + _encoded(value) for name, value in state.items())
    return state.tobytes() if isinstance(state, np.ndarray) else repr(state).encode()


@contextmanager
def torch_states_kept(model: nn.Module, *, other: bool = False) -> Iterator[None]:
    """torch's generators are put back at the end; ``other``: seeded unlike before meanwhile.

    One thread at a time, under ``GENERATORS``.
    """
    with GENERATORS:
        generators = _torch_generators(model).values()
        before = [generator.get_state() for generator in generators]
        try:
            for generator in generators if other else ():
                generator.manual_seed((generator.initial_seed() + 1) % 2**63)
            yield
        finally:
            for generator, state in zip(generators, before, strict=True):
                generator.set_state(state)


def _torch_generators(model: nn.Module) -> dict[str, torch.Generator]:
    """torch's global generators on the CPU and on each device that holds a part of the model."""
    found = {"torch": torch.default_generator}
    for device in {parameter.device for parameter in model.parameters()}:
        if device.type == "mps":
            found["torch.mps"] = torch.mps._get_default_mps_generator()
        elif device.type not in ("cpu", "meta"):
            known = torch.get_device_module(device).default_generators
            index = device.index or 0
            found[f"torch {device.type}:{index}"] = known[index]
    return found
