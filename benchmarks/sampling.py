"""Where a process spends its time: all threads' stacks, a hundred times a second.

A sample counts for the innermost frame of the project in it, or, where there is none, for the
module that is running. Threads that wait (for a lock, a queue, a socket) are not counted.
"""

from __future__ import annotations

import atexit
import json
import sys
import threading
import time
from collections import Counter
from pathlib import Path
from types import FrameType

_INTERVAL_S = 0.01
_OURS = ("secagg", "dp", "aggregator", "client_sdk")
_WAITING = {"wait", "select", "poll", "get", "_worker", "acquire", "_recv", "run_forever", "join"}
_ROOT = str(Path(__file__).resolve().parent.parent)


def start(out: Path) -> None:
    """Sample this process from now to its end, then write ``{"place": samples}`` to ``out``."""
    counts: Counter[str] = Counter()
    own = threading.Event()
    atexit.register(lambda: out.write_text(json.dumps(dict(counts.most_common()))))

    def sample() -> None:
        me = threading.get_ident()
        while not own.is_set():
            for thread, frame in sys._current_frames().items():
                place = None if thread == me else _place(frame)
                if place is not None:
                    counts[place] += 1
            time.sleep(_INTERVAL_S)

    threading.Thread(target=sample, daemon=True, name="sampler").start()


def _place(frame: FrameType) -> str | None:
    if frame.f_code.co_name in _WAITING:
        return None
    innermost = frame
    here: FrameType | None = frame
    while here is not None:
        file = here.f_code.co_filename
        if file.startswith(_ROOT):
            relative = file[len(_ROOT) + 1 :]
            if relative.split("/")[0] in _OURS:
                return f"{relative}:{here.f_code.co_name}"
        here = here.f_back
    name = innermost.f_globals.get("__name__", "?")
    return f"({name.split('.')[0]})"
