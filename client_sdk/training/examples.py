"""From an app's examples to token rows: one conversation, one row, one unit of privacy.

``client_sdk.training.row_forms`` has the forms of an example. A row is what the model is
prompted with (:func:`encode_prompt`, or the chat template), then the answer's own tokens, then one
end token. Rows that were packed or tokenised elsewhere are refused: in a packed row the pack, not
the conversation, would be what the noise protects.
"""

from __future__ import annotations

import hashlib
import itertools
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from client_sdk.errors import ContributionError
from client_sdk.training.row_files import Unread
from client_sdk.training.row_forms import Conversation, LabelledText, Turn, read_example

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Example = Mapping[str, Any] | Sequence[str] | Unread


@dataclass(frozen=True)
class Row:
    """Tokens of one conversation and, for each, whether it counts in the loss.

    Attributes:
        label: the class of a text for a classifier, where no token counts.
        index: the example's place in its data set, from 0; -1: in none.
        whole_tokens: how many it had before it was cut, where the cut took something that is
            learnt; 0: it took nothing.
        untaught: the reason for which no token counts, where that is not the cut.
        content: SHA-256 of what was read; empty in an empty row.
        owners: the persons or documents that it names under ``unit``, each once.
    """

    tokens: tuple[int, ...]
    counts: tuple[bool, ...]
    label: int | None = None
    index: int = -1
    whole_tokens: int = 0
    untaught: str | None = None
    content: bytes = field(default=b"", compare=False, repr=False)
    owners: tuple[str, ...] = field(default=(), compare=False, repr=False)


def encode_example(tokenizer: PreTrainedTokenizerBase, example: Any, max_tokens: int) -> Row:
    """Tokenise one conversation; every assistant turn up to its end token counts in the loss.

    Not so turns of weight 0, of a prompt that is given as messages, without any text, before every
    prompt, or with calls of tools that the template does not write. Rows are cut after
    ``max_tokens``, and say so where an answer is not whole then; a row of which nothing counts has
    no loss and contributes zero, and says why.

    Args:
        example: in a form of :mod:`client_sdk.training.row_forms`.

    Raises:
        ContributionError: ``example-unread``, ``example-template``, ``example-tools``, or as
            :func:`client_sdk.training.row_forms.read_example`; what a tokenizer raises comes as
            it is.
    """
    read = check_form(example)
    if isinstance(read, LabelledText):
        tokens = list(tokenizer(read.text)["input_ids"])
        whole_tokens = len(tokens) if len(tokens) > max_tokens else 0
        tokens = tokens[:max_tokens]
        counts = (False,) * len(tokens)
        row = Row(tuple(tokens), counts, read.label, whole_tokens=whole_tokens)
        return replace(row, content=_content(read))
    if tokenizer.chat_template:
        row = _templated(tokenizer, read, max_tokens)
    else:
        row = _plain(tokenizer, read)
    return replace(
        row,
        tokens=row.tokens[:max_tokens],
        counts=row.counts[:max_tokens],
        whole_tokens=len(row.tokens) if any(row.counts[max_tokens:]) else 0,
        content=_content(read),
    )


def _content(read: Conversation | LabelledText) -> bytes:
    """The same for the same texts in every process. It is stored (``client_sdk.state.places``):
    with another one no list would be known again."""
    if isinstance(read, LabelledText):
        parts: list[Any] = [read.text, read.label]
    else:
        parts = [[[dict(turn.message), turn.counts] for turn in read.turns], read.tools]
    return hashlib.sha256(json.dumps(parts, default=repr, skipkeys=True).encode()).digest()


def check_form(example: Any) -> Conversation | LabelledText:
    """What can be said of an example without a tokenizer.

    Raises:
        ContributionError: ``example-unread``, or as
            :func:`client_sdk.training.row_forms.read_example`.
    """
    if isinstance(example, Unread):
        raise ContributionError("example-unread", example.sentence)
    return read_example(example)


def encode_prompt(tokenizer: PreTrainedTokenizerBase, prompt: str) -> list[int]:
    """The tokens after which the model is to answer ``prompt``.

    Without a chat template: what the tokenizer puts first, and the prompt on a line of its own;
    nothing that the tokenizer puts last, for the answer stands there.
    """
    if tokenizer.chat_template:
        return _apply(tokenizer, [{"role": "user", "content": prompt}], prompts=True)
    first = _first_tokens(tokenizer)
    return first + _own_tokens(tokenizer, prompt + "\n", first)


def _plain(tokenizer: PreTrainedTokenizerBase, conversation: Conversation) -> Row:
    """For tokenizers without a chat template: turns on lines of their own."""
    if conversation.tools:
        raise ContributionError(
            "example-tools",
            "An example has tools, and the tokenizer no chat template that could write them.",
            remedy="Use a model with a chat template, or take the tools away.",
        )
    first = _first_tokens(tokenizer)
    tokens, counts = list(first), [False] * len(first)
    for place, turn in enumerate(conversation.turns):
        text = turn.text if turn.is_answer else turn.text + "\n"
        part = _own_tokens(tokenizer, text, [] if place else first)
        if turn.is_answer and tokenizer.eos_token_id is not None:
            part.append(tokenizer.eos_token_id)
        tokens += part
        counts += [place > 0 and _teaches(turn) and not turn.calls_tools] * len(part)
    return _row(tokens, counts, conversation, writes_calls=False)


def _first_tokens(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """The special tokens that a tokenizer puts before a text, such as BOS."""
    marked = list(tokenizer("a")["input_ids"])
    own = list(tokenizer("a", add_special_tokens=False)["input_ids"])
    for start in range(len(marked) - len(own) + 1):
        if own and marked[start : start + len(own)] == own:
            return marked[:start]
    # A tokenizer that has no token for the letter.
    last = (tokenizer.eos_token_id, tokenizer.sep_token_id)
    return list(itertools.takewhile(lambda token: token not in last, marked))


def _own_tokens(tokenizer: PreTrainedTokenizerBase, text: str, first: list[int]) -> list[int]:
    """A text's tokens, without special ones at its ends that are written in the text already."""
    tokens = list(tokenizer(text, add_special_tokens=False)["input_ids"])
    if first and tokens[: len(first)] == first:
        tokens = tokens[len(first) :]
    while tokens and tokens[-1] == tokenizer.eos_token_id:
        tokens.pop()
    return tokens


def _teaches(turn: Turn) -> bool:
    """An empty answer would teach the end token alone."""
    return turn.counts and (turn.calls_tools or bool(turn.text.strip()))


def _row(
    tokens: list[int], counts: list[bool], conversation: Conversation, *, writes_calls: bool
) -> Row:
    """With the reason, where nothing counts: that of the last answer."""
    untaught = None
    if not any(counts):
        place, last = [(i, t) for i, t in enumerate(conversation.turns) if t.is_answer][-1]
        if not last.counts:
            untaught = "example-weight-zero"
        elif not _teaches(last):
            untaught = "example-answer-empty"
        elif place == 0:
            untaught = "example-answer-first"
        elif last.calls_tools and not writes_calls:
            untaught = "example-calls-unwritten"
        else:
            untaught = "example-answer-unwritten"
    return Row(tuple(tokens), tuple(counts), untaught=untaught)


def _templated(
    tokenizer: PreTrainedTokenizerBase, conversation: Conversation, max_tokens: int
) -> Row:
    turns, tools = conversation.turns, conversation.tools
    messages = [dict(turn.message) for turn in turns]
    tokens = _apply(tokenizer, messages, tools)
    if tools and _apply(tokenizer, messages) == tokens:
        raise ContributionError(
            "example-tools",
            "An example has tools, and the chat template does not write them.",
            remedy="Use a model whose chat template does, or take the tools away.",
        )
    writes_calls = _writes_calls(tokenizer, conversation, messages, tokens)
    counts = [False] * len(tokens)
    for i, turn in enumerate(turns):
        if i == 0 or not _teaches(turn) or (turn.calls_tools and not writes_calls):
            continue
        prompt = _apply(tokenizer, messages[:i], tools, prompts=True)
        start = _common(prompt, tokens)
        if start >= max_tokens:
            counts[start:] = [True] * len(counts[start:])  # beyond the cut: told, and not learnt
            break  # else thousands of turns would each be encoded with all before
        upto = _apply(tokenizer, messages[: i + 1], tools)
        rewritten = tokens[: len(upto)] != upto
        if not rewritten and start < len(prompt):
            # The answer's first token may be another where texts meet, or the prompt ends in words
            # for the model alone; but what stands before the turn stays as it is.
            rewritten = start < len(_apply(tokenizer, messages[:i], tools))
        if rewritten:
            raise ContributionError(
                "example-template",
                "The chat template changes earlier turns when later ones follow.",
                remedy="Give one (prompt, answer) pair per example.",
            )
        end = len(upto)
        while end > start and upto[end - 1] != tokenizer.eos_token_id:
            end -= 1  # what a template writes after the end token is not the answer's
        for t in range(start, end if end > start else len(upto)):
            counts[t] = True
    return _row(tokens, counts, conversation, writes_calls=writes_calls)


def _writes_calls(
    tokenizer: PreTrainedTokenizerBase,
    conversation: Conversation,
    messages: list[dict[str, Any]],
    tokens: list[int],
) -> bool:
    """Whether the template shows calls of tools; a turn of which it does not would be cut short."""
    if not any(turn.calls_tools for turn in conversation.turns):
        return True
    without = [{n: part for n, part in m.items() if n != "tool_calls"} for m in messages]
    try:
        return _apply(tokenizer, without, conversation.tools) != tokens
    except ContributionError:
        return True  # it refuses the turns that are empty then


def _common(first: Sequence[int], second: Sequence[int]) -> int:
    """How many tokens are the same from the start."""
    pairs = itertools.takewhile(lambda pair: pair[0] == pair[1], zip(first, second, strict=False))
    return sum(1 for _ in pairs)


def _apply(
    tokenizer: PreTrainedTokenizerBase,
    messages: list[dict[str, Any]],
    tools: Sequence[dict[str, Any]] = (),
    *,
    prompts: bool = False,
) -> list[int]:
    try:
        encoded: Any = tokenizer.apply_chat_template(
            messages,
            tools=list(tools) or None,
            add_generation_prompt=prompts,
            tokenize=True,
            return_dict=True,
        )
    except Exception as error:
        if type(error).__module__.partition(".")[0] != "jinja2":
            raise
        own = str(error) in str(tokenizer.chat_template)  # else it may quote the conversation
        raise ContributionError(
            "example-template",
            f"The chat template refuses the conversation{f': {error}' if own else ''}.",
        ) from error
    return list(encoded["input_ids"])
