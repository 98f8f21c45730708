"""For all tests: services of tests are on this machine, whatever proxy its environment names."""

from __future__ import annotations

import os

import pytest

PROXIES = ("http_proxy", "https_proxy", "all_proxy")

if any(os.environ.get(name) or os.environ.get(name.upper()) for name in PROXIES):
    os.environ["no_proxy"] = "127.0.0.1,localhost,::1"


@pytest.fixture
def no_proxies(monkeypatch: pytest.MonkeyPatch) -> None:
    """An environment that says nothing of proxies."""
    for name in (*PROXIES, "no_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)
