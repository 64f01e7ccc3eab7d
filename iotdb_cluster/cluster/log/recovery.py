"""What the segments hold: where the log begins and ends, and what it says of each replica.

Every boundary of every segment is looked at. The batch with the highest sequence names the oldest one that is still
needed; all between must be there. Where one is not, or where a batch was begun of which the one before is missing,
something that was synced is lost: the log is corrupt.
"""

from __future__ import annotations

import posixpath
import struct
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Final, NamedTuple

import numpy as np
from crc32c import crc32c

from iotdb_cluster.cluster.log.batch import MAGIC, BatchHead, Placed, padded, read_head, read_table
from iotdb_cluster.cluster.log.record import Append, Install, Kind, Record, Remove, decode_content, decode_terms
from iotdb_cluster.cluster.log.replica_log import ReplicaLog
from iotdb_cluster.cluster.log.segment import FIRST_BATCH, Segment
from iotdb_cluster.errors import CorruptData
from iotdb_cluster.limits import LOG_BLOCK_BYTES
from iotdb_cluster.world import FileSystem

__all__ = ["Found", "Run", "Scan", "encode_accepted", "load_accepted", "replay", "scan", "scan_segment"]


class Run(NamedTuple):
    """An append record without its payloads."""

    replica: int
    first: int
    number: int
    starts: list[tuple[int, int]]
    changes: list[int]
    place: tuple[int, int, int]


@dataclass(slots=True)
class Found:
    """A batch of which the head is whole; `records` is None where the rest is not."""

    head: BatchHead
    segment: Segment
    offset: int
    records: list[Record | Run] | None

    @property
    def end(self) -> int:
        return self.offset + padded(self.head.total_bytes)

    def __str__(self) -> str:
        return f"{self.segment.path} offset {self.offset}"


@dataclass(slots=True)
class Scan:
    """`chain` are the batches that count, ascending; `begun` those that were begun behind the end, to be zeroed."""

    chain: list[Found] = field(default_factory=list)
    begun: list[Found] = field(default_factory=list)
    lost: list[tuple[int, int]] = field(default_factory=list)  # accepted losses: first and last sequence


def scan(segments: Sequence[Segment], accepted: Sequence[tuple[int, int]], accept_loss: bool) -> Scan:
    """Find the log. Raises CorruptData naming file and offset; with `accept_loss` such holes are listed in `lost`."""
    found: list[Found] = []
    for segment in segments:
        found.extend(scan_segment(segment))
    whole: dict[int, Found] = {}
    twice: list[Found] = []
    for batch in found:
        if batch.records is not None:
            other = whole.setdefault(batch.head.sequence, batch)
            if other is not batch:
                twice.append(batch)
    result = Scan(lost=list(accepted))
    newest = max(whole.values(), key=lambda batch: batch.head.sequence, default=None)
    last = 0
    if newest is not None:
        last = newest.head.sequence
        for batch in twice:
            if batch.head.sequence >= newest.head.oldest:
                other = whole[batch.head.sequence]
                raise CorruptData(f"{batch}: batch {batch.head.sequence} of the log stands twice, also at {other}")
        result.chain = [whole[number] for number in range(newest.head.oldest, last + 1) if number in whole]
        for first, until in _holes(newest.head.oldest, last, whole):
            if not any(a <= first and until <= b for a, b in accepted):
                if not accept_loss:
                    raise CorruptData(_missing(first, found, whole, newest))
                result.lost.append((first, until))
    result.begun = [batch for batch in found if batch.records is None and batch.head.sequence > last]
    ahead = [batch for batch in result.begun if batch.head.sequence > last + 1]
    if ahead and not accept_loss:
        worst = min(ahead, key=lambda batch: batch.head.sequence)
        raise CorruptData(
            f"{worst}: batch {worst.head.sequence} of the log was begun, so that the one before was synced; "
            f"but the last whole one is {last}"
        )
    return result


def _holes(oldest: int, last: int, whole: dict[int, Found]) -> Iterable[tuple[int, int]]:
    start = 0
    for number in range(oldest, last + 1):
        if number not in whole:
            start = start or number
        elif start:
            yield start, number - 1
            start = 0


def _missing(number: int, found: Iterable[Found], whole: dict[int, Found], newest: Found) -> str:
    damaged = next((batch for batch in found if batch.head.sequence == number and batch.records is None), None)
    before = whole.get(number - 1)
    if damaged is not None:
        place = str(damaged)
    elif before is not None:
        place = f"{before.segment.path} offset {before.end}"
    else:
        behind = whole[min(sequence for sequence in whole if sequence > number)]
        place = f"before {behind}"
    return (
        f"{place}: batch {number} of the log is missing or damaged, while the log goes on to batch "
        f"{newest.head.sequence} at {newest}; replace this node, or, if there is no other copy, start it with "
        "--accept-loss"
    )


def scan_segment(segment: Segment) -> list[Found]:
    data = segment.file.read(0, segment.size)
    if len(data) != segment.size:
        raise CorruptData(f"{segment.path} offset {len(data)}: the log segment is cut")
    blocks = len(data) // LOG_BLOCK_BYTES
    words = np.frombuffer(data, ">u4", count=blocks * (LOG_BLOCK_BYTES // 4))[:: LOG_BLOCK_BYTES // 4]
    result: list[Found] = []
    covered = FIRST_BATCH  # what a whole batch holds inside is payload, whatever it looks like
    for block in np.flatnonzero(words == MAGIC).tolist():
        offset = block * LOG_BLOCK_BYTES
        if offset < covered:
            continue
        try:
            head = read_head(data, offset)
            if head is None or head.log_id != segment.log_id:
                continue
            placed = read_table(data, offset, head)
            records = None if placed is None else [_understood(data, segment, offset, place) for place in placed]
        except CorruptData as exception:
            raise CorruptData(f"{segment.path} offset {offset}: {exception}") from exception
        batch = Found(head, segment, offset, records)
        result.append(batch)
        if records is not None:
            covered = batch.end
    return result


def _understood(data: bytes, segment: Segment, batch: int, placed: Placed) -> Record | Run:
    start = batch + placed.offset
    content = memoryview(data)[start : start + placed.length]
    if placed.kind is Kind.APPEND:
        first, count, starts, changes = decode_terms(content)
        return Run(
            placed.replica, first, count, starts, changes, (segment.number << 32 | start, placed.length, placed.crc)
        )
    return decode_content(placed.kind, placed.replica, content)


# --- replay -----------------------------------------------------------------------------------------------------------


def replay(found: Scan, view: Callable[[int], ReplicaLog], remove: Callable[[int], None]) -> None:
    """Tell each replica's log what the batches say of it, in order. Raises CorruptData where entries are missing."""
    known: set[int] = set()  # replicas of which the entries' beginning was seen
    broken: set[int] = set()  # replicas with a gap in their entries: accepted loss
    replicas: dict[int, ReplicaLog] = {}
    for batch in found.chain:
        for record in batch.records or ():
            replica = record.replica
            if isinstance(record, Remove):
                known.discard(replica)
                broken.discard(replica)
                replicas.pop(replica, None)
                remove(replica)
                continue
            log = replicas.get(replica)
            if log is None:
                log = replicas[replica] = view(replica)
            if isinstance(record, Run):
                _replay_run(log, record, known, broken, bool(found.lost), batch)
                continue
            if isinstance(record, Append):
                raise CorruptData(f"{batch}: an append record was taken for another")
            if isinstance(record, Install):
                known.add(replica)
                broken.discard(replica)
            log.apply(record)
    for replica, log in sorted(replicas.items()):
        held = log.first_held
        if held > log.compacted[0] + 1:
            if not found.lost:
                raise CorruptData(
                    f"{found.chain[0]}: replica {replica} has entries from {held} on, but none behind its "
                    f"compaction mark {log.compacted[0]}"
                )
            log.lose_from(0)
        if found.lost:
            log.lose_from(log.last_index() + 1)


def _replay_run(log: ReplicaLog, run: Run, known: set[int], broken: set[int], lossy: bool, batch: Found) -> None:
    last = log.last_index()
    if run.first > last + 1:
        # What lies between is in released segments, if this is the first that is seen of the replica's entries.
        if log.replica in known and not lossy:
            raise CorruptData(f"{batch}: replica {log.replica} has entries up to {last}, then from {run.first} on")
        if log.replica in known:
            broken.add(log.replica)
            return
        log.start_behind(run.first - 1)
    elif log.replica in broken:
        broken.discard(log.replica)
    known.add(log.replica)
    log.append(run.first, run.number, run.starts, run.changes, run.place)


# --- accepted losses --------------------------------------------------------------------------------------------------

ACCEPTED: Final = "accepted-loss"
_ACCEPTED_HEAD: Final = struct.Struct(">4sBxxxI")
_ACCEPTED_PART: Final = struct.Struct(">QQ")


def load_accepted(files: FileSystem, directory: str) -> list[tuple[int, int]]:
    """Holes of the log that the operator has accepted: first and last sequence. Raises CorruptData."""
    path = posixpath.join(directory, ACCEPTED)
    if not files.exists(path):
        return []
    file = files.open(path)
    data = file.read(0, file.size())
    file.close()
    if len(data) < _ACCEPTED_HEAD.size + 4 or int.from_bytes(data[-4:], "big") != crc32c(data[:-4]):
        raise CorruptData(f"{path} offset 0: the list of accepted losses is damaged")
    magic, version, count = _ACCEPTED_HEAD.unpack_from(data)
    if magic != b"ICLA" or version != 1:
        raise CorruptData(f"{path} offset 0: a list of accepted losses of version {version}; this program knows 1")
    return [_ACCEPTED_PART.unpack_from(data, _ACCEPTED_HEAD.size + 16 * at) for at in range(count)]


def encode_accepted(lost: Sequence[tuple[int, int]]) -> bytes:
    """Big-endian: "ICLA", u8 version (1), three zero bytes, u32 count, u64 first and u64 last sequence each, CRC32C."""
    data = _ACCEPTED_HEAD.pack(b"ICLA", 1, len(lost)) + b"".join(_ACCEPTED_PART.pack(*part) for part in lost)
    return data + crc32c(data).to_bytes(4, "big")
