"""C2SP tlog-tiles: a log as static files (c2sp.org/tlog-tiles).

``tile/<L>/<N>[.p/<W>]`` holds up to 256 hashes of complete subtrees of height 8 L,
``tile/entries/<N>[.p/<W>]`` the entries behind their lengths as 16 bits, big-endian.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

from dp.errors import LedgerError
from dp.tlog import merkle
from secagg.limits import COHORT_MAX

TILE_WIDTH = 256
HASH_BYTES = 32
ENTRY_BYTES_MAX = 65_535

Read = Callable[[str], bytes | None]
"""Returns a resource by its path below the log's prefix, or None where there is none."""


_CHECKPOINT_BYTES_MAX = 1 << 20  # a note with all its cosignatures
_LISTED_BYTES_MAX = 256  # one device in a list of them


def resource_bytes_max(path: str) -> int:
    """Most bytes of a resource of a log, by its kind."""
    if path.startswith("tile/entries/"):
        return TILE_WIDTH * (2 + ENTRY_BYTES_MAX)
    if path.startswith("tile/"):
        return TILE_WIDTH * HASH_BYTES
    return _CHECKPOINT_BYTES_MAX if path == "checkpoint" else COHORT_MAX * _LISTED_BYTES_MAX


@dataclass(frozen=True)
class Tile:
    """``level`` -1 stands for an entry bundle; ``number`` counts from the left."""

    level: int
    number: int
    width: int

    @property
    def path(self) -> str:
        head = "entries" if self.level < 0 else str(self.level)
        digits = f"{self.number:03d}"
        digits = digits.zfill(-(-len(digits) // 3) * 3)
        groups = [digits[i : i + 3] for i in range(0, len(digits), 3)]
        name = "/".join(["x" + group for group in groups[:-1]] + groups[-1:])
        partial = "" if self.width == TILE_WIDTH else f".p/{self.width}"
        return f"tile/{head}/{name}{partial}"


def tiles_of(size: int) -> Iterator[Tile]:
    """All hash tiles of a tree, in order of level and index."""
    level, count = 0, size
    while count:
        for index in range(-(-count // TILE_WIDTH)):
            yield Tile(level, index, min(TILE_WIDTH, count - index * TILE_WIDTH))
        level, count = level + 1, count // TILE_WIDTH


def bundles_of(size: int) -> Iterator[Tile]:
    """All entry bundles of a log."""
    for number in range(-(-size // TILE_WIDTH)):
        yield bundle_at(number, size)


def bundle_at(number: int, size: int) -> Tile:
    """One entry bundle of a log of ``size`` leaves."""
    return Tile(-1, number, min(TILE_WIDTH, size - number * TILE_WIDTH))


def changed(old_size: int, size: int) -> Iterator[Tile]:
    """Tiles and bundles of a log of ``size`` that one of ``old_size`` does not have."""
    level, old, count = 0, old_size, size
    while count:
        yield from _changed_row(level, old, count)
        level, old, count = level + 1, old // TILE_WIDTH, count // TILE_WIDTH
    yield from _changed_row(-1, old_size, size)


def _changed_row(level: int, old: int, count: int) -> Iterator[Tile]:
    if old < count:
        for number in range(old // TILE_WIDTH, -(-count // TILE_WIDTH)):
            yield Tile(level, number, min(TILE_WIDTH, count - number * TILE_WIDTH))


def tile_bytes(subtree: merkle.SubtreeReader, tile: Tile) -> bytes:
    """Contents of a hash tile."""
    first = tile.number * TILE_WIDTH
    return b"".join(subtree(8 * tile.level, first + i) for i in range(tile.width))


def bundle_bytes(entries: Sequence[bytes]) -> bytes:
    """Contents of an entry bundle.

    Raises:
        LedgerError: ``record-too-large``.
    """
    out = bytearray()
    for entry in entries:
        if len(entry) > ENTRY_BYTES_MAX:
            raise LedgerError(
                "record-too-large",
                "An entry of the ledger is too large.",
                expected=f"<= {ENTRY_BYTES_MAX} bytes",
                found=len(entry),
            )
        out += len(entry).to_bytes(2, "big") + entry
    return bytes(out)


def files(
    subtree: merkle.SubtreeReader,
    entries: Sequence[bytes],
    old_size: int,
    size: int,
    first: int = 0,
) -> Iterator[tuple[str, bytes]]:
    """(path, contents) of all tiles and bundles that a log of ``old_size`` leaves lacks.

    Args:
        subtree: hashes of a tree of at least ``size`` leaves.
        entries: leaves from ``first`` on, which is at most where the bundle of ``old_size`` begins.

    Raises:
        LedgerError: ``record-too-large``.
    """
    for tile in changed(old_size, size):
        if tile.level >= 0:
            yield tile.path, tile_bytes(subtree, tile)
        else:
            start = tile.number * TILE_WIDTH - first
            yield tile.path, bundle_bytes(entries[start : start + tile.width])


def parse_bundle(data: bytes, width: int) -> list[bytes]:
    """The entries of a bundle (the first ``width``, if it holds more).

    Raises:
        LedgerError: ``bundle-malformed``.
    """
    return _entries(data, width)[0]


def _entries(data: bytes, width: int) -> tuple[list[bytes], int]:
    """The first ``width`` entries of a bundle, and where they end."""
    entries: list[bytes] = []
    at = 0
    while at < len(data) and len(entries) < width:
        end = at + 2 + int.from_bytes(data[at : at + 2], "big")
        if at + 2 > len(data) or end > len(data):
            raise LedgerError("bundle-malformed", "An entry bundle ends inside an entry.")
        entries.append(data[at + 2 : end])
        at = end
    if len(entries) < width:
        raise LedgerError(
            "bundle-malformed",
            "An entry bundle holds too few entries.",
            expected=width,
            found=len(entries),
        )
    return entries, at


def _demand_end(data: bytes, bundle: Tile) -> None:
    _, end = _entries(data, bundle.width)
    if end < len(data):
        raise LedgerError(
            "bundle-malformed",
            f"{bundle.path} goes on after its last entry.",
            expected=f"{end} bytes",
            found=len(data),
        )


def fetch(read: Read, tile: Tile) -> bytes:
    """Read a tile or bundle; a full one serves where its partial form is gone.

    Nothing follows the last entry of a bundle, unless it is a full one in a partial one's place.

    Raises:
        LedgerError: ``tile-missing``, ``tile-malformed`` or ``bundle-malformed``.
    """
    data = read(tile.path)
    if data is not None and tile.level < 0:
        _demand_end(data, tile)
    if data is None and tile.width < TILE_WIDTH:
        data = read(replace(tile, width=TILE_WIDTH).path)
        if data is not None and tile.level >= 0:
            data = data[: tile.width * HASH_BYTES]
    if data is None:
        raise LedgerError("tile-missing", "The ledger lacks a resource.", found=tile.path)
    if tile.level >= 0 and len(data) != tile.width * HASH_BYTES:
        raise LedgerError(
            "tile-malformed",
            f"{tile.path} has the wrong size.",
            expected=tile.width * HASH_BYTES,
            found=len(data),
        )
    return data


class TileTree:
    """Subtree hashes of a log of ``size`` leaves, read from its tiles and kept.

    The hashes are only as good as their source: verify every proof made of them against a signed
    root.
    """

    def __init__(self, read: Read, size: int) -> None:
        self._read = read
        self.size = size
        self._tiles: dict[Tile, bytes] = {}

    def subtree(self, level: int, index: int) -> bytes:
        tile_level, height = divmod(level, 8)
        first = index << height
        tile_index, offset = divmod(first, TILE_WIDTH)
        count = self.size >> (8 * tile_level)
        tile = Tile(tile_level, tile_index, min(TILE_WIDTH, count - tile_index * TILE_WIDTH))
        if tile.width < offset + (1 << height):
            raise LedgerError("proof-range", "No such subtree.", found=(level, index, self.size))
        if tile not in self._tiles:
            self._tiles[tile] = fetch(self._read, tile)
        data = self._tiles[tile]
        row = [
            data[i * HASH_BYTES : (i + 1) * HASH_BYTES]
            for i in range(offset, offset + (1 << height))
        ]
        while len(row) > 1:
            row = [merkle.node_hash(row[i], row[i + 1]) for i in range(0, len(row), 2)]
        return row[0]


def read_entry(read: Read, index: int, size: int) -> bytes:
    """One entry of a log of ``size`` leaves; unverified.

    Raises:
        LedgerError: ``tile-missing``, ``bundle-malformed`` or ``proof-range``.
    """
    if not 0 <= index < size:
        raise LedgerError("proof-range", "No such leaf.", expected=size, found=index)
    bundle, offset = divmod(index, TILE_WIDTH)
    tile = Tile(-1, bundle, min(TILE_WIDTH, size - bundle * TILE_WIDTH))
    return parse_bundle(fetch(read, tile), tile.width)[offset]


def inclusion_proof(read: Read, index: int, size: int) -> list[bytes]:
    """Audit path of a leaf, from tiles."""
    return merkle.inclusion_proof(TileTree(read, size).subtree, index, size)


def consistency_proof(read: Read, old_size: int, size: int) -> list[bytes]:
    """Consistency proof between two sizes, from tiles."""
    return merkle.consistency_proof(TileTree(read, size).subtree, old_size, size)


def proof_paths(size: int, *, index: int | None = None, old_size: int | None = None) -> list[str]:
    """What a device must fetch to see a leaf and both proofs, so that it can fetch beforehand.

    Paths depend on sizes only, so the proofs are run once on zeros to learn them.
    """
    wanted: dict[str, None] = {}

    def zeros(path: str) -> bytes:
        wanted[path] = None
        width = int(path.rpartition(".p/")[2]) if ".p/" in path else TILE_WIDTH
        return bytes(width * HASH_BYTES)

    tree = TileTree(zeros, size)
    if index is not None:
        bundle = index // TILE_WIDTH
        width = min(TILE_WIDTH, size - bundle * TILE_WIDTH)
        wanted[Tile(-1, bundle, width).path] = None
        merkle.inclusion_proof(tree.subtree, index, size)
    if old_size is not None:
        merkle.consistency_proof(tree.subtree, old_size, size)
    return list(wanted)
