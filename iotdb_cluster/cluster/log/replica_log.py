"""One replica's part of the durable log, as the consensus core reads it, and the cache of recent entries."""

from __future__ import annotations

from array import array
from bisect import bisect_left, bisect_right
from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import NamedTuple, Protocol, TypeAlias

from iotdb_cluster.cluster.log.record import (
    Compact,
    Configuration,
    Install,
    Record,
    State,
    changes,
    term_starts,
)
from iotdb_cluster.errors import check
from iotdb_cluster.limits import LOG_READ_AHEAD_BYTES, LOG_READ_AHEAD_RUNS
from iotdb_cluster.raft import (
    ENTRY_OVERHEAD_BYTES,
    NO_ENTRIES,
    Compacted,
    ConfState,
    Entries,
    HardState,
    NotInMemory,
    Snapshot,
    SnapshotNotReady,
    Unavailable,
)

__all__ = ["EntryCache", "Fetched", "ReplicaLog", "Run"]

_TRIM_RUNS = 1024  # dead runs at the front before the arrays are cut

Position: TypeAlias = int  # segment number << 32 | offset of the record's content


class Run(NamedTuple):
    """A run as it stands on disk."""

    first: int
    position: Position
    length: int
    crc: int


Fetched: TypeAlias = Callable[[list[tuple[Run, Entries]]], None]


class Reads(Protocol):
    """How entries that are not in memory come from the disk. `active`: whether they can be read ahead now."""

    active: bool

    def read(self, run: Run) -> Entries:
        """At once, on the loop. Raises CorruptData."""
        ...

    def read_ahead(self, runs: Sequence[Run], done: Fetched) -> None:
        """On a worker; `done` gets, on the loop, what could be read."""
        ...


class EntryCache:
    """Runs of entries by their position, for all replicas of a node; the oldest go first.

    A run of one entry, of which there can be tens of thousands, is held as a tuple of numbers and bytes: the garbage
    collector looks at that once, and then never again.
    """

    def __init__(self, bytes_max: int, entries_max: int) -> None:
        self._bytes_max = bytes_max
        self._entries_max = entries_max
        # An entry's index, term, kind and payload, or a run.
        self._runs: OrderedDict[Position, tuple[int, int, int, bytes] | Entries] = OrderedDict()
        self.bytes_held = 0
        self.entries_held = 0

    def get(self, position: Position) -> Entries | None:
        found = self._runs.get(position)
        if isinstance(found, tuple):
            index, term, kind, payload = found
            return Entries(index, [term], [kind], [payload])
        return found

    def put(self, position: Position, entries: Entries) -> None:
        runs = self._runs
        if position in runs:
            self.drop((position,))
        if len(entries.terms) == 1:
            # Plain numbers: a member of an Enum would keep the tuple under the collector's eyes.
            runs[position] = (entries.first, entries.terms[0], int(entries.kinds[0]), entries.data[0])
        else:
            runs[position] = entries
        self.bytes_held += entries.byte_size
        self.entries_held += len(entries.terms)
        while self.bytes_held > self._bytes_max or self.entries_held > self._entries_max:
            self.drop((next(iter(runs)),))

    def drop(self, positions: Iterable[Position]) -> None:
        pop = self._runs.pop
        for position in positions:
            found = pop(position, None)
            if isinstance(found, tuple):
                self.bytes_held -= len(found[3]) + ENTRY_OVERHEAD_BYTES
                self.entries_held -= 1
            elif found is not None:
                self.bytes_held -= found.byte_size
                self.entries_held -= len(found.terms)


class ReplicaLog:
    """What is durable of one replica's log; implements the core's `LogView`.

    Nothing that is only submitted shows here: the core reads that from its own memory until the append is answered.

    The entries are known as runs, one for each append record: arrays of the first index, the position and length of the
    record and its CRC. A run reaches up to the next one's first index, so that cutting the log costs nothing.
    """

    def __init__(self, replica: int, cache: EntryCache, reads: Reads) -> None:
        self.replica = replica
        self.hard_state = HardState()
        self.conf_state = ConfState()
        self.configured = 0  # index of the entry, or the snapshot, that `conf_state` comes from
        self.generation = 1  # of the group
        self.chosen = 0  # the replica whose log began that generation, where it had to be chosen
        self.snapshot_source: Callable[[], Snapshot] | None = None
        self.entries_read: Callable[[], None] | None = None  # the owner, who then asks again; without one none waits
        self._cache = cache
        self._reads = reads
        self._fetching = False  # runs are being read ahead
        self._fetch_at = 0  # index whose reading begins the next reading ahead
        self._wanted = False  # the owner waits for runs that are read
        self._handed: tuple[Position, Entries] | None = None  # was just read, and the cache is too small for it
        self._unreadable: Position = 0  # a worker could not read it: who needs it is told why
        self._mark_index = 0
        self._mark_term = 0
        self._last = 0
        self._head = 0  # runs before this one are dead
        self._firsts = array("Q")
        self._positions = array("Q")
        self._lengths = array("I")
        self._crcs = array("I")
        self._term_firsts = array("Q")  # where a term begins
        self._terms = array("Q")
        self._changes = array("Q")  # entries that change the configuration

    # --- the core's view ----------------------------------------------------------------------------------------------
    def initial_state(self) -> tuple[HardState, ConfState]:
        return self.hard_state, self.conf_state

    def first_index(self) -> int:
        return self._mark_index + 1

    def last_index(self) -> int:
        return self._last

    def term(self, index: int) -> int:
        """Raises Compacted, Unavailable."""
        if index == self._mark_index:
            return self._mark_term
        if index < self._mark_index:
            raise Compacted(index)
        if index > self._last:
            raise Unavailable(index)
        return self._terms[bisect_right(self._term_firsts, index) - 1]

    def entries(self, low: int, high: int, bytes_max: int) -> Entries:
        """Entries [low, high) within `bytes_max`, at least one; fewer where only some are in memory.

        Where none is they are read on a worker, and `entries_read` is called. Raises NotInMemory, otherwise as `read`.
        """
        return self._entries(low, high, bytes_max, self._reads.active and self.entries_read is not None)

    def read(self, low: int, high: int, bytes_max: int) -> Entries:
        """The same at once, from the disk where need be. Raises Compacted, Unavailable, CorruptData, OSError."""
        return self._entries(low, high, bytes_max, False)

    def _entries(self, low: int, high: int, bytes_max: int, in_memory: bool) -> Entries:
        if low <= self._mark_index:
            raise Compacted(low)
        if high > self._last + 1:
            raise Unavailable(high - 1)
        if low >= high:
            return NO_ENTRIES
        run = bisect_right(self._firsts, low, self._head) - 1
        first = self._slice_run(run, low, high, in_memory)
        if first is None:
            raise NotInMemory(low)
        found = first.limit(bytes_max)
        size = found.byte_size
        if found.last + 1 == high or size >= bytes_max:
            return found
        terms, kinds, data = list(found.terms), list(found.kinds), list(found.data)
        at = found.last + 1
        # A run that was cut by `limit` is not at its end: nothing of the next ones may follow.
        while at < high and run + 1 < len(self._firsts) and at == self._firsts[run + 1]:
            run += 1
            more = self._slice_run(run, at, high, in_memory)
            if more is None:
                break
            if size + more.byte_size > bytes_max:
                more = more.limit(bytes_max - size)
                if size + more.byte_size > bytes_max:
                    break
            size += more.byte_size
            terms += more.terms
            kinds += more.kinds
            data += more.data
            at = more.last + 1
        return Entries(low, terms, kinds, data)

    def has_changes(self, low: int, high: int) -> bool:
        return bisect_left(self._changes, low) < bisect_left(self._changes, high)

    def snapshot(self) -> Snapshot:
        """Raises SnapshotNotReady."""
        if self.snapshot_source is None:
            raise SnapshotNotReady(f"replica {self.replica} has no source of snapshots")
        return self.snapshot_source()

    # --- for the node -------------------------------------------------------------------------------------------------
    @property
    def compacted(self) -> tuple[int, int]:
        """(index, term) of the newest compaction or installed snapshot; (0, 0) where there was none."""
        return self._mark_index, self._mark_term

    @property
    def oldest_position(self) -> Position | None:
        """Where the oldest entry that is still needed stands; None where there is none."""
        return self._positions[self._head] if self._head < len(self._positions) else None

    @property
    def runs(self) -> int:
        return len(self._firsts) - self._head

    def repeats(self) -> list[Record]:
        """What must be said again before the segments that say it may go."""
        records: list[Record] = [
            State(self.replica, self.hard_state),
            self.configuration(self.conf_state, self.configured),
        ]
        if self._mark_index:
            records.append(Compact(self.replica, self._mark_index, self._mark_term))
        return records

    def configuration(self, members: ConfState, index: int) -> Configuration:
        """The record of members that the entry at `index` made so."""
        return Configuration(self.replica, members, index, self.generation, self.chosen)

    # --- what the log does to it --------------------------------------------------------------------------------------
    def apply(self, record: State | Configuration | Compact | Install) -> None:
        """A durable record that is no entry."""
        if isinstance(record, State):
            self.hard_state = record.hard_state
        elif isinstance(record, Configuration):
            self.conf_state, self.configured = record.conf_state, record.index
            self.generation, self.chosen = record.generation, record.chosen
        elif isinstance(record, Compact):
            self._compact(record.index, record.term)
        else:
            self.forget_entries()
            self._mark_index, self._mark_term = record.index, record.term
            self._last = record.index
            self.conf_state, self.configured = record.conf_state, record.index

    def append(
        self,
        first: int,
        count: int,
        starts: list[tuple[int, int]],
        changes: list[int],
        place: tuple[Position, int, int],
    ) -> None:
        """A durable run of entries.

        `starts` says where terms begin in it, `changes` which entries change the configuration, `place` is its
        position, length and CRC.
        """
        if first > self._last + 1 or first <= self._mark_index:
            check(
                first > self._mark_index,
                "replica %d appends %d, compacted to %d",
                self.replica,
                first,
                self._mark_index,
            )
            check(first == self._last + 1, "replica %d appends %d behind %d", self.replica, first, self._last)
        if first <= self._last:
            self._cut_from(first)
        self._firsts.append(first)
        self._positions.append(place[0])
        self._lengths.append(place[1])
        self._crcs.append(place[2])
        for index, term in starts:
            if not self._terms or self._terms[-1] != term:
                self._term_firsts.append(index)
                self._terms.append(term)
        self._changes.extend(changes)
        self._last = first + count - 1

    def append_entries(self, entries: Entries, place: tuple[Position, int, int]) -> None:
        """As `append`."""
        first, terms, kinds = entries.first, entries.terms, entries.kinds
        lone = len(terms) == 1 and not kinds[0] and first == self._last + 1
        if not lone or not self._terms or self._terms[-1] != terms[0]:
            self.append(first, len(terms), term_starts(first, terms), changes(first, kinds), place)
            return
        self._firsts.append(first)
        self._positions.append(place[0])
        self._lengths.append(place[1])
        self._crcs.append(place[2])
        self._last = first

    def forget_entries(self) -> None:
        """No entry is left; the marks stay."""
        self._handed = None
        self._cache.drop(self._positions[self._head :])
        self._head = 0
        runs = (self._firsts, self._positions, self._lengths, self._crcs)
        for values in (*runs, self._term_firsts, self._terms, self._changes):
            del values[:]
        self._last = self._mark_index

    def start_behind(self, index: int) -> None:
        """Recovery: the entries before these were in segments that are released; a mark that follows says so."""
        self.forget_entries()
        self._last = index

    def lose_from(self, index: int) -> None:
        """Accepted loss: the entries from `index` on are gone, and what is known as committed with them."""
        if index <= self._mark_index + 1:
            self.forget_entries()
        elif index <= self._last:
            self._cut_from(index)
            self._last = index - 1
        self.hard_state = self.hard_state._replace(commit=min(self.hard_state.commit, self._last))
        if self._last > self._mark_index and self.term(self._last) > self.hard_state.term:
            # The record of this term is among what was lost; so is whom the replica voted for in it.
            self.hard_state = HardState(self.term(self._last), 0, self.hard_state.commit)

    @property
    def first_held(self) -> int:
        """Index of the first entry of which the run is known; 0 where there is none."""
        return self._firsts[self._head] if self._head < len(self._firsts) else 0

    def _cut_from(self, index: int) -> None:
        if index > self._last:
            return
        self._handed = None
        firsts = self._firsts
        while len(firsts) > self._head and firsts[-1] >= index:
            self._cache.drop((self._positions[-1],))
            del firsts[-1], self._positions[-1], self._lengths[-1], self._crcs[-1]
        while self._term_firsts and self._term_firsts[-1] >= index:
            del self._term_firsts[-1], self._terms[-1]
        del self._changes[bisect_left(self._changes, index) :]

    def _compact(self, index: int, term: int) -> None:
        if index <= self._mark_index:
            return
        self._mark_index, self._mark_term = index, term
        if index >= self._last:
            self.forget_entries()
            return
        head = bisect_right(self._firsts, index + 1, self._head) - 1
        self._cache.drop(self._positions[self._head : head])
        self._head = max(self._head, head)
        self._handed = None
        if self._head > _TRIM_RUNS and self._head * 2 > len(self._firsts):
            for values in (self._firsts, self._positions, self._lengths, self._crcs):
                del values[: self._head]
            self._head = 0
        gone = bisect_right(self._term_firsts, index + 1) - 1
        if gone > 0:
            del self._term_firsts[:gone], self._terms[:gone]
        del self._changes[: bisect_right(self._changes, index)]

    def _slice_run(self, run: int, low: int, high: int, in_memory: bool) -> Entries | None:
        """The entries of a run within [low, high); None where it is not `in_memory`, and is being read."""
        end = self._firsts[run + 1] if run + 1 < len(self._firsts) else self._last + 1
        position = self._positions[run]
        entries = self._cache.get(position)
        if entries is None and self._handed is not None and self._handed[0] == position:
            entries = self._handed[1]
        if entries is None:
            if in_memory and position != self._unreadable:
                self._wanted = True
                self._read_ahead(run)
                return None
            entries = self._reads.read(self._run(run))
            self._cache.put(position, entries)
            self._read_ahead(run + 1)
        elif self._firsts[run] == self._fetch_at:
            self._read_ahead(run + 1)
        return entries.slice(low, min(high, end))

    def _run(self, run: int) -> Run:
        return Run(self._firsts[run], self._positions[run], self._lengths[run], self._crcs[run])

    def _read_ahead(self, run: int) -> None:
        """Who reads old entries reads on: have the next ones in memory by then, without waiting for the disk."""
        if self._fetching or not self._reads.active:  # asked for each run of a long slice: it must cost nothing then
            return
        while run < len(self._firsts) and self._cache.get(self._positions[run]) is not None:
            run += 1
        runs: list[Run] = []
        size = 0
        while run < len(self._firsts) and size < LOG_READ_AHEAD_BYTES and len(runs) < LOG_READ_AHEAD_RUNS:
            if self._cache.get(self._positions[run]) is not None:
                break
            runs.append(self._run(run))
            size += self._lengths[run]
            run += 1
        if runs:
            self._fetching, self._fetch_at = True, runs[0].first
            self._reads.read_ahead(runs, partial(self._fetched, runs[0].position))

    def _fetched(self, asked: Position, found: list[tuple[Run, Entries]]) -> None:
        """`asked` and what follows were to be read, `found` could be."""
        self._fetching = False
        self._unreadable = 0 if found else asked
        for run, entries in found:
            at = bisect_right(self._firsts, run.first, self._head) - 1
            if at >= self._head and self._run(at) == run:
                self._cache.put(run.position, entries)
        if self._wanted:
            self._wanted = False
            # A cache that does not hold it any more must not keep the owner from it.
            self._handed = (asked, found[0][1]) if found and self._cache.get(asked) is None else None
            if self.entries_read is not None:
                self.entries_read()
