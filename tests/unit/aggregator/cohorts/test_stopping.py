"""A stop waits for a write that has begun, and not for ever."""

from __future__ import annotations

import asyncio

import pytest

from aggregator.cohorts import actor


async def test_a_write_that_gets_its_turn_is_finished() -> None:
    written: list[str] = []

    async def write() -> None:
        await asyncio.sleep(0)
        written.append("row")

    await actor.end_write(asyncio.create_task(write()))
    assert written == ["row"]


async def test_a_write_whose_turn_a_stop_holds_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(actor, "_LAST_WRITE_S", 0.01)
    turn = asyncio.Lock()
    async with turn:
        writing = asyncio.create_task(_in_turn(turn))
        await asyncio.wait_for(actor.end_write(writing), 5.0)
    assert writing.cancelled()


async def _in_turn(turn: asyncio.Lock) -> None:
    async with turn:
        pass
