"""The Free On-line Dictionary of Computing by subject, where Debian's ``dict-foldoc`` is installed.

Each device holds the entries of one subject, the largest subjects first: a question for the term,
and the first sentence of its definition. Entries of several subjects belong to none, and each term
counts once. Copyright Denis Howe, http://www.foldoc.org/, GNU Free Documentation License; it is
read where it lies, and no part of it is in this repository.
"""

from __future__ import annotations

import gzip
import hashlib
import re
from collections import defaultdict
from pathlib import Path

from secagg.errors import ConfigurationError
from secagg_cli.models.corpus import ClientData, Pair

_DICTIONARY = Path("/usr/share/dictd/foldoc.dict.dz")  # gzip with an index of its own
_TRAIN_MAX, _HELD_OUT = 100, 10  # pairs of a device
_WORDS = range(4, 31)  # in a definition's first sentence
_ENTRY = re.compile(r"\n\n(?=\S)")
_DEFINITION = re.compile(
    r"\A(?P<term>\S[^\n]*)\n.*?\n {3}<(?P<subject>[a-z ]+)> (?P<text>.+)", re.DOTALL
)


def load_subjects(count: int) -> list[ClientData]:
    """The data of ``count`` devices, always the same.

    Raises:
        ConfigurationError: ``corpus-missing``; ``corpus-clients`` if there are fewer subjects of
            sufficient size.
    """
    if not _DICTIONARY.exists():
        raise ConfigurationError(
            "corpus-missing",
            "The dictionary of computing is not installed.",
            expected=str(_DICTIONARY),
            remedy="Install Debian's package dict-foldoc.",
        )
    with gzip.open(_DICTIONARY, "rt", encoding="utf-8") as file:
        found = subjects(file.read())
    enough = {name: pairs for name, pairs in found.items() if len(pairs) > 2 * _HELD_OUT}
    if not 1 <= count <= len(enough):
        raise ConfigurationError(
            "corpus-clients",
            "The dictionary cannot be divided among that many devices.",
            expected=f"1..{len(enough)}",
            found=count,
        )
    largest = sorted(enough, key=lambda name: (-len(enough[name]), name))[:count]
    return [_client(name, enough[name]) for name in largest]


def subjects(text: str) -> dict[str, list[Pair]]:
    """The usable entries of the dictionary's text by subject."""
    found: dict[str, dict[str, str]] = defaultdict(dict)
    seen: set[str] = set()
    for entry in _ENTRY.split(text):
        match = _DEFINITION.match(entry)
        if match is None:
            continue
        term = match["term"].strip()
        sentence = _first_sentence(match["text"])
        if term.casefold() in seen or len(sentence.split()) not in _WORDS:
            continue
        seen.add(term.casefold())
        found[match["subject"]][term] = sentence
    return {
        subject: [(f"What is {term}?", sentence) for term, sentence in entries.items()]
        for subject, entries in found.items()
    }


def _first_sentence(text: str) -> str:
    """Without line breaks and the braces of cross-references."""
    flat = " ".join(re.sub(r"[{}]", "", text.split("\n\n")[0]).split())
    return re.split(r"(?<=[.!?]) ", flat)[0]


def _client(name: str, pairs: list[Pair]) -> ClientData:
    """Entries in an order that no spelling decides; the first ones are held out."""
    order = sorted(pairs, key=lambda pair: hashlib.sha256(pair[0].encode()).digest())
    return ClientData(name, order[_HELD_OUT : _HELD_OUT + _TRAIN_MAX], order[:_HELD_OUT])
