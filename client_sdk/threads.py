"""Work beside the event loop: short work that must finish, and a contributor that may not."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Callable, Coroutine
from typing import Any, ParamSpec, TypeVar

from client_sdk.errors import RunningLoopError

_T = TypeVar("_T")
_P = ParamSpec("_P")


def demand_no_loop(call: str, *, awaited: bool = True) -> None:
    """Return if a call of the client may block here; ``call``: as the app writes it.

    Raises:
        RunningLoopError: ``loop-running``.
    """
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return
    raise RunningLoopError(
        "loop-running",
        f"{call}() blocks and begins an event loop of its own; this thread is in one.",
        remedy=f"Await {call}_async() here, or call it in a thread: "
        f"await asyncio.to_thread({call}, ...)."
        if awaited
        else f"Call it in a thread: await asyncio.to_thread({call}, ...).",
    )


async def finish_in_thread(work: Callable[_P, _T], *args: _P.args, **kwargs: _P.kwargs) -> _T:
    """Run short work in a thread; a cancelled caller still waits for its end.

    Else a cancelled participant could still write to a state folder that it no longer holds.
    """
    running = asyncio.ensure_future(asyncio.to_thread(work, *args, **kwargs))
    try:
        return await asyncio.shield(running)
    except asyncio.CancelledError:
        await asyncio.wait({running})
        raise


def start_in_thread(work: Callable[[], _T]) -> asyncio.Future[_T]:
    """Run long work in a daemon thread that nothing waits for when the process ends."""
    loop = asyncio.get_running_loop()
    future: asyncio.Future[_T] = loop.create_future()

    def settle(result: _T | None, error: BaseException | None) -> None:
        if future.done():
            return
        if error is not None:
            future.set_exception(error)
        else:
            future.set_result(result)  # type: ignore[arg-type]

    def run() -> None:
        result, error = None, None
        try:
            result = work()
        except BaseException as raised:
            error = raised
        with contextlib.suppress(RuntimeError):  # the loop has closed: nobody waits any more
            loop.call_soon_threadsafe(settle, result, error)

    threading.Thread(target=run, name="secagg-contributor", daemon=True).start()
    return future


async def beside(work: Coroutine[Any, Any, _T], watch: Coroutine[Any, Any, None]) -> _T:
    """The result of ``work``. ``watch`` ends with it; what ``watch`` raises first ends ``work``.

    Work that has its result all the same gives it.

    Raises:
        What ``work`` raises, or ``watch``.
    """
    working, watching = asyncio.create_task(work), asyncio.create_task(watch)
    try:
        await asyncio.wait({working, watching}, return_when=asyncio.FIRST_COMPLETED)
        if not working.done() and watching.exception() is None:
            await asyncio.wait({working})
    finally:
        for task in (working, watching):
            task.cancel()
        await asyncio.gather(working, watching, return_exceptions=True)
    if working.cancelled() and not watching.cancelled() and (error := watching.exception()):
        raise error
    return await working
