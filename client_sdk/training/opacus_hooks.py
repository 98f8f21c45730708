"""Opacus's per-example gradients, without what its import and its hooks do to the app's process."""

from __future__ import annotations

import importlib
import logging
from typing import Any

import torch
from torch import Tensor, nn

_FORMAT = "%(asctime)s:%(levelname)s:%(message)s"  # of the handler that Opacus adds


def _without_root_handler(name: str) -> Any:
    """Import a module that calls ``logging.basicConfig``; the root logger keeps its own handlers.

    Else an app that configures logging later would be ignored.
    """
    before = list(logging.root.handlers)
    module = importlib.import_module(name)
    for handler in [handler for handler in logging.root.handlers if handler not in before]:
        if handler.formatter is not None and handler.formatter._fmt == _FORMAT:
            logging.root.removeHandler(handler)
    return module


_hooks = _without_root_handler("opacus.grad_sample")


class QuietHooks:
    """Opacus's hooks on a model of which the layers that are trained may be the first ones.

    Of a layer whose input needs no gradient torch says so at each pass by a warning. Here such a
    layer sees a leaf that needs one; the gradients of its own weights are the same.
    """

    def __init__(self, model: nn.Module) -> None:
        self._opacus = _hooks.GradSampleHooks(model, loss_reduction="sum", strict=True)
        self._inputs = [
            module.register_forward_pre_hook(_with_gradient)
            for module in model.modules()
            if any(parameter.requires_grad for parameter in module.parameters(recurse=False))
        ]

    def cleanup(self) -> None:
        for handle in self._inputs:
            handle.remove()
        self._opacus.cleanup()


def _with_gradient(_module: nn.Module, arguments: tuple[Any, ...]) -> tuple[Any, ...] | None:
    if not arguments or not torch.is_grad_enabled():
        return None
    first = arguments[0]
    if not isinstance(first, Tensor) or first.requires_grad or not first.is_floating_point():
        return None
    return (first.detach().requires_grad_(), *arguments[1:])
