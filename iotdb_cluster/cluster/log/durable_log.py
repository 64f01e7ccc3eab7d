"""The one log of a node, shared by all its groups: one write and fdatasync in flight while the next batch gathers."""

from __future__ import annotations

import asyncio
import logging
import posixpath
import random
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

from iotdb_cluster.cluster.log.atomic import make_durable_directories, replace_file
from iotdb_cluster.cluster.log.batch import BATCH_HEAD_BYTES, Placed, batch_bytes, encode_batch, padded
from iotdb_cluster.cluster.log.reads import LogReads
from iotdb_cluster.cluster.log.record import (
    Append,
    Compact,
    Install,
    Record,
    Remove,
    State,
    content_bytes,
)
from iotdb_cluster.cluster.log.recovery import ACCEPTED, Scan, encode_accepted, load_accepted, replay, scan
from iotdb_cluster.cluster.log.replica_log import EntryCache, ReplicaLog
from iotdb_cluster.cluster.log.segment import (
    FIRST_BATCH,
    TEMPORARY,
    Segment,
    create_segment,
    open_segment,
    segment_numbers,
    segment_path,
)
from iotdb_cluster.errors import CorruptData, SystemFault, check
from iotdb_cluster.limits import (
    LOG_BATCH_BYTES_MAX,
    LOG_BLOCK_BYTES,
    LOG_CACHE_BYTES_MAX,
    LOG_CACHE_ENTRIES_MAX,
    LOG_SEGMENT_BYTES,
    LOG_SPARE_SEGMENTS,
)
from iotdb_cluster.world import File, FileSystem, Workers

__all__ = ["DurableLog", "LogFault", "LogOptions", "Pin"]

logger = logging.getLogger(__name__)

IDLE_MS: Final = 50  # without a write for this long, an empty batch closes the log
SPARE_PAUSE_MS: Final = 1_000  # between two attempts to make a spare segment on a disk that is full
FREE_SEGMENTS_MAX: Final = 4  # released segments beyond these are deleted


class LogFault(SystemFault):
    """The log cannot go on: a write or sync failed. What was not answered may or may not be on disk."""


@dataclass(frozen=True, slots=True)
class LogOptions:
    """Bounds, see `limits`; `accept_loss` starts a log in which synced batches are missing, without them."""

    segment_bytes: int = LOG_SEGMENT_BYTES
    batch_bytes_max: int = LOG_BATCH_BYTES_MAX
    cache_bytes_max: int = LOG_CACHE_BYTES_MAX
    cache_entries_max: int = LOG_CACHE_ENTRIES_MAX
    spare_segments: int = LOG_SPARE_SEGMENTS
    idle_ms: float = IDLE_MS
    accept_loss: bool = False


class Pin(NamedTuple):
    """`replica` needs its entries from `first_needed` on; the log holds `bytes_behind` from there to its end."""

    replica: int
    first_needed: int
    bytes_behind: int


@dataclass(slots=True)
class _Submission:
    records: list[Record]
    contents: int  # bytes of the contents
    done: Callable[[], None]


@dataclass(slots=True)
class _Batch:
    """What is written at once. `release` segments at the front of those in use may go once it is synced."""

    submissions: list[_Submission]
    records: list[Record]
    release: int
    size: int = BATCH_HEAD_BYTES  # at most
    sequence: int = 0
    oldest: int = 0
    segment: Segment | None = None
    offset: int = 0
    placed: Sequence[Placed] = ()


class DurableLog:
    """Made by `open`. `run` is the writer: a task of the node; everything else is called on its loop."""

    def __init__(
        self,
        files: FileSystem,
        directory: str,
        options: LogOptions,
        workers: Workers | None,
        on_fault: Callable[[BaseException], None] | None,
    ) -> None:
        self._files = files
        self._directory = directory
        self._options = options
        self._workers = workers
        self._on_fault = on_fault
        self._cache = EntryCache(options.cache_bytes_max, options.cache_entries_max)
        self._replicas: dict[int, ReplicaLog] = {}
        self._tails: dict[int, int] = {}  # last index of each replica as far as submitted
        self._queue: deque[_Submission] = deque()
        self._segments: dict[int, Segment] = {}
        self._reads = LogReads(self._segments, workers)
        self._pinning: tuple[ReplicaLog, ...] = ()  # who needed the oldest segment when it was looked at last
        self._in_use: deque[Segment] = deque()  # oldest first; the last one is written to
        self._free: deque[Segment] = deque()
        self._log_id = 0
        self._sequence = 0  # of the last batch that was synced
        self._end = FIRST_BATCH  # where the next batch goes in the last segment in use
        self._closed_by_empty = True  # the last batch is an empty one
        self._wake: asyncio.Future[None] | None = None
        self._running = False
        self._closing = False
        self._writing = False  # a worker has the file of the segment in use
        self._ended: asyncio.Future[None] | None = None
        self._spares: asyncio.Task[None] | None = None
        self._spare_timer: asyncio.TimerHandle | None = None  # the disk was full
        self._lock: File | None = None
        self.failed: BaseException | None = None
        self.lacks_spares = False  # the disk had no room for one that should be there
        self.batches_written = 0
        self.bytes_written = 0

    # --- opening ------------------------------------------------------------------------------------------------------
    @classmethod
    def open(
        cls,
        files: FileSystem,
        directory: str,
        random: random.Random,
        options: LogOptions | None = None,
        *,
        workers: Workers | None = None,
        on_fault: Callable[[BaseException], None] | None = None,
    ) -> DurableLog:
        """Recover the log of a directory, or begin one; it blocks. Once it returns, what it holds is durable.

        `random` gives a new log its id. Without `workers` batches are written on the loop. `on_fault` is called once,
        when the log cannot go on: the node then ends the process.

        Raises CorruptData (naming file and offset), LogFault, OSError (BlockingIOError: another process has it open).
        """
        options = options if options is not None else LogOptions()
        check(
            options.segment_bytes % LOG_BLOCK_BYTES == 0 and options.segment_bytes >= 4 * LOG_BLOCK_BYTES,
            "a segment of %d bytes",
            options.segment_bytes,
        )
        make_durable_directories(files, directory)
        log = cls(files, directory, options, workers, on_fault)
        log._lock = files.lock(posixpath.join(directory, "lock"))
        try:
            log._recover(random)
        except BaseException:
            log.abandon()
            raise
        return log

    def _recover(self, random: random.Random) -> None:
        files, directory = self._files, self._directory
        for name in files.list(directory):
            if name.endswith(TEMPORARY):
                files.remove(posixpath.join(directory, name))
        files.sync_directory(directory)  # the program may have ended between a name's making and its syncing
        accepted = load_accepted(files, directory)
        numbers = segment_numbers(files, directory)
        lost: list[int] = []
        for number in range(1, (numbers[-1] if numbers else 0) + 1):
            segment = self._open_segment(number, number in numbers)
            if segment is not None:
                self._segments[number] = segment
            else:
                lost.append(number)
        ids = {segment.log_id for segment in self._segments.values()}
        if len(ids) > 1:
            raise CorruptData(f"{directory}: the segments belong to {len(ids)} different logs: {sorted(ids)}")
        self._log_id = ids.pop() if ids else random.getrandbits(64)
        for number in lost:
            self._segments[number] = self._create_segment(number)
        found = scan(list(self._segments.values()), accepted, self._options.accept_loss)
        if found.lost != accepted:
            for first, last in found.lost[len(accepted) :]:
                logger.warning("%s: batches %d to %d of the log are lost, as accepted", directory, first, last)
            replace_file(files, posixpath.join(directory, ACCEPTED), encode_accepted(found.lost))
        replay(found, self.view, self._forget)
        self._adopt(found)
        self._make_durable(found)
        self._fill_spares()
        if not self._in_use:
            self._take_free()

    def _open_segment(self, number: int, exists: bool) -> Segment | None:
        path = segment_path(self._directory, number)
        try:
            if not exists:
                raise CorruptData(f"{path}: this log segment is missing")
            return open_segment(self._files, self._directory, number)
        except CorruptData:
            if not self._options.accept_loss:
                raise
            logger.warning("%s is lost, as accepted", path)
            if exists:
                self._files.rename(path, path + ".damaged")
                self._files.sync_directory(self._directory)
            return None

    def _adopt(self, found: Scan) -> None:
        """Which segments are in use, and where the log goes on."""
        for batch in found.chain:
            if not batch.segment.first_sequence:
                batch.segment.first_sequence = batch.head.sequence
                self._in_use.append(batch.segment)
        self._free.extend(segment for segment in self._segments.values() if not segment.first_sequence)
        if found.chain:
            last = found.chain[-1]
            self._sequence = last.head.sequence
            self._end = last.end
            self._closed_by_empty = not last.head.records

    def _make_durable(self, found: Scan) -> None:
        """The last batch as it was read may be in memory only, and what was begun behind it must not come back."""
        touched: dict[int, Segment] = {}
        zeros = bytes(LOG_BLOCK_BYTES)
        if found.chain:
            last = found.chain[-1]
            data = last.segment.file.read(last.offset, last.end - last.offset)
            last.segment.file.write(last.offset, data)
            if last.end < last.segment.size:
                last.segment.file.write(last.end, zeros)
            touched[last.segment.number] = last.segment
        for batch in found.begun:
            batch.segment.file.write(batch.offset, zeros)
            touched[batch.segment.number] = batch.segment
        for number in sorted(touched):
            touched[number].file.sync()

    # --- replicas -----------------------------------------------------------------------------------------------------
    def replicas(self) -> list[int]:
        """Ids of the replicas that the log knows, ascending."""
        return sorted(self._replicas)

    def view(self, replica: int) -> ReplicaLog:
        """The replica's log; an empty one where the log knows nothing of it."""
        found = self._replicas.get(replica)
        if found is None:
            found = self._replicas[replica] = ReplicaLog(replica, self._cache, self._reads)
        return found

    def _forget(self, replica: int) -> None:
        found = self._replicas.pop(replica, None)
        if found is not None:
            found.forget_entries()

    # --- room ---------------------------------------------------------------------------------------------------------
    def bytes_pinned(self) -> int:
        """Bytes of the segments that cannot be used again yet."""
        return sum(segment.size for segment in self._in_use)

    def pins(self) -> list[Pin]:
        """For each replica with entries that are still needed, the oldest of them; who pins most comes first."""
        begin: dict[int, int] = {}
        before = 0
        for segment in self._in_use:
            begin[segment.number] = before
            before += segment.size
        end = before - self._in_use[-1].size + self._end if self._in_use else 0
        result = []
        for replica, log in sorted(self._replicas.items()):
            position = log.oldest_position
            if position is not None:
                behind = end - begin[position >> 32] - (position & 0xFFFFFFFF)
                result.append(Pin(replica, log.compacted[0] + 1, behind))
        return sorted(result, key=lambda pin: -pin.bytes_behind)

    # --- writing ------------------------------------------------------------------------------------------------------
    def submit(self, records: Sequence[Record], done: Callable[[], None]) -> None:
        """One Ready's records, which stay together; `done` is called when they, and all submitted before, are durable.

        With no records, `done` is still called behind those of earlier submissions. After a fault nothing is called.
        """
        if self.failed is not None:
            return
        check(not self._closing, "a submission to a log that is being closed")
        ordered = list(records)
        kinds = set(map(type, ordered))
        if State in kinds and Remove not in kinds:
            ordered.sort(key=lambda record: not isinstance(record, State))
        contents = sum(map(self._follow, ordered))
        room = self._options.segment_bytes - FIRST_BATCH
        check(batch_bytes(len(ordered), contents) <= room, "a submission of %d bytes, a segment has %d", contents, room)
        self._queue.append(_Submission(ordered, contents, done))
        self._wake_up()

    def _follow(self, record: Record) -> int:
        """Bytes of the content. What would leave a gap is refused: once written, the log could not be read any more."""
        replica = record.replica
        if isinstance(record, Append):
            entries = record.entries
            first, count = entries.first, len(entries.terms)
            last = self._tails[replica] if replica in self._tails else self.view(replica).last_index()
            check(0 < first <= last + 1, "replica %d appends from %d behind %d", replica, first, last)
            check(count > 0, "replica %d appends no entries", replica)
            self._tails[replica] = first + count - 1
        elif isinstance(record, Install):
            self._tails[replica] = record.index
        elif isinstance(record, Compact):
            if replica in self._tails:
                self._tails[replica] = max(self._tails[replica], record.index)
        elif isinstance(record, Remove):
            self._tails[replica] = 0
        return content_bytes(record)

    def _wake_up(self) -> None:
        if self._wake is not None and not self._wake.done():
            self._wake.set_result(None)

    async def run(self) -> None:
        """Write what is submitted until `close`, or until a fault (which `on_fault` is told)."""
        if self.failed is not None or (self._running and self._closing):
            return
        check(not self._running, "the log's writer runs already")
        self._running = True
        self._reads.start()
        try:
            self._keep_spares()
            while True:
                batch = self._next_batch()
                if batch is None:
                    if self._closing and self._closed_by_empty:
                        break
                    if not self._closing and not await self._idle():
                        continue
                    batch = _Batch([], [], 0)
                await self._write_batch(batch)
                self._keep_spares()
        except Exception as exception:
            self._fail(exception)
        except BaseException as exception:
            self.failed = self.failed or exception
            raise
        finally:
            self._running = self._reads.active = False
            if self._ended is not None and not self._ended.done():
                self._ended.set_result(None)

    async def close(self) -> None:
        """Write what is submitted and the closing batch, then close the files. Nothing may be submitted any more."""
        self._closing = True
        if self._running:
            self._ended = asyncio.get_running_loop().create_future()
            self._wake_up()
            await self._ended
        else:
            await self.run()
        if self._spares is not None:
            await asyncio.wait({self._spares})
        await self._reads.close()
        self.abandon()

    def abandon(self) -> None:
        """Close the files as they are; what was submitted and is not answered may be lost."""
        if self.failed is None:
            self.failed = LogFault("the log is closed")
        if self._spare_timer is not None:
            self._spare_timer.cancel()
        for segment in self._segments.values():
            # A worker that was left alone with a write must not find another file under its descriptor.
            if not (self._writing and segment is self._in_use[-1]):
                segment.file.close()
        if self._lock is not None:
            self._lock.close()

    async def _idle(self) -> bool:
        """Wait for work; True where there was none for so long that the log should be closed by an empty batch."""
        loop = asyncio.get_running_loop()
        wake = self._wake = loop.create_future()
        timer = None
        idle: list[bool] = []
        if not self._closed_by_empty:

            def expire() -> None:
                if not wake.done():
                    idle.append(True)
                    wake.set_result(None)

            timer = loop.call_later(self._options.idle_ms / 1000, expire)
        try:
            await wake
        finally:
            self._wake = None
            if timer is not None:
                timer.cancel()
        return bool(idle)

    def _next_batch(self) -> _Batch | None:
        """As many submissions as fit; None where there is nothing to write."""
        release = self._releasable()
        records: list[Record] = []
        size = BATCH_HEAD_BYTES
        if release:
            for _, log in sorted(self._replicas.items()):
                records.extend(log.repeats())
            size = batch_bytes(len(records), sum(map(content_bytes, records)))
        submissions: list[_Submission] = []
        room = min(self._options.batch_bytes_max, self._options.segment_bytes - FIRST_BATCH)
        while self._queue:
            following = self._queue[0]
            grown = size + batch_bytes(len(following.records), following.contents) - BATCH_HEAD_BYTES
            if grown > room and (submissions or records):
                break
            size = grown
            records.extend(following.records)
            submissions.append(self._queue.popleft())
        return _Batch(submissions, records, release, size) if submissions or release else None

    def _releasable(self) -> int:
        """How many segments, from the oldest on, hold no entry that is still needed."""
        if len(self._in_use) < 2:
            return 0
        for log in (*self._pinning, *self._replicas.values()):
            if log.oldest_position is not None and log.oldest_position >> 32 == self._in_use[0].number:
                self._pinning = (log,)
                return 0
        needed = {log.oldest_position >> 32 for log in self._replicas.values() if log.oldest_position is not None}
        count = 0
        while count < len(self._in_use) - 1 and self._in_use[count].number not in needed:
            count += 1
        return count

    async def _write_batch(self, batch: _Batch) -> None:
        if batch.records or not batch.submissions:
            await self._place(batch, padded(batch.size))
            self._writing = True
            length = await self._work(self._write, batch)
            self._writing = False
            self._written(batch, length)
        for submission in batch.submissions:
            submission.done()

    async def _place(self, batch: _Batch, length: int) -> None:
        if self._end + length > self._in_use[-1].size:
            if not self._free:
                if self._spares is not None:
                    await asyncio.wait({self._spares})
                if not self._free:
                    self._add_segment(await self._work(self._create_segment, self._next_number()))
            self._take_free()
        segment = self._in_use[-1]
        batch.sequence = self._sequence + 1
        if not segment.first_sequence:
            segment.first_sequence = batch.sequence
        batch.oldest = self._in_use[batch.release].first_sequence
        batch.segment = segment
        batch.offset = self._end

    def _write(self, batch: _Batch) -> int:
        """In a worker thread: nothing but the batch and its file is touched."""
        check(batch.segment is not None, "a batch without a place")
        data, batch.placed = encode_batch(self._log_id, batch.sequence, batch.oldest, batch.records)
        if batch.segment is not None:
            batch.segment.file.write(batch.offset, data)
            batch.segment.file.sync()
        return len(data)

    def _written(self, batch: _Batch, length: int) -> None:
        """The batch is durable."""
        check(batch.segment is not None, "a batch without a place")
        number = batch.segment.number if batch.segment is not None else 0
        self._sequence = batch.sequence
        self._end = batch.offset + length
        self._closed_by_empty = not batch.records
        self.batches_written += 1
        self.bytes_written += length
        for record, placed in zip(batch.records, batch.placed, strict=True):
            if isinstance(record, Append):
                entries = record.entries
                position = number << 32 | (batch.offset + placed.offset)
                log = self._replicas.get(record.replica) or self.view(record.replica)
                log.append_entries(entries, (position, placed.length, placed.crc))
                self._cache.put(position, entries)
            elif isinstance(record, Remove):
                self._forget(record.replica)
            else:
                self.view(record.replica).apply(record)
        for _ in range(batch.release):
            segment = self._in_use.popleft()
            segment.first_sequence = 0
            self._free.append(segment)

    def _fail(self, exception: BaseException) -> None:
        if self.failed is None:
            self.failed = exception
            logger.critical("the durable log in %s cannot go on: %s", self._directory, exception)
            if self._on_fault is not None:
                self._on_fault(exception)

    # --- segments -----------------------------------------------------------------------------------------------------
    def _take_free(self) -> None:
        self._in_use.append(self._free.popleft())
        self._end = FIRST_BATCH

    def _next_number(self) -> int:
        number = 1
        while number in self._segments:
            number += 1
        return number

    def _create_segment(self, number: int) -> Segment:
        return create_segment(self._files, self._directory, number, self._options.segment_bytes, self._log_id)

    def _add_segment(self, segment: Segment) -> None:
        self._segments[segment.number] = segment
        self._free.append(segment)

    def _fill_spares(self) -> None:
        """At the start: one to write to where none is in use, and the spare ones."""
        wanted = self._options.spare_segments + (not self._in_use)
        while len(self._free) < wanted:
            try:
                self._add_segment(self._create_segment(self._next_number()))
            except OSError as exception:
                if not self._in_use and not self._free:
                    raise LogFault(f"{self._directory}: no room for a log segment: {exception}") from exception
                self._no_spare(exception)
                return

    def _keep_spares(self) -> None:
        """Make or delete one spare segment beside the writing."""
        if self._spares is not None and not self._spares.done():
            return
        self._spares = None
        newest = max(self._segments)
        surplus = len(self._free) > max(FREE_SEGMENTS_MAX, self._options.spare_segments)
        if surplus and not self._segments[newest].first_sequence and self._segments[newest] in self._free:
            segment = self._segments.pop(newest)
            self._free.remove(segment)
            self._spares = asyncio.ensure_future(self._delete_segment(segment))
        elif len(self._free) >= self._options.spare_segments:
            self.lacks_spares = False
        elif self._spare_timer is None:
            self._spares = asyncio.ensure_future(self._make_spare())

    async def _make_spare(self) -> None:
        try:
            self._add_segment(await self._work(self._create_segment, self._next_number()))
        except OSError as exception:
            self._no_spare(exception)
            self._spare_timer = asyncio.get_running_loop().call_later(SPARE_PAUSE_MS / 1000, self._try_spares)
        else:
            self._try_spares()

    def _no_spare(self, exception: OSError) -> None:
        if not self.lacks_spares:
            logger.warning("%s: no room for a spare log segment: %s", self._directory, exception)
        self.lacks_spares = True

    def _try_spares(self) -> None:
        self._spares = self._spare_timer = None
        if self._running and not self._closing:
            self._keep_spares()

    async def _delete_segment(self, segment: Segment) -> None:
        def delete() -> None:
            segment.file.close()
            self._files.remove(segment.path)
            self._files.sync_directory(self._directory)

        try:
            await self._work(delete)
        except OSError as exception:
            logger.warning("%s could not be deleted: %s", segment.path, exception)

    async def _work(self, work: Callable[..., Any], *args: Any) -> Any:
        if self._workers is None:
            return work(*args)
        return await self._workers.run(work, *args)
