"""What a line may show of a text that others made: bounded, and without what could be a secret."""

from __future__ import annotations

import re

_LOOKED_AT = 1 << 16  # characters of a text that are searched; what is beyond is left out
_HEX_KEPT = 8  # digits that tell one digest from another

_PATTERNS: tuple[tuple[re.Pattern[str], str], ...] = (
    (re.compile(r"://[^\s'\"]*@"), "://<redacted>@"),  # user and password of a URL
    (re.compile(r"\[parameters: .*?\]\s*$", re.DOTALL | re.MULTILINE), "[parameters: <redacted>]"),
    (re.compile(r"^\s*DETAIL: .*$", re.MULTILINE), "DETAIL: <redacted>"),  # PostgreSQL shows values
    (re.compile(r"\b(bearer|basic) +[^\s'\",;]+", re.IGNORECASE), r"\1 <redacted>"),
    (
        re.compile(
            r"\b(\w*(?:password|passwd|token|secret|seed|authorization))(\s*[=:]\s*)[^\s,;)\]}]+",
            re.IGNORECASE,
        ),
        r"\1\2<redacted>",
    ),
    (re.compile(r"\bb'(?:[^'\\]|\\.)*(?:'|\Z)", re.DOTALL), "<bytes>"),
    (re.compile(r'\bb"(?:[^"\\]|\\.)*(?:"|\Z)', re.DOTALL), "<bytes>"),
    (
        re.compile(rf"(?<![0-9A-Za-z])([0-9a-fA-F]{{{_HEX_KEPT}}})[0-9a-fA-F]{{24,}}"),
        r"\1...",
    ),
    (  # base64url, such as a token: digits, small and capital letters, and long
        re.compile(
            r"(?<![\w+-])(?=[\w+-]*\d)(?=[\w+-]*[A-Z])(?=[\w+-]*[a-z])[\w+-]{40,}={0,2}",
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
