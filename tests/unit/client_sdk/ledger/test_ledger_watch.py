"""The device's watch: a log that shrinks, forks or lacks a release is refused."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import pytest
import rfc8785

from client_sdk.errors import LedgerRefusal, TransportError
from client_sdk.ledger.models import SEARCHED_MAX
from client_sdk.ledger.watch import LedgerWatch
from dp.ledger.records import identity_digest
from dp.ledger.trusted_log import GROWTH_MAX, LEAVES_MAX
from dp.tlog import merkle, tiles
from dp.tlog.notes import Checkpoint, sign_checkpoint, verifier_key
from secagg.keys import identity_public_key
from secagg.secret import Secret
from tests.kits.device import journal_in

ORIGIN = "ledger.test"
SEED = Secret(bytes(range(32)))
VERIFIER = verifier_key(ORIGIN, identity_public_key(SEED))
CTX = b"x" * 32
DEVICE = b"i" * 32
CLAIM: dict[str, Any] = {
    "task": "stats",
    "release": 1,
    "ctx": CTX,
    "manifest_digest": b"m" * 32,
    "identity_key": DEVICE,
}


class Log:
    """A log in memory that serves its files like the aggregator; tests bend it as they like."""

    def __init__(self, entries: list[bytes], seed: Secret = SEED, origin: str = ORIGIN) -> None:
        self.entries = entries
        self.files: dict[str, bytes] = {}
        self.reads: list[str] = []
        self.render(seed, origin)

    def render(self, seed: Secret, origin: str) -> None:
        tree = merkle.Tree([merkle.leaf_hash(entry) for entry in self.entries])
        for tile in tiles.tiles_of(tree.size):
            self.files[tile.path] = tiles.tile_bytes(tree.subtree, tile)
        for bundle in tiles.bundles_of(tree.size):
            first = bundle.number * tiles.TILE_WIDTH
            self.files[bundle.path] = tiles.bundle_bytes(self.entries[first : first + bundle.width])
        checkpoint = Checkpoint(origin, tree.size, merkle.root(tree.subtree, tree.size))
        self.files["checkpoint"] = sign_checkpoint(checkpoint, seed)

    async def ledger(self, path: str) -> bytes | None:
        self.reads.append(path)
        return self.files.get(path)


def release(number: int, **changes: object) -> bytes:
    record = {
        "type": "release",
        "outcome": "released",
        "task": "stats",
        "release": number,
        "ctx": CTX.hex(),
        "manifest_digest": (b"m" * 32).hex(),
        "contributors": [identity_digest(key).hex() for key in (b"a" * 32, DEVICE)],
        "survivors": 5,
        "masking_set_size": 6,
    }
    return rfc8785.dumps({**record, **changes})


def entries(count: int, salt: str = "") -> list[bytes]:
    return [rfc8785.dumps({"type": "policy", "n": n, "salt": salt}) for n in range(count)]


def watch(log: Log, folder: Path) -> LedgerWatch:
    async def at_once(seconds: float) -> None:
        pass

    return LedgerWatch(log, journal_in(folder), VERIFIER, at_once)  # type: ignore[arg-type]


async def reason_of(log: Log, folder: Path, leaf: int | None = None) -> str:
    watched = watch(log, folder)
    asked = watched.advance() if leaf is None else watched.verify_release(leaf, **CLAIM)
    with pytest.raises(LedgerRefusal) as caught:
        await asked
    return caught.value.reason


@pytest.mark.parametrize(("before", "after"), [(1, 1), (1, 2), (3, 7), (255, 257), (256, 600)])
async def test_a_log_that_grows_is_followed(tmp_path: Path, before: int, after: int) -> None:
    grown = entries(after)
    await watch(Log(grown[:before]), tmp_path).advance()
    assert (await watch(Log(grown), tmp_path).advance()).size == after
    remembered = watch(Log(grown), tmp_path).remembered()
    assert remembered is not None
    assert remembered.size == after


async def test_a_log_that_shrinks_is_refused_and_the_longer_one_remembered(tmp_path: Path) -> None:
    grown = entries(7)
    await watch(Log(grown), tmp_path).advance()
    assert await reason_of(Log(grown[:6]), tmp_path) == "ledger-rolled-back"
    remembered = watch(Log(grown), tmp_path).remembered()
    assert remembered is not None
    assert remembered.size == 7


@pytest.mark.parametrize("size", [7, 8, 300])
async def test_a_log_that_forks_is_refused(tmp_path: Path, size: int) -> None:
    await watch(Log(entries(7)), tmp_path).advance()
    forked = Log(entries(3) + entries(size, "other")[3:])
    assert await reason_of(forked, tmp_path) == "ledger-forked"


async def test_tiles_of_another_log_do_not_hide_a_fork(tmp_path: Path) -> None:
    """The root is signed, the tiles are not: honest tiles under a forked root prove nothing."""
    honest = Log(entries(9))
    await watch(Log(entries(7)), tmp_path).advance()
    forked = Log(entries(9, "other"))
    honest.files["checkpoint"] = forked.files["checkpoint"]
    assert await reason_of(honest, tmp_path) == "ledger-forked"


@pytest.mark.parametrize("seen", [False, True])
async def test_an_empty_log_of_another_root_is_a_fork(tmp_path: Path, seen: bool) -> None:
    if seen:
        await watch(Log([]), tmp_path).advance()
    forked = Log([])
    forked.files["checkpoint"] = sign_checkpoint(Checkpoint(ORIGIN, 0, b"r" * 32), SEED)
    assert await reason_of(forked, tmp_path) == "ledger-forked"
    remembered = watch(forked, tmp_path).remembered()
    assert remembered == (Checkpoint(ORIGIN, 0, merkle.EMPTY_ROOT) if seen else None)


async def test_a_checkpoint_of_another_key_or_log_is_refused(tmp_path: Path) -> None:
    assert await reason_of(Log(entries(2), Secret(bytes(32))), tmp_path) == "note-unsigned"
    assert await reason_of(Log(entries(2), SEED, "other.test"), tmp_path) == "note-unsigned"


@pytest.mark.parametrize("note", [b"", b"\xff", b"ledger.test\n1\n", b"x" * 100])
async def test_a_checkpoint_that_does_not_parse_is_refused(tmp_path: Path, note: bytes) -> None:
    log = Log(entries(2))
    log.files["checkpoint"] = note
    assert await reason_of(log, tmp_path) == "note-malformed"


async def test_a_log_without_its_files_is_incomplete(tmp_path: Path) -> None:
    await watch(Log(entries(7)), tmp_path).advance()
    log = Log(entries(9))
    log.files = {"checkpoint": log.files["checkpoint"]}
    with pytest.raises(LedgerRefusal) as caught:
        await watch(log, tmp_path).advance()
    assert caught.value.reason == "ledger-incomplete"
    assert "lacks a resource" in caught.value.message
    assert str(caught.value.found).startswith("tile/")


async def test_both_logs_are_named_where_one_does_not_extend_the_other(tmp_path: Path) -> None:
    await watch(Log(entries(7)), tmp_path).advance()
    with pytest.raises(LedgerRefusal) as shrunk:
        await watch(Log(entries(6)), tmp_path).advance()
    assert (shrunk.value.expected, shrunk.value.found) == ("at least 7 leaves", 6)
    with pytest.raises(LedgerRefusal) as forked:
        await watch(Log(entries(8, "other")), tmp_path).advance()
    assert str(forked.value.expected).startswith("7 leaves under ")
    assert str(forked.value.found).startswith("8 leaves under ")


class Refusing(Log):
    """What is asked for is refused for good."""

    async def ledger(self, path: str) -> bytes | None:
        raise TransportError("forbidden", "No.", status=403)


async def test_a_file_that_is_refused_makes_the_ledger_unreadable(tmp_path: Path) -> None:
    with pytest.raises(LedgerRefusal) as caught:
        await watch(Refusing([]), tmp_path).advance()
    assert (caught.value.reason, caught.value.found) == ("ledger-unreadable", 403)


@pytest.mark.parametrize("leaf", [0, 5, 254, 255, 256, 299])
async def test_a_release_is_proven_by_tiles(tmp_path: Path, leaf: int) -> None:
    log = entries(300)
    log[leaf] = release(1)
    record = await watch(Log(log), tmp_path).verify_release(leaf, **CLAIM)
    assert record["survivors"] == 5


@pytest.mark.parametrize(
    ("masking_set", "survivors", "proven"),
    [(6, 5, True), (0, 0, True), (6, 4, False), (7, 5, False), (5, 5, False)],
)
async def test_a_record_of_other_sets_than_the_device_confirmed_is_refused(
    tmp_path: Path, masking_set: int, survivors: int, proven: bool
) -> None:
    """Epsilon and the guaranteed noise follow from both sizes: they are not the operator's word."""
    watched = watch(Log([release(1)]), tmp_path)
    asked = watched.verify_release(0, **CLAIM, masking_set_size=masking_set, survivors=survivors)
    if proven:
        assert (await asked)["survivors"] == 5
        return
    with pytest.raises(LedgerRefusal) as caught:
        await asked
    assert caught.value.reason == "release-mismatch"


@pytest.mark.parametrize(
    "changes",
    [
        {"ctx": "00" * 32},
        {"release": 2},
        {"task": "other"},
        {"type": "policy"},
        {"outcome": "charged"},
        {"manifest_digest": "00" * 32},
        {"version": 0},
        {"version": True},
    ],
)
async def test_another_release_at_the_leaf_is_refused(
    tmp_path: Path, changes: dict[str, object]
) -> None:
    log = Log([*entries(3), release(1, **changes)])
    with pytest.raises(LedgerRefusal) as caught:
        await watch(log, tmp_path).verify_release(3, **CLAIM)
    assert caught.value.reason == "release-mismatch"
    assert set(caught.value.evidence) == {"record", "leaf_index", "entry", "proof", "checkpoint"}


async def test_a_release_of_a_later_version_is_refused_as_such(tmp_path: Path) -> None:
    log = Log([*entries(3), release(1, version=3)])
    with pytest.raises(LedgerRefusal) as caught:
        await watch(log, tmp_path).verify_release(3, **CLAIM)
    assert (caught.value.reason, caught.value.found) == ("record-version", 3)
    assert caught.value.lasting


@pytest.mark.parametrize("contributors", [[], [identity_digest(b"a" * 32).hex()], None, 7])
async def test_a_release_without_this_device_is_refused(
    tmp_path: Path, contributors: object
) -> None:
    log = Log([release(1, contributors=contributors)])
    assert await reason_of(log, tmp_path, leaf=0) == "contributor-missing"


async def test_a_release_that_counts_this_device_twice_is_refused(tmp_path: Path) -> None:
    log = Log([release(1, contributors=[identity_digest(DEVICE).hex()] * 2)])
    assert await reason_of(log, tmp_path, leaf=0) == "contributor-missing"


async def test_a_record_that_is_shown_but_not_logged_is_refused(tmp_path: Path) -> None:
    log = Log(entries(4))
    shown = Log([*entries(3), release(1)])
    bundle = next(path for path in log.files if "entries" in path)
    log.files[bundle] = shown.files[bundle]
    assert await reason_of(log, tmp_path, leaf=3) == "release-not-proven"


async def test_a_receipt_beyond_the_log_is_refused(tmp_path: Path) -> None:
    assert await reason_of(Log(entries(4)), tmp_path, leaf=4) == "release-not-proven"


async def test_a_log_that_is_rendered_a_moment_later_is_waited_for(tmp_path: Path) -> None:
    log = Log(entries(3))
    final = Log([*entries(3), release(1)])

    async def later(seconds: float) -> None:
        log.files = final.files

    watched = LedgerWatch(log, journal_in(tmp_path), VERIFIER, later)  # type: ignore[arg-type]
    assert await watched.verify_release(3, **CLAIM)


async def test_a_record_that_is_no_json_is_refused(tmp_path: Path) -> None:
    assert await reason_of(Log([b"\xff"]), tmp_path, leaf=0) == "release-mismatch"


SECOND_READINGS = {
    "a key twice, the last one right": lambda entry: b'{"release":9,' + entry[1:],
    "a key twice, the first one right": lambda entry: entry[:-1] + b',"survivors":9}',
    "a space": lambda entry: entry.replace(b":", b": ", 1),
    "a line at the end": lambda entry: entry + b"\n",
    "keys out of order": lambda entry: (
        b'{"type":"release",' + entry[1:].replace(b',"type":"release"', b"")
    ),
    "a letter by its number": lambda entry: entry.replace(b"stats", b"\\u0073tats"),
    "a number as a float": lambda entry: entry.replace(b'"release":1', b'"release":1.0'),
    "a number with an exponent": lambda entry: entry.replace(b'"release":1', b'"release":1e0'),
    "a number that is true": lambda entry: entry.replace(b'"release":1', b'"release":true'),
    "not a number": lambda entry: entry[:-1] + b',"x":NaN}',
    "half a letter": lambda entry: entry[:-1] + b',"x":"\\ud800"}',
}


@pytest.mark.parametrize("name", SECOND_READINGS)
async def test_a_record_that_others_read_differently_is_refused(tmp_path: Path, name: str) -> None:
    """An auditor reads bytes in one way; a device that reads them in another one proves nothing."""
    entry = release(1)
    changed = SECOND_READINGS[name](entry)
    assert changed != entry
    reason = await reason_of(Log([changed]), tmp_path, leaf=0)
    assert reason in ("release-mismatch", "contributor-missing")


MODELS = {"task": "stats", "manifest_digest": b"m" * 32}


def task_leaf(model: bytes, **changes: object) -> bytes:
    record = {"type": "task", "task": "stats", "manifest_digest": (b"m" * 32).hex()}
    return rfc8785.dumps({**record, "model_digest": model.hex(), **changes})


async def test_the_models_of_a_buffer_are_those_of_the_ledger(tmp_path: Path) -> None:
    log = Log(
        [
            task_leaf(b"0" * 32),
            release(1, new_model_digest=(b"1" * 32).hex()),
            *entries(300),
            release(2, new_model_digest=(b"2" * 32).hex()),
        ]
    )
    await watch(log, tmp_path).verify_models(frozenset({b"2" * 32}), **MODELS)
    models = frozenset({b"0" * 32, b"1" * 32, b"2" * 32})
    await watch(log, tmp_path).verify_models(models, **MODELS)


@pytest.mark.parametrize(
    "leaf",
    [
        release(1, new_model_digest=(b"2" * 32).hex()),
        release(1, new_model_digest=(b"1" * 32).hex(), task="another"),
        release(1, new_model_digest=(b"1" * 32).hex(), manifest_digest="00"),
        release(1, new_model_digest=(b"1" * 32).hex(), outcome="charged"),
        task_leaf(b"1" * 32, type="policy"),
        release(1, new_model_digest=(b"1" * 32).hex(), version=3),
        task_leaf(b"1" * 32, version=2),
    ],
    ids=[
        "another model",
        "another task",
        "another manifest",
        "no release",
        "no task",
        "a release of an unknown version",
        "a task of an unknown version",
    ],
)
async def test_a_model_that_was_never_released_is_refused(tmp_path: Path, leaf: bytes) -> None:
    with pytest.raises(LedgerRefusal) as caught:
        await watch(Log([*entries(2), leaf]), tmp_path).verify_models(
            frozenset({b"1" * 32}), **MODELS
        )
    assert caught.value.reason == "model-not-in-ledger"


async def test_a_later_record_of_another_task_does_not_hide_a_model(tmp_path: Path) -> None:
    made = [release(1, new_model_digest=(b"1" * 32).hex(), task=task) for task in ("stats", "more")]
    await watch(Log(made), tmp_path).verify_models(frozenset({b"1" * 32}), **MODELS)


async def test_a_release_of_a_model_that_is_shown_but_not_logged_is_refused(
    tmp_path: Path,
) -> None:
    crafted = release(1, new_model_digest=(b"1" * 32).hex())
    honest, forged = Log(entries(9)), Log([*entries(8), crafted])
    (bundle,) = tiles.bundles_of(9)
    honest.files[bundle.path] = forged.files[bundle.path]
    with pytest.raises(LedgerRefusal) as caught:
        await watch(honest, tmp_path).verify_models(frozenset({b"1" * 32}), **MODELS)
    assert caught.value.reason == "release-not-proven"


LOST = {key: CLAIM[key] for key in ("task", "manifest_digest", "identity_key")}


@pytest.mark.parametrize(
    ("record", "held"),
    [
        (release(1), True),
        (release(1, contributors=[identity_digest(b"a" * 32).hex()]), False),
        (release(1, outcome="charged", contributors=[]), False),
        (release(1, ctx=(b"y" * 32).hex()), None),
    ],
)
@pytest.mark.parametrize("since", [0, 3, 300])
async def test_a_lost_receipt_is_answered_by_the_ledger(
    tmp_path: Path, record: bytes, held: bool | None, since: int
) -> None:
    log = Log([*entries(since), record, *entries(2)])
    assert await watch(log, tmp_path).holds(CTX, **LOST, since=since) == (held, since + 3)


async def test_a_record_of_an_unknown_version_is_no_answer(tmp_path: Path) -> None:
    """An auditor counts it for nothing, so a device must not take it for its release."""
    with pytest.raises(LedgerRefusal) as caught:
        await watch(Log([release(1, version=3)]), tmp_path).holds(CTX, **LOST, since=0)
    assert caught.value.reason == "record-version"


async def test_leaves_before_the_cohort_are_not_looked_at(tmp_path: Path) -> None:
    log = Log([release(1), *entries(3)])
    assert await watch(log, tmp_path).holds(CTX, **LOST, since=1) == (None, 4)


async def test_a_release_that_is_shown_but_not_in_the_log_is_no_answer(tmp_path: Path) -> None:
    honest, forged = Log(entries(9)), Log([*entries(8), release(1)])
    (bundle,) = tiles.bundles_of(9)
    honest.files[bundle.path] = forged.files[bundle.path]
    with pytest.raises(LedgerRefusal) as caught:
        await watch(honest, tmp_path).holds(CTX, **LOST, since=0)
    assert caught.value.reason == "release-not-proven"


async def test_a_record_of_another_task_about_the_same_cohort_is_refused(tmp_path: Path) -> None:
    log = Log([release(1, task="another")])
    with pytest.raises(LedgerRefusal) as caught:
        await watch(log, tmp_path).holds(CTX, **LOST, since=0)
    assert caught.value.reason == "release-mismatch"


class Endless(Log):
    """A log whose signed size is whatever it says; its last leaves are a few records, repeated."""

    def __init__(self, size: int) -> None:
        super().__init__([task_leaf(b"0" * 32)])
        self.files = {}
        self.files["checkpoint"] = sign_checkpoint(Checkpoint(ORIGIN, size, b"r" * 32), SEED)
        self.bundles = 0
        self._bundle = tiles.bundle_bytes(entries(256))

    async def ledger(self, path: str) -> bytes | None:
        if "entries" not in path:
            return self.files.get(path)
        self.bundles += 1
        return self._bundle


@pytest.mark.parametrize("size", [LEAVES_MAX + 1, 10**17, 10**18 - 1])
async def test_a_size_that_no_log_can_have_is_refused_at_once(tmp_path: Path, size: int) -> None:
    log = Endless(size)
    watched = watch(log, tmp_path)
    for asked in (
        watched.advance(),
        watched.verify_models(frozenset({b"0" * 32}), **MODELS),
        watched.released_clip(b"0" * 32, **MODELS),
        watched.holds(CTX, **LOST, since=0),
        watched.verify_release(5, **CLAIM),
    ):
        with pytest.raises(LedgerRefusal) as caught:
            await asked
        assert caught.value.reason == "ledger-too-large"
        assert str(LEAVES_MAX) in str(caught.value.expected)
        assert caught.value.found == size
        assert caught.value.evidence["checkpoint"] == log.files["checkpoint"]
    assert log.bundles == 0
    assert watched.remembered() is None


async def test_a_log_that_grew_by_more_than_it_can_is_refused(tmp_path: Path) -> None:
    await watch(Log(entries(7)), tmp_path).advance()
    size = 7 + GROWTH_MAX + 1
    with pytest.raises(LedgerRefusal) as caught:
        await watch(Endless(size), tmp_path).advance()
    assert (caught.value.reason, caught.value.found) == ("ledger-too-large", size)
    assert str(7 + GROWTH_MAX) in str(caught.value.expected)


async def test_a_search_looks_through_the_last_leaves_alone(tmp_path: Path) -> None:
    log = Endless(LEAVES_MAX)
    with pytest.raises(LedgerRefusal) as caught:
        await watch(log, tmp_path).verify_models(frozenset({b"0" * 32}), **MODELS)
    assert caught.value.reason == "model-not-in-ledger"
    assert str(SEARCHED_MAX) in str(caught.value)
    assert 0 < log.bundles <= 6 * SEARCHED_MAX // 256


async def test_a_lost_receipt_is_looked_for_a_stretch_at_a_time(tmp_path: Path) -> None:
    log = Endless(1 << 20)
    watched = watch(log, tmp_path)
    assert await watched.holds(CTX, **LOST, since=100) == (None, 100 + SEARCHED_MAX)
    assert log.bundles <= SEARCHED_MAX // 256 + 1
    assert await watched.holds(CTX, **LOST, since=(1 << 20) - 5) == (None, 1 << 20)


async def test_a_stretch_ends_before_its_last_leaf(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("client_sdk.ledger.watch.SEARCHED_MAX", 4)
    watched = watch(Log([*entries(5), release(1)]), tmp_path)
    assert await watched.holds(CTX, **LOST, since=1) == (None, 5)
    assert await watched.holds(CTX, **LOST, since=5) == (True, 6)


async def test_an_offer_that_names_the_leaf_needs_no_search(tmp_path: Path) -> None:
    log = Log([*entries(600), release(1, new_model_digest=(b"1" * 32).hex()), *entries(600)])
    watched = watch(log, tmp_path)
    await watched.verify_models(frozenset({b"1" * 32}), **MODELS, leaf_index=600)
    assert sum("entries" in path for path in log.reads) == 1
    reads = len(log.reads)
    await watched.verify_models(frozenset({b"1" * 32}), **MODELS, leaf_index=600)
    assert len(log.reads) == reads  # proven once, in an append-only log


@pytest.mark.parametrize("leaf", [0, 599, 601, 1200])
async def test_an_offer_that_names_another_leaf_is_refused(tmp_path: Path, leaf: int) -> None:
    log = Log([*entries(600), release(1, new_model_digest=(b"1" * 32).hex()), *entries(600)])
    with pytest.raises(LedgerRefusal) as caught:
        await watch(log, tmp_path).verify_models(frozenset({b"1" * 32}), **MODELS, leaf_index=leaf)
    assert caught.value.reason == "model-not-in-ledger"


class Silent(Log):
    """The checkpoint comes, and then nothing."""

    async def ledger(self, path: str) -> bytes | None:
        if path != "checkpoint":
            await asyncio.Event().wait()
        return await super().ledger(path)


LOOKS: dict[str, Callable[[LedgerWatch], Coroutine[Any, Any, object]]] = {
    "release": lambda watched: watched.verify_release(1, **CLAIM),
    "lost receipt": lambda watched: watched.holds(
        CTX, task="stats", manifest_digest=b"m" * 32, identity_key=DEVICE, since=0
    ),
    "models": lambda watched: watched.verify_models(frozenset({b"1" * 32}), **MODELS),
    "one model": lambda watched: watched.verify_models(
        frozenset({b"1" * 32}), **MODELS, leaf_index=1
    ),
    "clip": lambda watched: watched.released_clip(b"1" * 32, **MODELS),
}


@pytest.mark.parametrize("look", LOOKS)
async def test_a_look_at_the_ledger_has_one_deadline_over_all_its_files(
    tmp_path: Path, look: str
) -> None:
    silent = Silent([*entries(600), release(1)])
    watched = LedgerWatch(  # type: ignore[arg-type]
        silent, journal_in(tmp_path), VERIFIER, deadline_s=0.05
    )
    with pytest.raises(LedgerRefusal) as caught:
        async with asyncio.timeout(20.0):
            await LOOKS[look](watched)
    assert caught.value.reason == "ledger-deadline"
    assert "ledger_s" in (caught.value.remedy or "")
