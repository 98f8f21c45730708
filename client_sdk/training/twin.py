"""The app's model stays as it is: training works on a twin, other modules over the same weights.

A twin has modules, settings, configuration and buffers of its own, so the adapter, modes, rates of
dropout, hooks and ``requires_grad`` that training needs are the twin's alone, whatever happens. Its
parameters are views of the app's: they take no memory, and nothing here writes to them.
"""

from __future__ import annotations

import copy
import functools
import types
from collections.abc import Iterator
from typing import Any, TypeVar

from torch import Tensor, nn

from client_sdk.errors import TaskRefusal

_M = TypeVar("_M", bound=nn.Module)


def twin_of(model: _M) -> _M:
    """Modules as those of ``model``, over its own weights, all frozen.

    Weights that are tied in ``model`` are tied in the twin. Hooks and patched methods see the
    twin's modules in place of the app's, and are the app's own functions and objects but for that.
    A tensor that a module keeps beside its parameters and buffers, such as a cache, is shared,
    without what autograd knows of it.

    Raises:
        TaskRefusal: ``model-copy``: a module holds what cannot be copied, such as a lock.
    """
    twins: dict[int, Any] = {}
    for module in model.modules():
        for parameter in module.parameters(recurse=False):
            twins[id(parameter)] = nn.Parameter(parameter.detach(), requires_grad=False)
        for value in vars(module).values():
            if isinstance(value, Tensor):
                twins[id(value)] = value.detach()
        for hooks in _hooks(module):
            twins |= {id(hook): hook for hook in hooks.values()}
    try:
        twin = copy.deepcopy(model, twins)
    except Exception as error:
        raise TaskRefusal(
            "model-copy",
            "The model cannot be copied, and the app's own one is not trained.",
            found=f"{type(error).__name__}: {error}",
            remedy="Give the model as it was loaded, without locks, files or caches in its "
            "modules.",
        ) from error
    for module in twin.modules():
        for attributes in (vars(module), *_hooks(module)):
            for name, value in attributes.items():
                attributes[name] = _rebound(value, twins)
    return twin


def _hooks(module: nn.Module) -> Iterator[dict[Any, Any]]:
    for name, value in vars(module).items():
        if name.endswith("_hooks") and isinstance(value, dict):
            yield value


def _rebound(value: Any, twins: dict[int, Any]) -> Any:
    """A function with the twin's modules where it binds or closes over the app's."""
    if isinstance(value, nn.Module):
        return twins.get(id(value), value)
    if isinstance(value, types.MethodType):
        return types.MethodType(_rebound(value.__func__, twins), _rebound(value.__self__, twins))
    if isinstance(value, functools.partial):
        function, *arguments = (_rebound(each, twins) for each in (value.func, *value.args))
        named = {name: _rebound(each, twins) for name, each in value.keywords.items()}
        return functools.partial(function, *arguments, **named)
    if not isinstance(value, types.FunctionType) or not value.__closure__:
        return value
    cells = tuple(_rebound_cell(cell, twins) for cell in value.__closure__)
    if cells == value.__closure__:
        return value
    function = types.FunctionType(
        value.__code__, value.__globals__, value.__name__, value.__defaults__, cells
    )
    return functools.update_wrapper(function, value)


def _rebound_cell(cell: types.CellType, twins: dict[int, Any]) -> types.CellType:
    key = id(cell)
    if key not in twins:
        twins[key] = cell  # a function may close over itself
        try:
            found = _rebound(cell.cell_contents, twins)
        except ValueError:  # empty
            return cell
        if found is not cell.cell_contents:
            twins[key] = types.CellType(found)
    known: types.CellType = twins[key]
    return known
