"""The words of a report."""

from __future__ import annotations

import html
import re


def words(page: str) -> str:
    page = re.sub(r"<style.*?</style>|<svg.*?</svg>", "", page, flags=re.S)
    return " ".join(html.unescape(re.sub(r"<[^>]+>", " ", page)).split())
