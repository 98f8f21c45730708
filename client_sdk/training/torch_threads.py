"""How many threads torch computes with: set for a job, and put back at its end."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

import torch

_lock = threading.Lock()
_jobs = 0  # that run now with a number of their own
_before = 0  # the number when the first of them began


@contextmanager
def torch_threads(count: int | None) -> Iterator[None]:
    """``count`` threads of this process; None: as many as there are.

    Jobs that overlap put back what the first of them found.
    """
    global _jobs, _before
    if count is None:
        yield
        return
    with _lock:
        if _jobs == 0:
            _before = torch.get_num_threads()
        _jobs += 1
        torch.set_num_threads(count)
    try:
        yield
    finally:
        with _lock:
            _jobs -= 1
            torch.set_num_threads(_before)
