"""Per-example gradients of the adapter, by Opacus hooks or by a loop.

The loss of one conversation is the mean over its own counted tokens, and the loss of a batch is
the *sum* of those. transformers' ``labels=`` would average over all tokens of the batch, so that
one example's gradient depends on its neighbours and clipping no longer bounds its influence
(measured: 2.07 times the clip).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, get_args

import torch
from peft import PeftModel
from torch import Tensor, nn
from torch.nn import functional

from client_sdk.errors import ContributionError
from client_sdk.training.coins import without_coins
from client_sdk.training.dataset import together_or_apart
from client_sdk.training.examples import Row
from client_sdk.training.opacus_hooks import QuietHooks

if TYPE_CHECKING:
    from types import TracebackType

Method = Literal["hooks", "loop"]
_Pass = tuple[Tensor, list[Tensor]]  # losses, [rows], and per parameter gradients, [rows, *shape]


def check_method(method: str) -> None:
    """Only ways of which every gradient is compared with a loop; ghost clipping is not one of them.

    Raises:
        ContributionError: ``gradient-method``.
    """
    if method not in get_args(Method):
        raise ContributionError(
            "gradient-method",
            "There is no such method for per-example gradients.",
            expected=list(get_args(Method)),
            found=method,
        )


def sequence_losses(model: nn.Module, rows: Sequence[Row], pad_token: int) -> Tensor:
    """Mean negative log likelihood per row over its counted tokens; float32[len(rows)].

    Of a row with a label, that of the label. Rows with neither have loss 0.

    Raises:
        ContributionError: ``example-model``: a classifier with rows that have no label, or another
            model with rows that have one; ``example-label``.
    """
    return predictions(model, rows, pad_token).losses()


def scores(model: nn.Module, rows: Sequence[Row], pad_token: int) -> tuple[Tensor, Tensor]:
    """:func:`sequence_losses`, and per row the share of counted tokens that are predicted right."""
    found = predictions(model, rows, pad_token)
    right = (found.logits.argmax(-1) == found.targets).float()
    return found.losses(), found.mean(right)


@dataclass(frozen=True)
class Predictions:
    """What the model says of every counted token, those of all rows one after the other.

    Attributes:
        logits: [counted, vocabulary]; of a classifier [rows, classes].
        targets: int64[counted]; the tokens or classes that are right.
        owners: int64[counted]; the row of each.
    """

    logits: Tensor
    targets: Tensor
    owners: Tensor
    rows: int

    def losses(self) -> Tensor:
        """float32[rows]. Where the vocabulary is large torch's cross entropy is less exact."""
        logits = self.logits.float()
        right = logits.gather(1, self.targets[:, None])[:, 0]
        return self.mean(logits.logsumexp(1) - right)

    def mean(self, values: Tensor) -> Tensor:
        """Mean of ``values``, float32[counted], over each row's own; 0 for a row without any."""
        total = values.new_zeros(self.rows).index_add(0, self.owners, values)
        return total / self.owners.bincount(minlength=self.rows).clamp(min=1)


def predictions(model: nn.Module, rows: Sequence[Row], pad_token: int) -> Predictions:
    """One pass over ``rows``, padded on the right to the longest.

    Raises:
        ContributionError: as :func:`sequence_losses`.
    """
    device = next(model.parameters()).device
    length = max(len(row.tokens) for row in rows)
    tokens = torch.full((len(rows), length), pad_token, dtype=torch.long)
    present = torch.zeros((len(rows), length), dtype=torch.long)
    counted = torch.zeros((len(rows), length), dtype=torch.bool)
    for i, row in enumerate(rows):
        own = len(row.tokens)
        tokens[i, :own] = torch.tensor(row.tokens, dtype=torch.long)
        present[i, :own] = 1
        counted[i, :own] = torch.tensor(row.counts, dtype=torch.bool)
    tokens, present = tokens.to(device), present.to(device)
    labels = [row.label for row in rows]
    if any(label is not None for label in labels):
        return _classes(model(input_ids=tokens, attention_mask=present).logits, labels)
    counted = counted[:, 1:].to(device)  # nothing predicts the first token
    before = functional.pad(counted, (0, 1))
    with _head_only_at(model, before):
        logits = model(input_ids=tokens, attention_mask=present, use_cache=False).logits
    if logits.dim() != 3:
        return _classes(logits, labels)
    if logits.shape[:2] == tokens.shape:
        logits = logits[before][None]
    return Predictions(logits[0], tokens[:, 1:][counted], counted.nonzero()[:, 0], len(rows))


@contextmanager
def _head_only_at(model: nn.Module, places: Tensor) -> Iterator[None]:
    """Let the model's head see the hidden states at ``places`` alone, bool[rows, positions].

    With a large vocabulary the head is most of a small model's work and memory. A head that is
    trained keeps its batch, of which per-example gradients are made.
    """
    base: Any = model.get_base_model() if isinstance(model, PeftModel) else model
    head = base.get_output_embeddings() if hasattr(base, "get_output_embeddings") else None
    if head is None or any(p.requires_grad for p in head.parameters()):
        yield
        return

    def only(_head: nn.Module, arguments: tuple[Any, ...]) -> tuple[Any, ...] | None:
        if not arguments or arguments[0].shape[:2] != places.shape:
            return None
        return (arguments[0][places][None], *arguments[1:])

    handle = head.register_forward_pre_hook(only)
    try:
        yield
    finally:
        handle.remove()


def _classes(logits: Tensor, labels: Sequence[int | None]) -> Predictions:
    """The scores of a classifier as if each row had one counted token, its class."""
    known = [label for label in labels if label is not None]
    if logits.dim() != 2 or len(known) != len(labels):
        raise ContributionError(
            "example-model",
            "The examples are not of the model's kind.",
            expected="labels for a classifier, conversations for a language model",
            found=f"{len(known)} of {len(labels)} with a label",
        )
    if max(known) >= logits.shape[1]:
        raise ContributionError(
            "example-label",
            "The model has no such class.",
            expected=f"below {logits.shape[1]}",
            found=max(known),
        )
    targets = torch.tensor(known, device=logits.device)
    return Predictions(logits, targets, torch.arange(len(known), device=logits.device), len(known))


class ExampleGradients:
    """Fills ``grad_sample`` of the parameters with one gradient per example.

    A context manager: at its end hooks are gone and the app's model is as it was. Meanwhile it is
    in evaluation mode, without dropout or any other noise (``client_sdk.training.coins``).

    Args:
        parameters: the trainable tensors; no other parameter of the model may require gradients.
        method: ``hooks`` runs a batch at once; ``loop`` runs one example at a time: slower, in a
            fraction of the memory, and the reference.
        length: :meth:`flat` fills its rows with zeros up to this length.
        failed: told of each example that counts as zero because its pass raised, alone, or gave
            values that are not finite. Without it what a pass raises is raised.
        check_time: called before each example that runs alone since its micro-batch raised.

    Raises:
        ContributionError: ``trainable-set`` if the model trains other parameters than these;
            ``gradient-method``.
    """

    def __init__(
        self,
        model: nn.Module,
        parameters: Sequence[nn.Parameter],
        *,
        pad_token: int,
        method: Method = "hooks",
        length: int | None = None,
        failed: Callable[[Row, BaseException], None] | None = None,
        check_time: Callable[[], None] = lambda: None,
    ) -> None:
        trainable = {id(p) for p in model.parameters() if p.requires_grad}
        if trainable != {id(p) for p in parameters}:
            raise ContributionError(
                "trainable-set",
                "The model's trainable tensors are not exactly the adapter's.",
                expected=len(parameters),
                found=len(trainable),
                remedy="Freeze everything outside the adapter.",
            )
        check_method(method)
        self._model = model
        self._parameters: tuple[Any, ...] = tuple(parameters)  # Opacus adds attributes
        self._pad_token = pad_token
        self._method = method
        self._length = length
        self._failed = failed
        self._check_time = check_time
        self._hooks: QuietHooks | None = None

    def __enter__(self) -> ExampleGradients:
        with ExitStack() as stack:
            stack.enter_context(without_coins(self._model, training=True))
            stack.callback(self._clear)
            if self._method == "hooks":
                stack.callback(self._unhook)
                self._hook()
            self._undo = stack.pop_all()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._undo.close()

    def _clear(self) -> None:
        for parameter in self._parameters:
            parameter.grad = None
            if hasattr(parameter, "grad_sample"):
                del parameter.grad_sample

    def run(self, rows: Sequence[Row]) -> Tensor:
        """One pass over ``rows``: sets ``grad_sample`` to [len(rows), *shape], returns the losses.

        An example whose loss or gradient is not finite has a zero gradient, and its loss is NaN:
        one bad example must not turn the whole sum into NaN. With ``failed``, so has one whose pass
        raises: the examples of a pass that raised are run one by one.

        Alone or beside others an example's gradient differs by float32 rounding, about 1e-7 of its
        norm: 1e-6 of a unit of the integer clip's grid, as any example's neighbours do to it.
        """
        found = self._passes(rows)
        losses, gradients = self._placed(len(rows), found)
        finite = torch.isfinite(losses)
        for gradient in gradients:
            finite &= torch.isfinite(gradient).flatten(1).all(1)
        if not bool(finite.all()):
            losses[~finite] = torch.nan
            for gradient in gradients:
                gradient[~finite] = 0.0
        for parameter, gradient in zip(self._parameters, gradients, strict=True):
            parameter.grad = None
            parameter.grad_sample = gradient
        if self._failed is not None:
            ran = [place for places, _ in found for place in places]
            for place in [place for place in ran if not finite[place]]:
                self._failed(rows[place], not_finite())
        return losses

    def flat(self) -> Tensor:
        """The gradients of the last run as float32[examples, d] on the CPU."""
        rows = torch.cat(
            [p.grad_sample.detach().flatten(1).float().cpu() for p in self._parameters], dim=1
        )
        missing = 0 if self._length is None else self._length - rows.shape[1]
        return functional.pad(rows, (0, missing)) if missing else rows

    def _passes(self, rows: Sequence[Row]) -> list[tuple[Sequence[int], _Pass]]:
        """What the passes gave, each with the places in ``rows`` of those that were in it."""

        def compute(places: Sequence[int]) -> _Pass:
            part = [rows[place] for place in places]
            return self._together(part) if self._method == "hooks" else self._alone(*part)

        def failed(place: int, error: BaseException) -> None:
            if self._failed is not None:
                self._failed(rows[place], error)

        every = range(len(rows))
        parts = [every] if self._method == "hooks" else [every[i : i + 1] for i in every]
        told = None if self._failed is None else failed
        return [
            one
            for part in parts
            for one in together_or_apart(part, compute, told, self._check_time)
        ]

    def _placed(self, count: int, found: Sequence[tuple[Sequence[int], _Pass]]) -> _Pass:
        """The passes as one, with zero gradients and no loss at places that none has."""
        if len(found) == 1 and len(found[0][0]) == count:
            return found[0][1]
        device = self._parameters[0].device
        losses = torch.full((count,), torch.nan, device=device)
        gradients = [p.new_zeros((count, *p.shape)) for p in self._parameters]
        for places, (own_losses, own) in found:
            losses[list(places)] = own_losses.to(losses)
            for gradient, values in zip(gradients, own, strict=True):
                gradient[list(places)] = values
        return losses, gradients

    def _together(self, rows: Sequence[Row]) -> _Pass:
        """All rows in one pass with hooks."""
        for parameter in self._parameters:
            parameter.grad = None
            parameter.grad_sample = None
        try:
            losses = sequence_losses(self._model, rows, self._pad_token)
            losses.sum().backward()
        except BaseException:
            # What Opacus has noted of this pass would be counted in the next one's.
            self._unhook()
            self._hook()
            raise
        gradients = []
        for parameter in self._parameters:
            parameter.grad = None
            if parameter.grad_sample is None:  # no part of this pass
                parameter.grad_sample = parameter.new_zeros((len(rows), *parameter.shape))
            gradients.append(parameter.grad_sample)
        return losses.detach(), gradients

    def _hook(self) -> None:
        self._hooks = QuietHooks(self._model)

    def _unhook(self) -> None:
        if self._hooks is None:
            return
        self._hooks.cleanup()
        self._hooks = None
        for module in self._model.modules():
            for name in ("activations", "max_batch_len"):  # left behind by a pass that raised
                if name in vars(module):
                    delattr(module, name)

    def _alone(self, row: Row) -> _Pass:
        """One row without hooks."""
        for parameter in self._parameters:
            parameter.grad = None
        losses = sequence_losses(self._model, [row], self._pad_token)
        # Not autograd.grad: under reentrant checkpointing it finds no gradient, silently.
        losses.sum().backward()
        gradients = [torch.zeros_like(p) if p.grad is None else p.grad for p in self._parameters]
        for parameter in self._parameters:
            parameter.grad = None
        return losses.detach(), [gradient[None] for gradient in gradients]


def not_finite() -> ContributionError:
    return ContributionError("example-not-finite", "Its loss or gradient is not finite.")
