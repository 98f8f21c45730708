"""Real text for the demo: topics of ``chatterbot-corpus`` as naturally uneven clients.

The English part of the corpus (read from the installed package) has some twenty topics of ten to
260 different question-answer pairs. The larger ones become clients, each capped so that one round
stays short; the small-talk topics are the public part that ``tiny`` is made from. Repeated pairs
count once, and no question is in two clients, or in both training and held-out parts.
"""

from __future__ import annotations

import hashlib
import importlib.util
import itertools
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from secagg.errors import ConfigurationError

Pair = tuple[str, str]  # question, answer

# Client, its topic files, and the most training pairs that it keeps.
_CLIENT_TOPICS: tuple[tuple[str, tuple[str, ...], int], ...] = (
    ("trivia", ("trivia",), 160),
    ("emotion", ("emotion",), 110),
    ("ai", ("ai",), 80),
    ("coding", ("coding",), 40),
    ("psychology", ("psychology",), 50),
    ("science", ("science", "computers"), 45),
    ("literature", ("literature",), 40),
    ("money", ("money",), 25),
)
_PUBLIC_TOPICS = (
    "botprofile",
    "conversations",
    "food",
    "gossip",
    "greetings",
    "health",
    "history",
    "humor",
    "movies",
    "politics",
    "sports",
    "tech_support",  # 1,050 entries, but only ten different ones
)
# In these files every further line is one more answer to the first one, not the next turn.
_ALTERNATIVES = frozenset({"computers", "emotion", "literature"})
_HELD_OUT_SHARE = 0.1
_HELD_OUT_MIN = 4  # pairs
_TURNS_MAX = 16  # trivia has one entry of 88 lines that is a list, not a dialogue
# Held out for any number of clients.
_EXAMPLE_QUESTION = "What is the most abundant element in the universe?"
CLIENTS_MAX = 32  # beyond that a client has about ten pairs


@dataclass(frozen=True)
class ClientData:
    """One client's data: ``train`` stays with its device, ``heldout`` measures the demo."""

    name: str
    train: list[Pair]
    heldout: list[Pair]


def load_clients(n: int = 6, seed: int = 0) -> list[ClientData]:
    """The data of ``n`` clients, the same for the same (n, seed).

    Up to eight clients get a topic each, the largest topics first. More clients share topics: the
    largest are divided until there are ``n``.

    Raises:
        ConfigurationError: ``corpus-missing``; ``corpus-clients`` when ``n`` is out of range.
    """
    if not 1 <= n <= CLIENTS_MAX:
        raise ConfigurationError(
            "corpus-clients",
            "The corpus cannot be divided among that many clients.",
            expected=f"1..{CLIENTS_MAX}",
            found=n,
        )
    taken: set[str] = set()
    clients = []
    for name, topics, train_max in _CLIENT_TOPICS[:n]:
        questions = _by_question((pair for t in topics for pair in _pairs(t)), taken)
        clients.append(_split(name, questions, train_max, seed))
    parts = dict.fromkeys((client.name for client in clients), 1)
    sizes = {client.name: len(client.train) for client in clients}
    for _ in range(n - len(clients)):
        parts[max(parts, key=lambda name: sizes[name] / parts[name])] += 1
    return [part for client in clients for part in _divide(client, parts[client.name])]


def example_pair(heldout: Iterable[Pair]) -> Pair:
    """The pair that the demo shows: no device trains on its question.

    Chosen once among the held-out ones: the corpus has a word for it, and the untrained model knows
    the answer but does not stop there.
    """
    return next(pair for pair in heldout if pair[0] == _EXAMPLE_QUESTION)


def _divide(client: ClientData, parts: int) -> list[ClientData]:
    if parts == 1:
        return [client]
    return [
        ClientData(f"{client.name} {i + 1}", client.train[i::parts], client.heldout[i::parts])
        for i in range(parts)
    ]


def public_pairs() -> list[Pair]:
    """The public part: small talk of topics that no client holds."""
    questions = _by_question((p for topic in _PUBLIC_TOPICS for p in _pairs(topic)), set())
    return [pair for pairs in questions.values() for pair in pairs]


def _by_question(pairs: Iterable[Pair], taken: set[str]) -> dict[str, list[Pair]]:
    """Pairs under their question, each once, without the questions in ``taken`` (extended)."""
    questions: dict[str, list[Pair]] = {}
    seen: set[tuple[str, str]] = set()
    for question, answer in pairs:
        key = question.casefold()
        if key not in taken and (key, answer.casefold()) not in seen:
            seen.add((key, answer.casefold()))
            questions.setdefault(key, []).append((question, answer))
    taken.update(questions)
    return questions


def _split(name: str, questions: dict[str, list[Pair]], train_max: int, seed: int) -> ClientData:
    """Whole questions are held out, in the order of a keyed hash, until the share is reached."""

    def order(question: str) -> bytes:
        return hashlib.sha256(f"{seed}\n{question}".encode()).digest()

    shuffled = [pair for key in sorted(questions, key=order) for pair in questions[key]]
    held_out = max(_HELD_OUT_MIN, round(_HELD_OUT_SHARE * min(train_max, len(shuffled))))
    while held_out < len(shuffled) and (
        shuffled[held_out][0].casefold() == shuffled[held_out - 1][0].casefold()
    ):
        held_out += 1
    return ClientData(name, shuffled[held_out : held_out + train_max], shuffled[:held_out])


@cache
def _pairs(topic: str) -> tuple[Pair, ...]:
    import yaml

    path = _corpus_folder() / f"{topic}.yml"
    loader: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    with path.open(encoding="utf-8") as file:
        conversations = yaml.load(file, Loader=loader)["conversations"]  # noqa: S506  (safe loader)
    pairs = []
    for lines in conversations:
        lines = [str(line).strip() for line in lines]
        if topic in _ALTERNATIVES:
            pairs += [(lines[0], answer) for answer in lines[1:]]
        elif len(lines) <= _TURNS_MAX:
            pairs += list(itertools.pairwise(lines))
    return tuple((q, a) for q, a in pairs if q and a)


def _corpus_folder() -> Path:
    spec = importlib.util.find_spec("chatterbot_corpus")
    if spec is None or not spec.submodule_search_locations:
        raise ConfigurationError(
            "corpus-missing",
            "The package chatterbot-corpus is not installed.",
            remedy="Install the demo extra: pip install 'secagg[demo]'.",
        )
    return Path(next(iter(spec.submodule_search_locations))) / "data" / "english"
