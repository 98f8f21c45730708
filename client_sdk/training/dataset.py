"""From a data set to rows, each example alone: one that fails keeps its place and counts as zero.

If one example made a data set or a batch fail as a whole, its presence would move a sum by all that
fails with it, and no clip bounds that. So an example is read, encoded, checked and, where its
micro-batch raises, differentiated alone; what raises is an empty row at its own place, so that
Poisson sampling and public places are what they would be without it. Whether a row is empty follows
from the row, the model and the manifest, never from another row.

What is kept of a failure is for the device's own user: place, reason and a sentence, without any
text of the example. None of it is sent.
"""

from __future__ import annotations

import os
import threading
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, TypeVar, cast

from client_sdk.errors import ContributionError
from client_sdk.training.examples import Example, Row, check_form, encode_example
from client_sdk.training.row_files import RowFile, read_file
from client_sdk.training.row_forms import owners_of
from secagg.errors import SecaggError

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

_SHORTER = (
    "Shorten what stands before the answer, split the conversation, or take part in a task with a "
    "larger max_tokens; a model takes no more than its own context."
)
_UNTAUGHT = {  # why no token of an answer counts, and the way out
    "example-weight-zero": (
        "No answer is learnt: the last has weight 0.",
        "Give weight 1 to what is to be learnt.",
    ),
    "example-answer-empty": (
        "No answer is learnt: the last is empty.",
        "Give answers with text.",
    ),
    "example-answer-first": (
        "No answer is learnt: there is one alone, before every prompt.",
        "Put the question before it.",
    ),
    "example-calls-unwritten": (
        "No answer is learnt: the last calls tools, and the model's chat template writes no calls.",
        "Use a model whose chat template does.",
    ),
    "example-answer-unwritten": (
        "No answer is learnt: the model's chat template writes nothing of it.",
        "Use another model, or correct its chat template.",
    ),
}
NOTHING_COUNTS = frozenset(("example-cut", *_UNTAUGHT))

_T = TypeVar("_T")
_Item = TypeVar("_Item")
_Told = TypeVar("_Told", "LeftOut", "Cut")


@dataclass(frozen=True)
class LeftOut:
    """An example that counted as zero: its place in the data set (from 0), and why.

    ``sentence``: for people; nothing of the example stands in it. ``place``: line and file, where
    the examples are a file's.
    """

    index: int
    reason: str
    sentence: str
    place: str | None = None

    def __str__(self) -> str:
        place = self.place or f"example {self.index}"
        return f"{place[0].upper()}{place[1:]}: {self.sentence}"


@dataclass(frozen=True)
class Cut:
    """An example that counts, but not whole: what is learnt of it stands beyond the limit too.

    ``tokens``: how many it has; the first ``limit`` are used. ``index`` and ``place`` as of
    :class:`LeftOut`.
    """

    index: int
    tokens: int
    limit: int
    place: str | None = None

    def __str__(self) -> str:
        place = self.place or f"example {self.index}"
        used = f"only the first {self.limit} of {self.tokens} tokens are used"
        return f"{place[0].upper()}{place[1:]}: {used}."


@dataclass(frozen=True)
class Input:
    """Which rows a model takes.

    Attributes:
        vocabulary: every token is below it.
        context_tokens: the model has places for no more; None: for any number.
        classes: of a classifier; None: a language model.
    """

    vocabulary: int
    context_tokens: int | None
    classes: int | None

    @classmethod
    def of(cls, model: PreTrainedModel) -> Input:
        table: Any = model.get_input_embeddings()
        config: Any = model.config
        most = getattr(config.get_text_config(), "max_position_embeddings", None)
        limits = [most] if isinstance(most, int) and most > 0 else []
        named = dict(model.named_modules())
        of_text = next(
            (name.rpartition(".")[0] for name, each in named.items() if each is table), ""
        )
        for name, module in named.items():
            # A table of learned places has as many rows; with a padding place they begin after it.
            # Beside the table of tokens: an image's places, elsewhere, are not a text's.
            parent, _, last = name.rpartition(".")
            if parent == of_text and "position" in last and hasattr(module, "num_embeddings"):
                padding = getattr(module, "padding_idx", None)
                limits.append(module.num_embeddings - (0 if padding is None else padding + 1))
        return cls(
            vocabulary=int(table.weight.shape[0]),
            context_tokens=min(limits, default=None),
            classes=None if model.can_generate() else int(config.num_labels),
        )

    def check(self, row: Row) -> None:
        """Raises: ContributionError ``example-model``, ``example-label``, ``example-empty``,
        ``example-tokens``, or one of ``NOTHING_COUNTS``."""
        if (row.label is None) is not (self.classes is None):
            raise ContributionError(
                "example-model",
                "The model is a classifier, and the example has no label."
                if row.label is None
                else "The example has a label, and the model is not a classifier.",
                remedy="Give labelled texts to a classifier, conversations to a language model.",
            )
        if row.label is not None and self.classes is not None and row.label >= self.classes:
            raise ContributionError(
                "example-label", f"The model's classes are 0 to {self.classes - 1}."
            )
        if not row.tokens:
            raise ContributionError("example-empty", "The text has no token.")
        if not all(0 <= token < self.vocabulary for token in row.tokens):
            raise ContributionError(
                "example-tokens",
                f"The tokenizer gives tokens that the model does not have ({self.vocabulary}).",
                remedy="Use the model's own tokenizer.",
            )
        if row.label is None and not any(row.counts[1:]):
            raise _nothing_counts(row)


def _nothing_counts(row: Row) -> ContributionError:
    if row.whole_tokens:
        limit = len(row.tokens)
        return ContributionError(
            "example-cut",
            f"Its answers begin after {limit} tokens, where rows are cut; it has "
            f"{row.whole_tokens}.",
            expected=f"an answer within {limit} tokens",
            found=row.whole_tokens,
            remedy=_SHORTER,
        )
    reason = row.untaught or "example-answer-unwritten"
    message, remedy = _UNTAUGHT[reason]
    return ContributionError(reason, message, remedy=remedy)


def open_dataset(dataset: object) -> Sequence[Example]:
    """The examples of a file that is named, or ``dataset`` itself.

    Raises:
        ContributionError: ``dataset-form``, or as :func:`client_sdk.training.row_files.read_file`.
            Nothing of an example is looked at.
    """
    if isinstance(dataset, str | os.PathLike):
        return read_file(dataset)
    by_place = hasattr(dataset, "__len__") and hasattr(dataset, "__getitem__")
    is_table = hasattr(dataset, "columns") or hasattr(dataset, "keys")
    if not by_place or is_table or isinstance(dataset, bytes | bytearray):
        raise ContributionError(
            "dataset-form",
            "The data set has no examples at places 0, 1, 2 and so on.",
            expected="a file's path, a list, or anything with a length and an item at each place",
            found=type(dataset).__name__,
            remedy="Of a generator, a stream or a set give list(...); of a dictionary of splits "
            'give one; of a table give its records: df.to_dict("records") of pandas, to_dicts() of '
            "polars, to_pylist() of pyarrow.",
        )
    return cast("Sequence[Example]", dataset)


def in_file(dataset: Sequence[Example], told: _Told) -> _Told:
    """With its line, where the examples are a file's."""
    if not isinstance(dataset, RowFile):
        return told
    return replace(told, place=dataset.place(told.index))


def cut_of(dataset: Sequence[Example], rows: Iterable[Row]) -> tuple[Cut, ...]:
    """Which rows count, but not whole."""
    return tuple(
        in_file(dataset, Cut(row.index, row.whole_tokens, len(row.tokens)))
        for row in rows
        if row.whole_tokens
    )


def encode_rows(
    tokenizer: PreTrainedTokenizerBase,
    dataset: Sequence[Example],
    max_tokens: int,
    takes: Input,
    demand_wanted: Callable[[], None] = lambda: None,
) -> tuple[tuple[Row, ...], tuple[LeftOut, ...]]:
    """One row for each example, empty where it fails, and which those are.

    Rows are cut after ``max_tokens``, or where the model's places end. ``demand_wanted`` is called
    before each; what it raises ends all.
    """
    rows, left_out = [], []
    most = min(max_tokens, takes.context_tokens or max_tokens)
    for index in range(len(dataset)):
        demand_wanted()
        row = Row((), ())
        try:
            example = dataset[index]
            encoded = encode_example(tokenizer, example, most)
            takes.check(encoded)
            row = replace(encoded, owners=owners_of(example))
        except BaseException as error:
            if _stops(error):
                raise
            left_out.append(in_file(dataset, told(index, error)))
        rows.append(replace(row, index=index))
    return tuple(rows), tuple(left_out)


def unread(dataset: Sequence[Example]) -> tuple[LeftOut, ...]:
    """The examples of no known form: what can be told before there is a model."""
    left_out = []
    for index in range(len(dataset)):
        try:
            check_form(dataset[index])
        except BaseException as error:  # what a lazy record raises is its own too
            if _stops(error):
                raise
            one = told(index, error)
            left_out.append(in_file(dataset, one))
    return tuple(left_out)


def _stops(error: BaseException) -> bool:
    """Whether the app's user ends the process: signals reach the main thread alone.

    All else is the example's own, in a thread ``sys.exit`` of a decoder too. Panics of compiled
    tokenizers are not instances of ``Exception``.
    """
    return (
        isinstance(error, KeyboardInterrupt | SystemExit)
        and threading.current_thread() is threading.main_thread()
    )


def told(index: int, error: BaseException) -> LeftOut:
    """What a device's user is told of an example that failed.

    Texts of errors that are not this package's may quote the example and are left out.
    """
    if isinstance(error, SecaggError):
        sentence = f"{error.message} {error.remedy or ''}".strip()
        return LeftOut(index, error.reason, sentence)
    return LeftOut(index, "example-failed", f"The example raised {type(error).__name__}.")


def reasons_of(left_out: Iterable[LeftOut]) -> dict[str, int]:
    """How many for each reason, the most frequent first."""
    return dict(Counter(one.reason for one in left_out).most_common())


def together_or_apart(
    parts: Sequence[_Item],
    compute: Callable[[Sequence[_Item]], _T],
    failed: Callable[[_Item, BaseException], None] | None,
    check_time: Callable[[], None],
) -> list[tuple[Sequence[_Item], _T]]:
    """``compute`` of all at once; if that raises, of each alone, without those that raise then too.

    Args:
        failed: told of each that raises alone; None: what is raised is raised.
        check_time: called before each alone; what it raises ends all.
    """
    try:
        return [(parts, compute(parts))]
    except BaseException as error:
        if failed is None or _stops(error):
            raise
        if len(parts) == 1:
            failed(parts[0], error)
            return []
    # Outside of the handler, which holds what the failed pass has in memory.
    found = []
    for place in range(len(parts)):
        check_time()
        found += together_or_apart(parts[place : place + 1], compute, failed, check_time)
    return found
