"""``LoraTrainer``: the app's own model, tokenizer and data as a contributor.

    trainer = LoraTrainer(model, tokenizer, dataset)
    client.run(trainer, task="support-bot")

What a round asks for is in the signed manifest; the algorithms' device halves are in
``client_sdk.training.algorithms``. Needs the ``train`` extra.
"""

from __future__ import annotations

import contextlib
import os
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from client_sdk.errors import ContributionError, TaskRefusal
from client_sdk.failures import TrainingFailure
from client_sdk.training.adapted import AdaptedModel, fingerprint_of, without_adapter
from client_sdk.training.algorithms import ALGORITHMS
from client_sdk.training.algorithms.passes import Passes
from client_sdk.training.algorithms.products import sketched
from client_sdk.training.algorithms.work import Work, rows_per_pass
from client_sdk.training.algorithms.zeroth_order import passes_alone
from client_sdk.training.dataset import (
    Cut,
    Input,
    LeftOut,
    cut_of,
    encode_rows,
    in_file,
    open_dataset,
    reasons_of,
)
from client_sdk.training.examples import Example, Row
from client_sdk.training.gradients import Method, check_method
from client_sdk.training.lora import unwrapped
from client_sdk.training.memory import task_bytes
from client_sdk.training.self_test import Way, check_rows_apart
from client_sdk.training.torch_threads import torch_threads
from client_sdk.training.units import beyond, units_of, without_turn
from dp.contracts.algorithms.averaging import has_privacy
from dp.contracts.algorithms.registry import algorithm_of
from dp.schedule import places_served
from secagg.errors import ConfigurationError, SecaggError
from secagg.manifest import Manifest, TrainingManifest, training_manifest

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from client_sdk.contribution import TrainingJob

MICRO_BATCH = 4
THREADS_VARIABLE = "SECAGG_TORCH_THREADS"
_SELF_TEST_SCALE = 0.02
_MEMORY = "Use LoraTrainer(..., method='loop') or a smaller micro_batch, or shorter examples."


class LoraTrainer:
    """Trains the task's LoRA adapter on local examples (a ``client_sdk.Contributor``).

    Args:
        model: a transformers causal language model or sequence classifier, which stays as it is:
            the app may use it meanwhile. The trainer works on a twin over the same weights, which
            take no memory twice (:mod:`client_sdk.training.twin`); ``trainer.model`` is then that
            twin with the task's adapter, a peft model.
        tokenizer: the model's tokenizer.
        dataset: the path of a file (JSON lines or a JSON array), or a sequence: a list, a
            ``Dataset`` of Hugging Face's ``datasets``, or anything with a length and an item at
            each place. An item has one of the forms of :mod:`client_sdk.training.row_forms`:
            prompt and answer or completion, messages, ShareGPT, Alpaca; for a classifier text and
            label. A file is read at once, else items when the first job comes: what is added later
            needs a new trainer. One item is one unit of example-level privacy; where a task
            protects persons or documents, all items that name the same one under ``unit`` are. An
            item's place counts, so items are not moved between rounds: one that is to go leaves
            ``{}`` (a task whose examples serve in turn refuses another list). An item that cannot
            be used or teaches nothing counts as zero (:attr:`left_out`); in a task with noise a
            device without any that can gives noise alone. One that is longer than the task's
            ``max_tokens`` is cut there (:attr:`cut`).
        micro_batch: most examples in one pass; the manifest may ask for fewer.
        method: ``hooks`` (Opacus) or ``loop``: one example at a time, least memory, and right for
            models in half precision and models that mix the rows of a pass. Holds for zeroth order
            and evaluation too.
        threads: torch threads of this process during a job; default from
            ``SECAGG_TORCH_THREADS``, else torch's.
        rank: for tasks whose adapter's form is ``product``: this device's own rank, at most the
            task's. It stays hidden in the sum.
        random_bytes: source of every coin (sampling, rounding, noise): the operating system's.
            Seeding torch, numpy or Python changes none of them, and the model draws none.
        clock: monotonic seconds.

    Raises:
        ContributionError: ``gradient-method``; ``threads``; ``dataset-form``; of a file
            ``data-missing``, ``data-unreadable``, ``data-encoding``, ``data-format``.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        dataset: Sequence[Example] | str | os.PathLike[str],
        *,
        micro_batch: int = MICRO_BATCH,
        method: Method = "hooks",
        threads: int | None = None,
        rank: int | None = None,
        random_bytes: Callable[[int], bytes] = os.urandom,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        check_method(method)
        self._base: PreTrainedModel = unwrapped(model)
        self._tokenizer = tokenizer
        self._dataset = open_dataset(dataset)
        self._micro_batch = micro_batch
        self._method: Method = method
        self._rank = rank
        self._threads = threads if threads is not None else _threads_from_environment()
        self._random_bytes = random_bytes
        self._clock = clock
        self._fingerprint: bytes | None = None
        self._weights: list[tuple[int, int]] = []  # that it is of
        self._adapted: AdaptedModel | None = None
        # With rows in a pass and tokens in a row; of the present adapter.
        self._tested: set[tuple[Way, int, int]] = set()
        self._rows: tuple[int, tuple[Row, ...], tuple[LeftOut, ...]] | None = None  # by max_tokens
        self._left_out: dict[int, LeftOut] = {}
        self._owned = 0
        self._failure: TrainingFailure | None = None
        self._tokenizer_fits = False

    # Every local step of every algorithm that admits local noise
    # (client_sdk.training.algorithms.steps).
    adds_local_noise = True
    # Rows of one part alone reach an algorithm, and nothing of a job outlives it but rows and the
    # model, whose adapter each job begins anew.
    schedules_examples = True
    # client_sdk.training.algorithms.work.Work.sums, in both algorithms that clip examples.
    groups_units = True

    @property
    def model(self) -> PeftModel | PreTrainedModel:
        """The twin with the adapter as the last job left it; the app's own model before any job.

        While a job runs its adapter changes, and holds made-up values of the self-test at first.
        """
        return self._base if self._adapted is None else self._adapted.model

    @property
    def left_out(self) -> tuple[LeftOut, ...]:
        """The examples that counted as zero in the last job, by place, each with its reason.

        For this device's user alone: what of a secret batch failed is as secret as the batch.
        """
        found = self._left_out
        return tuple(in_file(self._dataset, found[index]) for index in sorted(found))

    @property
    def examples(self) -> int | None:
        """Places of the data set in the last job; None before any."""
        return None if self._rows is None else len(self._rows[1])

    @property
    def owned(self) -> int:
        """Examples of the last job that name a unit, in a task that does not protect it as one."""
        return self._owned

    @property
    def failure(self) -> TrainingFailure | None:
        """Why nothing of the examples is in the values of the last job: ``dataset-empty``, none
        can be used, or ``examples-failed``, each of which a gradient was computed failed."""
        return self._failure

    @property
    def cut(self) -> tuple[Cut, ...]:
        """The examples that counted in the last job, but not whole: for this device's user."""
        rows = () if self._rows is None else self._rows[1]
        return cut_of(self._dataset, (row for row in rows if row.index not in self._left_out))

    def memory_bytes(self, manifest: Manifest) -> int | None:
        """Resident memory that training for the task takes at its peak, as it is planned, in bytes.

        None for a model whose sizes are not known by Llama's names
        (:func:`client_sdk.training.memory.task_bytes`).
        """
        floats = [p.element_size() for p in self._base.parameters() if p.is_floating_point()]
        return task_bytes(
            self._base.config,
            manifest,
            micro_batch=1 if self._method == "loop" else self._micro_batch,
            precision="float32" if max(floats, default=4) >= 4 else "bfloat16",
        )

    def contribute(self, job: TrainingJob) -> Mapping[str, NDArray[Any]]:
        """Train one round; values by segment name, as the manifest's algorithm defines them.

        Raises:
            TaskRefusal: the manifest does not fit trainer or model; ``model-failed``: model or
                tokenizer raise before any data was used; ``dataset-empty``: no example can be
                used, and the task has no noise that would hide it.
                Also as :meth:`client_sdk.contribution.TrainingJob.places` and
                :meth:`client_sdk.contribution.TrainingJob.check_list`.
            ContributionError: ``training-deadline``, ``training-stopped``, and without noise
                ``examples-failed``. With noise in the ring the device then sends zero plus noise.
        """
        with torch_threads(self._threads):
            return self._contribute(job)

    def _contribute(self, job: TrainingJob) -> Mapping[str, NDArray[Any]]:
        deadline_s = None if job.deadline_s is None else self._clock() + job.deadline_s
        algorithm = ALGORITHMS.get(job.manifest.algorithm)
        if algorithm is None:
            raise TaskRefusal(
                "algorithm-unknown",
                "This trainer does not know the task's algorithm.",
                expected=sorted(ALGORITHMS),
                found=job.manifest.algorithm,
            )
        manifest = _trains(job.manifest)
        micro_batch = max(1, min(self._micro_batch, manifest.training.micro_batch))
        job.demand_wanted()
        try:
            adapted = self._prepare(manifest, micro_batch)
            self._check_tokenizer(adapted)
            adapted.choose(job.version)
            adapted.load(job.vector)
            start = self._start_products(adapted)
            pad_token = _pad_token(self._tokenizer, adapted.model)
        except SecaggError:
            raise
        except Exception as error:
            if self._rows is not None:  # what is left of an earlier job may have made it fail
                raise
            raise TaskRefusal(
                "model-failed",
                "Model or tokenizer cannot be prepared for the task.",
                expected="a language model or sequence classifier of transformers, loaded, and its "
                "tokenizer",
                found=f"{type(error).__name__}: {error}",
            ) from error
        self._failure = None
        rows, empty = self._encode(manifest.training.max_tokens, job.demand_wanted)
        self._left_out = {one.index: one for one in empty}
        groups = self._groups(job, rows)
        places = job.places(len(groups))
        self._demand_examples(manifest, len(rows))
        work = Work(
            adapted=adapted,
            rows=_alone(rows, [row for place in places for row in groups[place]]),
            groups=groups,
            part=places,
            pad_token=pad_token,
            micro_batch=micro_batch,
            method=self._method,
            random_bytes=self._random_bytes,
            clock=self._clock,
            deadline_s=deadline_s,
            stopped=job.stop.is_set,
            version=job.version,
            correction=job.correction,
            clip=job.clip,
            left_out=self._left_out,
            passes=Passes(job.progress),
        )
        values = algorithm(manifest, work)
        self._failure = self._nothing_counted(rows, work.tried)
        if not has_privacy(manifest) and len(self._left_out) == len(rows):
            raise ContributionError(
                "examples-failed",
                "Every example failed in training.",
                found=reasons_of(self.left_out),
            )
        return values if start is None else sketched(manifest, work, start, values)

    def _groups(self, job: TrainingJob, rows: tuple[Row, ...]) -> list[tuple[int, ...]]:
        """Rows that are clipped as one. Where rows are units by themselves, none may have moved."""
        privacy = job.manifest.example_privacy
        units: list[str | None] = [None] * len(rows)
        if privacy is None or privacy.protects == "example":
            self._owned = sum(bool(row.owners) for row in rows)
            job.check_list([row.content for row in rows])
            return job.groups(units)
        self._owned = 0
        units, refused = units_of(rows, privacy.protects)
        groups = job.groups(units)
        refused += beyond(units, groups, privacy.protects)
        refused += without_turn(groups, places_served(job.manifest), privacy.protects)
        self._left_out |= {one.index: one for one in refused}
        return groups

    def _nothing_counted(self, rows: Sequence[Row], tried: set[int]) -> TrainingFailure | None:
        """Where noise hides it the values look like any others: so the app is told."""
        if any(row.tokens for row in rows):
            reason, message = "examples-failed", f"Of {len(tried)} examples each failed."
            if not tried or not tried <= self._left_out.keys():
                return None
        else:
            reason, message = "dataset-empty", "No example of this data set can be used."
        first = next((one for one in self.left_out if not tried or one.index in tried), None)
        return TrainingFailure(
            reason=reason,
            message=f"{message} {first or ''}".strip(),
            remedy=_MEMORY if first is not None and "MemoryError" in first.sentence else None,
            row=None if first is None else first.index,
        )

    def _start_products(self, adapted: AdaptedModel) -> Mapping[str, NDArray[np.float32]] | None:
        """For ``product``: cut the start to this device's rank, and remember it."""
        if adapted.adapter.kind != "product":
            return None
        if self._rank is not None:
            adapted.cut(self._rank)
        return adapted.tensors()

    def _prepare(self, manifest: TrainingManifest, micro_batch: int) -> AdaptedModel:
        """The model with the task's adapter, tested for what this task does with it."""
        weights = _versions(self._base)
        if self._fingerprint is None or weights != self._weights:
            self._fingerprint, self._weights = fingerprint_of(self._base), weights
        if self._adapted is not None:
            same_base = manifest.base_model is not None and (
                manifest.base_model.fingerprint == self._fingerprint
            )
            if not (same_base and manifest.adapter == self._adapted.adapter):
                self._unload()
        if self._adapted is None:
            self._adapted = AdaptedModel(self._base, manifest, self._fingerprint)
        try:
            self._self_test(self._adapted, manifest, micro_batch)
        except BaseException:
            self._unload()  # its adapter has the test's values
            raise
        return self._adapted

    def _check_tokenizer(self, adapted: AdaptedModel) -> None:
        """What follows from the tokenizer alone; a token that was added to it may be unused.

        Raises:
            TaskRefusal: ``model-tokenizer``.
        """
        if self._tokenizer_fits or not hasattr(self._tokenizer, "get_vocab"):
            return
        table: Any = adapted.base.get_input_embeddings()
        size, added = table.weight.shape[0], set(self._tokenizer.get_added_vocab())
        known: Any = self._tokenizer.get_vocab()
        beyond = sum(token >= size for word, token in known.items() if word not in added)
        if beyond:
            names = {id(p): name for name, p in adapted.base.named_parameters()}
            raise TaskRefusal(
                "model-tokenizer",
                "The tokenizer is another model's: it has tokens that this one does not have.",
                expected=f"tokens below {size}",
                found=f"{beyond} beyond",
                remedy="Load the tokenizer from the model's own folder.",
            ).at(tensor=names.get(id(table.weight)))
        self._tokenizer_fits = True

    def _unload(self) -> None:
        self._adapted = None
        self._tested.clear()

    def _self_test(
        self, adapted: AdaptedModel, manifest: TrainingManifest, micro_batch: int
    ) -> None:
        """Each way once, on made-up tokens, with every factor away from zero.

        At B = 0 the gradient of A vanishes and would be compared with nothing.
        """
        way: Way = "predictions" if algorithm_of(manifest).forward_only else "gradients"
        size = rows_per_pass(adapted, self._method, micro_batch, alone=passes_alone(manifest))
        max_tokens = manifest.training.max_tokens
        if (way, size, max_tokens) in self._tested:
            return
        adapted.load(_spread(adapted.vector_length))
        turns = (1, 0) if adapted.adapter.kind == "rolora" and way == "gradients" else (0,)
        for version in turns:  # each factor once
            adapted.choose(version)
            check_rows_apart(
                adapted,
                way,
                method=self._method,
                rows_per_pass=size,
                pad_token=_pad_token(self._tokenizer, adapted.model),
                max_tokens=max_tokens,
            )
        self._tested.add((way, size, max_tokens))

    def _encode(
        self, max_tokens: int, demand_wanted: Callable[[], None] = lambda: None
    ) -> tuple[tuple[Row, ...], tuple[LeftOut, ...]]:
        if self._rows is None or self._rows[0] != max_tokens:
            takes = Input.of(self._base)
            self._rows = (
                max_tokens,
                *encode_rows(self._tokenizer, self._dataset, max_tokens, takes, demand_wanted),
            )
        return self._rows[1:]

    def _demand_examples(self, manifest: Manifest, count: int) -> None:
        """Where no example can be used: refuse without noise; with noise, that alone is given.

        With noise a refusal, which all see, would tell neighbours apart: no example from one.

        Raises:
            TaskRefusal: ``dataset-empty``.
        """
        if len(self._left_out) < count:
            return
        found = reasons_of(self.left_out) or "no example"
        if not has_privacy(manifest):
            raise TaskRefusal(
                "dataset-empty",
                "No example of this data set can be used.",
                found=found,
                remedy=next(map(str, self.left_out), "Give a data set that holds an example."),
            )
        with contextlib.suppress(UserWarning):  # where warnings are errors: it must not fail here
            warnings.warn(
                f"No example of this data set can be used ({found}): the device gives noise alone.",
                stacklevel=2,
            )


def _trains(manifest: Manifest) -> TrainingManifest:
    try:
        return training_manifest(manifest)
    except ConfigurationError as error:
        raise without_adapter() from error


def _alone(rows: tuple[Row, ...], serving: Sequence[int]) -> tuple[Row, ...]:
    """The rows that serve; at the other places empty ones."""
    if len(serving) == len(rows):
        return rows
    serve = set(serving)
    return tuple(row if row.index in serve else Row((), (), index=row.index) for row in rows)


def _spread(length: int) -> NDArray[np.float32]:
    """Small values of both signs without any generator: the fractional parts of n times phi."""
    fractions = (np.arange(1, length + 1) * 0.6180339887498949) % 1.0
    return ((fractions - 0.5) * _SELF_TEST_SCALE).astype(np.float32)


def _pad_token(tokenizer: PreTrainedTokenizerBase, model: PreTrainedModel | PeftModel) -> int:
    """One that the model has: a padding token may be new to the tokenizer alone."""
    table: Any = model.get_input_embeddings()
    for token in (tokenizer.pad_token_id, tokenizer.eos_token_id):
        if token is not None and 0 <= token < table.weight.shape[0]:
            return int(token)
    return 0  # masked and without loss, so any token serves


def _versions(model: Any) -> list[tuple[int, int]]:
    """Where weights lie and how often they were written to: what an app's own training moves."""
    return [(p.data_ptr(), 0 if p.is_inference() else p._version) for p in model.parameters()]


def _threads_from_environment() -> int | None:
    value = os.environ.get(THREADS_VARIABLE)
    if value is None:
        return None
    if not value.isdecimal() or int(value) < 1:
        raise ContributionError(
            "threads",
            f"{THREADS_VARIABLE} is not a number of threads.",
            expected=">= 1",
            found=value,
        )
    return int(value)
