"""Which files of a unit are worth rewriting. Pure functions of what the unit consists of.

Only neighbours in the order of writes may be joined. What is dear waits until the unit rests: it was neither flushed
nor deleted from for a minute, and a second more for each MiB that would be rewritten, so that a unit which never rests
costs nothing and one that is changed now and then a bounded rate.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from iotdb_cluster.limits import KIB, MIB
from iotdb_cluster.storage.chunk_reader import ChunkFile
from iotdb_cluster.storage.tombstones import Tombstone
from iotdb_cluster.storage.types import FileInfo, MergeRequest, StoreOptions
from iotdb_cluster.storage.unit import Unit, settled_at

__all__ = ["Choice", "choose", "expiry_pays", "hidden_upto"]

TIER_BYTES = 64 * KIB  # files below it are of like size ...
TIER_FACTOR = 4  # ... as are those within one such step above
REST_MS = 60_000.0
REST_MS_PER_MIB = 1_000.0


class Choice(NamedTuple):
    """Neighbouring files to be made one; with `expired` they hold nothing that is alive, in any order."""

    files: list[ChunkFile]
    expired: bool = False


def hidden_upto(info: FileInfo, stones: Sequence[Tombstone]) -> int | None:
    """The last time that expiry hides in a file; None where there is none."""
    since = settled_at(info)
    return max((stone.high for stone in stones if stone.pattern is None and stone.position > since), default=None)


def expiry_pays(info: FileInfo, upto: int | None) -> bool:
    """Whether a file is to be rewritten, or dropped, when all up to a time has expired: half of its span has.

    Less is not worth it: what is rewritten halves each time, so a point is rewritten once more by expiry, on average.
    """
    return upto is not None and upto - info.first_time >= (info.last_time - info.first_time) / 2


def choose(unit: Unit, options: StoreOptions, now_ms: float) -> Choice | None:
    """The files of the unit that are rewritten next; `now_ms` is the time of any clock that does not go back."""
    durable = [stone for stone in unit.tombstones if stone.position <= unit.flushed]
    upto = {file: hidden_upto(file.info, durable) for file in unit.files}
    dead = [file for file, bound in upto.items() if bound is not None and bound >= file.info.last_time]
    if dead:
        return Choice(dead, expired=True)
    asked = _asked(unit, durable)
    if asked:
        return Choice(asked)
    joined = _of_like_size(unit.files, options)
    if joined:
        return Choice(joined)
    for file, bound in upto.items():
        if expiry_pays(file.info, bound):
            return Choice([file])
    oldest = min(unit.files, key=lambda file: settled_at(file.info), default=None)
    if oldest is None:
        return None
    if len(durable) > options.tombstones_max:
        return Choice([oldest])
    return _while_it_rests(unit, durable, oldest, options, now_ms)


def _asked(unit: Unit, durable: Sequence[Tombstone]) -> list[ChunkFile]:
    """What a MERGE asks for; empty, and the request is forgotten, where it is fulfilled."""
    files: list[ChunkFile] = []
    if unit.merge is MergeRequest.FULL:
        hidden = any(stone.position > settled_at(file.info) for stone in durable for file in unit.files)
        files = list(unit.files) if len(unit.files) > 1 or hidden else []
    elif unit.merge is MergeRequest.OVERLAPPING:
        files = _overlapping(unit.files, None)
    if not files:
        unit.merge = MergeRequest.NONE
    return files


def _of_like_size(files: Sequence[ChunkFile], options: StoreOptions) -> list[ChunkFile]:
    """The run of neighbours with the fewest bytes in which enough files are of the size of its first, and none larger.

    A larger file never joins smaller ones: it would be written again with each few of them.
    """
    best: list[ChunkFile] = []
    least = options.compaction_bytes_max + 1
    for begin, first in enumerate(files):
        tier = _tier(first.info.bytes)
        total = alike = 0
        for end in range(begin, len(files)):
            mine = _tier(files[end].info.bytes)
            total += files[end].info.bytes
            if mine > tier or total >= least:
                break
            alike += mine == tier
            if mine == tier and alike >= options.compaction_files_min:
                best, least = list(files[begin : end + 1]), total
                break
    return best


def _overlapping(files: Sequence[ChunkFile], bytes_max: int | None) -> list[ChunkFile]:
    """The first run of neighbours, of at most so many bytes, whose first overlaps its last in time; or none."""
    for begin, first in enumerate(files):
        total = first.info.bytes
        for end in range(begin + 1, len(files)):
            info = files[end].info
            total += info.bytes
            if bytes_max is not None and total > bytes_max:
                break
            if info.first_time <= first.info.last_time and info.last_time >= first.info.first_time:
                return list(files[begin : end + 1])
    return []


def _while_it_rests(
    unit: Unit, durable: Sequence[Tombstone], oldest: ChunkFile, options: StoreOptions, now_ms: float
) -> Choice | None:
    """Deletions folded in, late files joined with those that they overlap."""
    hidden = any(stone.pattern is not None and stone.position > settled_at(oldest.info) for stone in durable)
    files = [oldest] if hidden else _overlapping(unit.files, options.compaction_bytes_max)
    if not files or not unit.active.is_empty or unit.sealed:
        unit.rests_since_ms = None
        return None
    mark = (unit.flushed, len(unit.files))
    if unit.rests_since_ms is None or unit.rests_at != mark:
        unit.rests_since_ms, unit.rests_at = now_ms, mark
    wait_ms = REST_MS + REST_MS_PER_MIB * sum(file.info.bytes for file in files) / MIB
    return Choice(files) if now_ms - unit.rests_since_ms >= wait_ms else None


def _tier(size: int) -> int:
    tier, bound = 0, TIER_BYTES
    while size > bound:
        tier, bound = tier + 1, bound * TIER_FACTOR
    return tier
