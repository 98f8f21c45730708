"""Where a process spends its CPU time: all threads' stacks, a hundred times a second.

A sample weighs what its thread has spent on a processor since the last one (Linux tells, in
/proc), so a thread that waits weighs nothing. It counts for the innermost frame of the project in
it, or, where there is none, for the library that is running.
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
_ROOT = str(Path(__file__).resolve().parent.parent)


def start(out: Path) -> None:
    """Sample this process from now to its end, then write ``{"place": CPU seconds}`` to ``out``."""
    spent: Counter[str] = Counter()
    atexit.register(lambda: out.write_text(json.dumps(dict(spent.most_common()))))

    def sample() -> None:
        before: dict[int, int] = {}
        while True:
            frames = sys._current_frames()
            for thread in threading.enumerate():
                frame, native = frames.get(thread.ident or 0), thread.native_id
                if frame is None or native is None or native == threading.get_native_id():
                    continue
                now_ns = _on_cpu_ns(native)
                spent[_place(frame)] += (now_ns - before.get(native, now_ns)) / 1e9
                before[native] = now_ns
            time.sleep(_INTERVAL_S)

    threading.Thread(target=sample, daemon=True, name="sampler").start()


def _on_cpu_ns(native: int) -> int:
    try:
        return int(Path(f"/proc/self/task/{native}/schedstat").read_text().split()[0])
    except OSError:  # it has just ended
        return 0


def _place(frame: FrameType) -> str:
    here: FrameType | None = frame
    while here is not None:
        file = here.f_code.co_filename
        if file.startswith(_ROOT):
            relative = file[len(_ROOT) + 1 :]
            if relative.split("/")[0] in _OURS and relative != "aggregator/main.py":
                return f"{relative}:{here.f_code.co_name}"
        here = here.f_back
    return f"({frame.f_globals.get('__name__', '?').split('.')[0]})"
