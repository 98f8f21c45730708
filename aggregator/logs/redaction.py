"""What a line may show of a text that others made: bounded, and without what could be a secret."""

from __future__ import annotations

import re
from collections.abc import Callable

_LOOKED_AT = 1 << 14  # characters of a text that are searched; what is beyond is left out
_HEX_KEPT = 8  # digits that tell one digest from another
_NAMES = "password|passwd|token|secret|seed|authorization|access_?key|api_?key|private_?key"
_RANDOM_MIN = 0.25  # share of capitals and digits; random base64 has 0.56, a path few


def _without_user(found: re.Match[str]) -> str:
    """What stands between ``://`` and the last ``@`` is user and password."""
    before, at, host = found[0].rpartition("@")
    return f"://<redacted>@{host}" if at else before + host


def _without_random(found: re.Match[str]) -> str:
    text = found[0]
    kinds = sum(c.isupper() for c in text), sum(c.isdigit() for c in text)
    random = all(kinds) and not text.isupper() and sum(kinds) >= _RANDOM_MIN * len(text)
    return "<redacted>" if random else text


# Each is linear in the text: no part of it is looked at again from another beginning. Lines are
# written on the event loop, and of texts that callers choose.
_PATTERNS: tuple[tuple[re.Pattern[str], str | Callable[[re.Match[str]], str]], ...] = (
    (re.compile(r"://[^\s'\"]*+"), _without_user),
    (
        re.compile(r"\[parameters: .*?(?:\][ \t]*$|\Z)", re.DOTALL | re.MULTILINE),
        "[parameters: <redacted>]",
    ),
    (re.compile(r"^[ \t]*+DETAIL: .*$", re.MULTILINE), "DETAIL: <redacted>"),  # shows values
    (re.compile(r"\b(bearer|basic) ++[^\s'\",;]++", re.IGNORECASE), r"\1 <redacted>"),
    (
        re.compile(
            rf"((?:{_NAMES})\w{{0,40}}['\"]?\s{{0,8}}[=:]\s{{0,8}})"
            r"(?:\"[^\"]*+\"|'[^']*+'|[^\s,;)\]}]++)",
            re.IGNORECASE,
        ),
        r"\1<redacted>",
    ),
    (re.compile(r"\bb'(?:[^'\\]|\\.)*+(?:'|\\?\Z)", re.DOTALL), "<bytes>"),
    (re.compile(r'\bb"(?:[^"\\]|\\.)*+(?:"|\\?\Z)', re.DOTALL), "<bytes>"),
    (
        re.compile(rf"(?<![0-9A-Za-z])([0-9a-fA-F]{{{_HEX_KEPT}}})[0-9a-fA-F]{{24,}}+"),
        r"\1...",
    ),
    (re.compile(r"(?<![\w+/-])[\w+/-]{40,}+={0,2}", re.ASCII), _without_random),  # base64
    (  # base64url, such as a token: digits, small and capital letters, and long
        re.compile(
            r"(?<![\w+-])(?=[\w+-]*\d)(?=[\w+-]*[A-Z])(?=[\w+-]*[a-z])[\w+-]{40,}+={0,2}",
            re.ASCII,
        ),
        "<redacted>",
    ),
)


def shown(text: str, most: int) -> str:
    """``text`` without secrets, at most about ``most`` characters: its beginning and its end.

    The first digits of a digest or key in hex stay, so that one is told from another.
    """
    text = _cut(text, _LOOKED_AT)
    for pattern, instead in _PATTERNS:
        text = pattern.sub(instead, text)
    return _cut(text, most)


def _cut(text: str, most: int) -> str:
    if len(text) <= most:
        return text
    begins = most // 4
    return f"{text[:begins]} ... {text[begins - most :]}"
