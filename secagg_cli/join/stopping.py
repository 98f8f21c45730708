"""Ctrl-C and SIGTERM ask a device to stop; asked again, it ends where it is."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from collections.abc import Iterator
from types import FrameType

_SAID = b"Stopping; once more ends it at once, and the next run goes on from there.\n"


@contextlib.contextmanager
def stop_on_signals() -> Iterator[threading.Event]:
    """Set by the first signal; the second one raises ``KeyboardInterrupt``.

    A signal that is ignored (``nohup``) stays so. Outside of the main thread nothing is installed.
    """
    stop = threading.Event()

    def ask(number: int, frame: FrameType | None) -> None:
        if stop.is_set():
            raise KeyboardInterrupt
        stop.set()
        with contextlib.suppress(OSError):
            os.write(2, _SAID)  # not through a console: it may be what was interrupted

    with contextlib.ExitStack() as handlers:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                if signal.getsignal(number) is not signal.SIG_IGN:
                    handlers.callback(signal.signal, number, signal.signal(number, ask))
        yield stop
