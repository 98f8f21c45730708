"""Before any data is used: what the model gives for a row depends on that row alone.

What a task will use (gradients by hooks or by a loop; for slopes and evaluations, which see losses,
the predictions) is computed of made-up rows: one at a time, and again in the passes of the task, in
another order and with torch's generators in another state. Both must agree, and no pass may draw
from a generator. Coins differ, and so do rows that a batch normalisation, a router with a capacity
or any other sum over the batch makes depend on each other.

Some models compute otherwise from some length on: rotary positions that stretch with the longest
row of a pass or of all passes so far, attention in blocks or by drawn hashes. So the predictions of
rows as long as the task admits, up to ``TESTED_TOKENS_MAX``, are compared too; longer ones never
share a pass (``client_sdk.training.algorithms.work``).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from client_sdk.errors import ContributionError, TaskRefusal
from client_sdk.training.adapted import AdaptedModel
from client_sdk.training.coins import GENERATORS, generator_states, torch_states_kept, without_coins
from client_sdk.training.dataset import Input
from client_sdk.training.examples import Row
from client_sdk.training.gradients import ExampleGradients, Method, predictions

SELF_TEST_ERROR_MAX = 1e-4  # relative; in float32 right ways agree to about 1e-6
_ROUNDINGS = 8  # so many units in the last place may two runs of half precision differ (GPUs)
_ATTEMPTS = 5  # another thread of the app may draw during one of them
_LENGTHS = (7, 12, 16)  # tokens; different, so that padding is tested too
TESTED_TOKENS_MAX = 1024  # a longer test would take a phone minutes
_COUNTED_MAX = 13  # tokens of a row, its last: a head with a large vocabulary is slow

Way = Literal["gradients", "predictions"]
_Run = Callable[[Sequence[Row]], Tensor]  # to float[rows, any]


def check_rows_apart(
    adapted: AdaptedModel,
    way: Way,
    *,
    method: Method,
    rows_per_pass: int,
    pad_token: int,
    max_tokens: int,
) -> float:
    """The largest relative error of a row, in passes of ``rows_per_pass``, from the row alone.

    Args:
        max_tokens: the longest rows of the task.

    Raises:
        TaskRefusal: ``model-coins``: a pass draws from a generator, or two runs differ;
            ``gradient-self-test``: rows of one pass differ from the same rows alone, or all is
            zero, so that nothing was tested; ``model-self-test``: the model does not run.
    """
    sizes: dict[str, Any] = {"rows_per_pass": rows_per_pass, "pad_token": pad_token}
    with GENERATORS:
        error = _error_of(adapted, way, _LENGTHS, method=method, **sizes)
        context = Input.of(adapted.base).context_tokens or max_tokens
        longest = min(max_tokens, context, TESTED_TOKENS_MAX)
        if longest <= max(_LENGTHS):
            return error
        # From the last to the first: a short one beside the longest, and next a long one.
        lengths = (min(_LENGTHS), longest * 3 // 4, longest, min(_LENGTHS))
        return max(error, _error_of(adapted, "predictions", lengths, method=method, **sizes))


def _error_of(
    adapted: AdaptedModel,
    way: Way,
    lengths: Sequence[int],
    *,
    method: Method,
    rows_per_pass: int,
    pad_token: int,
) -> float:
    """:func:`check_rows_apart` for rows of these lengths."""
    model, rows = adapted.model, _made_up_rows(adapted, lengths)
    alone = _run_of(adapted, way, "loop", pad_token)
    together = _run_of(adapted, way, method, pad_token)
    reference = _in_passes(model, alone, rows, 1)
    if not bool((reference.norm(dim=1) > 0).all()):
        raise TaskRefusal(
            "gradient-self-test",
            "The model gives zero for made-up rows, so that nothing was tested.",
            expected="values of every row above 0",
            found=reference.norm(dim=1).tolist(),
            remedy="Load the model in float32." if _half(adapted) else None,
        )
    wrong: Exception | None = None
    error = float("inf")
    try:
        with torch_states_kept(model, other=True):
            # From the last row to the first: what a pass leaves behind would show as well.
            found = _in_passes(model, together, rows[::-1], rows_per_pass).flip(0)
        error = _error(found, reference)
    except ContributionError as refusal:
        wrong = refusal
    separate = rows_per_pass == 1 and (way != "gradients" or method == "loop")
    if error <= (_repeat_error_max(adapted) if separate else SELF_TEST_ERROR_MAX):
        return error
    # The way out that is named must itself have passed.
    with torch_states_kept(model, other=True):
        again = _error(_in_passes(model, alone, rows[::-1], 1).flip(0), reference)
    if not again <= _repeat_error_max(adapted):
        raise TaskRefusal(
            "model-coins",
            "Two runs over the same rows differ, one row at a time: the model draws coins of its "
            "own or carries something from pass to pass.",
            expected=f"relative error at most {_repeat_error_max(adapted):.2g}",
            found=again,
            remedy="Give the model without the hooks or layers that do so; no method trains it.",
        )
    raise TaskRefusal(
        "gradient-self-test",
        "Rows of this model in one pass are not what each gives alone.",
        expected=f"relative error at most {SELF_TEST_ERROR_MAX}",
        found=error if wrong is None else wrong,
        remedy="Use LoraTrainer(..., method='loop'), which has passed its own self-test here"
        + (", or load the model in float32" if _half(adapted) else "")
        + (", or call model.gradient_checkpointing_disable()" if _checkpoints(adapted) else "")
        + ".",
    )


def _run_of(adapted: AdaptedModel, way: Way, method: Method, pad_token: int) -> _Run:
    model = adapted.model

    def gradients(rows: Sequence[Row]) -> Tensor:
        with ExampleGradients(
            model, adapted.parameters, pad_token=pad_token, method=method
        ) as found:
            found.run(rows)
            return found.flat()

    def logits(rows: Sequence[Row]) -> Tensor:
        with without_coins(model), torch.inference_mode():
            found = predictions(model, rows, pad_token)
            values, owners = found.logits.float().cpu(), found.owners.cpu()
        own = [values[owners == i].flatten() for i in range(len(rows))]
        widest = _COUNTED_MAX * values.shape[1]
        return torch.stack([functional.pad(row, (0, widest - len(row))) for row in own])

    return gradients if way == "gradients" else logits


def _in_passes(model: nn.Module, run: _Run, rows: Sequence[Row], size: int) -> Tensor:
    found = [
        _without_draws(model, run, rows[start : start + size])
        for start in range(0, len(rows), size)
    ]
    return torch.cat(found)


def _without_draws(model: nn.Module, run: _Run, rows: Sequence[Row]) -> Tensor:
    moved: list[str] = []
    for _ in range(_ATTEMPTS):
        before = generator_states(model)
        try:
            found = run(rows)
        except ContributionError:
            raise
        except Exception as error:
            raise TaskRefusal(
                "model-self-test",
                "The model does not run on made-up tokens.",
                expected="a causal language model or a sequence classifier of transformers",
                found=f"{type(error).__name__}: {error}",
            ) from error
        after = generator_states(model)
        moved = [name for name, state in before.items() if after[name] != state]
        if not moved:
            return found
    raise TaskRefusal(
        "model-coins",
        "A pass of this model draws from a random generator, although dropout is off.",
        expected="no generator moves",
        found=moved,
        remedy="Give the model without the hooks or layers that draw; no method trains it. If "
        "another thread of the app draws without a pause, let it wait meanwhile.",
    )


def _error(found: Tensor, reference: Tensor) -> float:
    return float(((found - reference).double().norm(dim=1) / reference.norm(dim=1)).max())


def _precision(adapted: AdaptedModel) -> float:
    """The largest unit in the last place of 1 among the model's types."""
    return max(
        torch.finfo(p.dtype).eps for p in adapted.model.parameters() if p.is_floating_point()
    )


def _checkpoints(adapted: AdaptedModel) -> bool:
    return any(getattr(each, "gradient_checkpointing", False) for each in adapted.model.modules())


def _half(adapted: AdaptedModel) -> bool:
    return _precision(adapted) > torch.finfo(torch.float32).eps


def _repeat_error_max(adapted: AdaptedModel) -> float:
    """Between two runs of one row: a GPU may add the same numbers up in another order."""
    return max(SELF_TEST_ERROR_MAX, _ROUNDINGS * _precision(adapted))


def _made_up_rows(adapted: AdaptedModel, lengths: Sequence[int]) -> list[Row]:
    """Two tokens of three are the same one, so that a router's capacity for them runs out."""
    takes = Input.of(adapted.base)
    size = takes.vocabulary
    rows = []
    for number, most in enumerate(lengths):
        length = min(most, takes.context_tokens or most)
        tokens = [(17 * t + 5 + number) % size if t % 3 == 0 else 5 % size for t in range(length)]
        counts = [t >= max(3, length - _COUNTED_MAX) for t in range(length)]
        rows.append(Row(tuple(tokens), tuple(counts), takes.classes and number % takes.classes))
    return rows
