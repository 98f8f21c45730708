"""The uploads of a made-up cohort over a real folder."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from aggregator.cohorts.uploads import Uploads
from aggregator.metrics import Metrics
from aggregator.store.blobs import BlobStore
from secagg.server import Masking


def uploads_of(folder: Path, payload: bytes) -> tuple[Uploads, BlobStore, list[bool]]:
    """Of a cohort with one device, whose vector is ``payload``; and its failures."""
    failures: list[bool] = []
    ticket = SimpleNamespace(
        index=0, size_bytes=len(payload), vector_digest=hashlib.sha256(payload).digest()
    )
    state = object.__new__(Masking)
    object.__setattr__(state, "added", frozenset())
    roster = [SimpleNamespace(identity_key=bytes(32))]
    object.__setattr__(state, "facts", SimpleNamespace(roster=roster))
    cohort: Any = SimpleNamespace(
        id="c" * 64,
        state=state,
        over=False,
        replay=SimpleNamespace(uploads={0: ticket}),
        work_failed=lambda: failures.append(True),
    )
    blobs = BlobStore(folder)
    core: Any = SimpleNamespace(blobs=blobs, metrics=Metrics(), ask_blobs=asyncio.to_thread)
    return Uploads(core, cohort), blobs, failures


async def body(data: bytes) -> AsyncIterator[bytes]:
    yield data
