"""One replica's log as the core sees it: the stable part behind a `LogView`, and the tail that is not durable yet."""

from __future__ import annotations

from iotdb_cluster.errors import InvariantViolation, check
from iotdb_cluster.raft.message import (
    ENTRY_OVERHEAD_BYTES,
    NO_ENTRIES,
    Compacted,
    Entries,
    LogView,
    NotInMemory,
    Snapshot,
    Unavailable,
)

__all__ = ["RaftLog"]

_LONE_MAX = 64  # kept at hand


class RaftLog:
    """applied <= applying <= committed <= last index, none of the first three ever decreases, and no entry up to
    `committed` is ever replaced. With asynchronous writes the state machine is given nothing that is not durable here:
    then applying < offset.

    The tail's first entry has index `offset`; entries below `offset_in_progress` were handed to the log writer. A tail
    that is handed out is copied, so that what is replaced here later does not change under the writer.
    """

    __slots__ = (
        "_data",
        "_kinds",
        "_lone",
        "_lone_index",
        "_lone_term",
        "_terms",
        "applied",
        "applying",
        "applying_bytes",
        "applying_bytes_max",
        "applying_entries_max",
        "applying_paused",
        "committed",
        "offset",
        "offset_in_progress",
        "reading",
        "snapshot",
        "snapshot_in_progress",
        "view",
    )

    def __init__(self, view: LogView, applying_bytes_max: int, applying_entries_max: int) -> None:
        self.view = view
        self.offset = self.offset_in_progress = view.last_index() + 1
        self._terms: list[int] = []
        self._kinds: list[int] = []
        self._data: list[bytes] = []
        self._lone_index = self._lone_term = 0  # the last entry, where it was lone, and its term
        self._lone: dict[int, Entries] = {}  # such entries until they are applied, as long as only they come
        self.snapshot: Snapshot | None = None  # received, not installed yet
        self.snapshot_in_progress = False
        self.committed = self.applying = self.applied = view.first_index() - 1
        self.applying_bytes_max = applying_bytes_max
        self.applying_entries_max = applying_entries_max  # of those that are handed out at once
        self.applying_bytes = 0
        self.applying_paused = False
        self.reading = False  # what is to be applied next is not in memory

    # --- where it begins and ends -----------------------------------------------------------------------------------
    @property
    def first_index(self) -> int:
        return self.view.first_index() if self.snapshot is None else self.snapshot.index + 1

    @property
    def last_index(self) -> int:
        return self.offset + len(self._terms) - 1

    def last_id(self) -> tuple[int, int]:
        """(term, index) of the last entry."""
        last = self.last_index
        return self.term(last), last

    def term(self, index: int) -> int:
        """Raises Compacted, Unavailable."""
        if index == self._lone_index and index:
            return self._lone_term
        at = index - self.offset
        if at >= 0:
            if at >= len(self._terms):
                raise Unavailable(index)
            return self._terms[at]
        snapshot = self.snapshot
        if snapshot is not None:
            if index != snapshot.index:
                raise Compacted(index)
            return snapshot.term
        if index + 1 < self.view.first_index():
            raise Compacted(index)
        return self.view.term(index)

    def term_or_zero(self, index: int) -> int:
        try:
            return self.term(index)
        except (Compacted, Unavailable):
            return 0

    def matches(self, term: int, index: int) -> bool:
        try:
            return self.term(index) == term
        except (Compacted, Unavailable):
            return False

    def is_up_to_date(self, term: int, index: int) -> bool:
        """Whether a log that ends there holds all that this one can have committed."""
        return (term, index) >= self.last_id()

    # --- appending --------------------------------------------------------------------------------------------------
    def append_own(self, term: int, kinds: list[int], data: list[bytes]) -> int:
        """A leader's entries behind its last one; the new last index."""
        self._forget_lone()
        self._terms.extend([term] * len(data))
        self._kinds.extend(kinds)
        self._data.extend(data)
        return self.last_index

    def last_given(self, entries_max: int) -> int:
        """Index of the last entry; 0 where the writer has not been given all, or so many are not durable yet."""
        count = len(self._terms)
        last = self.offset + count - 1
        return last if count < entries_max and last < self.offset_in_progress and self.snapshot is None else 0

    def append_given(self, entry: Entries) -> None:
        """One entry behind the last one; the writer has all those, and is given this one at once."""
        term, index = entry.terms[0], entry.first
        self._terms.append(term)
        self._kinds.append(entry.kinds[0])
        self._data.append(entry.data[0])
        self.offset_in_progress = index + 1
        self._lone_index, self._lone_term = index, term
        self._lone[index] = entry
        if len(self._lone) > _LONE_MAX:
            self._lone.clear()

    def _forget_lone(self) -> None:
        self._lone_index = 0
        if self._lone:
            self._lone.clear()

    def maybe_append(self, term: int, index: int, entries: Entries, commit: int) -> int | None:
        """A leader's entries behind its entry (term, index): the last index that agrees now, None if it is not here."""
        if not self.matches(term, index):
            return None
        last_new = index + len(entries.terms)
        conflict = self._find_conflict(index + 1, entries.terms)
        if conflict:
            self._replace_from(
                conflict, entries if conflict == entries.first else entries.slice(conflict, last_new + 1)
            )
        self.commit_to(min(commit, last_new))
        return last_new

    def _find_conflict(self, first: int, terms: list[int]) -> int:
        """Index of the first entry that is missing here or has another term; 0 where all are here."""
        overlap = min(self.last_index + 1 - first, len(terms))
        for at in range(overlap):
            if not self.matches(terms[at], first + at):
                return first + at
        return first + overlap if overlap < len(terms) else 0

    def _replace_from(self, index: int, entries: Entries) -> None:
        """`entries` take the place of everything from `index` on."""
        at = index - self.offset
        self._forget_lone()
        check(index > self.committed, "entries from %d replace committed ones, up to %d", index, self.committed)
        check(at <= len(self._terms), "entries from %d leave a gap behind %d", index, self.last_index)
        if at < 0:
            self.offset = self.offset_in_progress = index
            at = 0
        elif index < self.offset_in_progress:
            self.offset_in_progress = index
        self._terms[at:] = entries.terms
        self._kinds[at:] = entries.kinds
        self._data[at:] = entries.data

    def find_conflict_by_term(self, index: int, term: int) -> tuple[int, int]:
        """(index, its term): the last entry up to `index` of a term up to `term`; the term is 0 if unknown."""
        while index > 0:
            try:
                own = self.term(index)
            except (Compacted, Unavailable):
                return index, 0
            if own <= term:
                return index, own
            index -= 1
        return 0, 0

    # --- the tail ---------------------------------------------------------------------------------------------------
    @property
    def has_unstable(self) -> bool:
        """Whether entries are not durable yet, handed to the writer or not."""
        return bool(self._terms)

    @property
    def has_next_unstable(self) -> bool:
        return self.offset + len(self._terms) > self.offset_in_progress

    def next_unstable(self) -> Entries:
        """Entries that the writer has not been given."""
        if self.offset + len(self._terms) == self.offset_in_progress:
            return NO_ENTRIES
        return self._tail(self.offset_in_progress, self.offset + len(self._terms))

    @property
    def next_snapshot(self) -> Snapshot | None:
        return None if self.snapshot_in_progress else self.snapshot

    def accept_unstable(self) -> None:
        """The writer has all that there is."""
        if self._terms:
            self.offset_in_progress = self.offset + len(self._terms)
        if self.snapshot is not None:
            self.snapshot_in_progress = True

    def stable_to(self, term: int, index: int) -> None:
        """The writer has made the log durable up to (term, index); nothing happens where that was replaced since."""
        at = index - self.offset
        if not 0 <= at < len(self._terms) or self._terms[at] != term:
            return
        check(index < self.offset_in_progress, "entry %d counts as durable, %d was not handed out", index, index)
        held = self.view.last_index()
        check(index <= held, "entry %d counts as durable, the stable log ends at %d", index, held)
        del self._terms[: at + 1]
        del self._kinds[: at + 1]
        del self._data[: at + 1]
        self.offset = index + 1

    def stable_snapshot_to(self, index: int) -> None:
        """A received snapshot is installed: log and state machine begin with it."""
        check(index <= self.committed, "snapshot %d is installed, commit is %d", index, self.committed)
        self.applying = max(self.applying, index)
        if self.snapshot is not None and self.snapshot.index == index:
            self.snapshot = None
            self.snapshot_in_progress = False

    def restore(self, snapshot: Snapshot) -> None:
        """Start anew behind a received snapshot."""
        check(snapshot.index >= self.committed, "a snapshot of %d for commit %d", snapshot.index, self.committed)
        self.committed = snapshot.index
        self.offset = self.offset_in_progress = snapshot.index + 1
        self._terms, self._kinds, self._data = [], [], []
        self._forget_lone()
        self.snapshot = snapshot
        self.snapshot_in_progress = False

    def _tail(self, low: int, high: int) -> Entries:
        a = low - self.offset
        b = high - self.offset
        return Entries(low, self._terms[a:b], self._kinds[a:b], self._data[a:b])

    # --- commit and apply -------------------------------------------------------------------------------------------
    def commit_to(self, index: int) -> None:
        if index > self.committed:
            check(
                index <= self.last_index, "commit %d lies behind the last index %d: log lost?", index, self.last_index
            )
            self.committed = index

    def maybe_commit(self, term: int, index: int) -> bool:
        """Commit up to `index` if that entry is of `term`, the leader's own."""
        if index <= self.committed or not self.matches(term, index):
            return False
        self.commit_to(index)
        return True

    def _appliable_to(self, allow_unstable: bool) -> int:
        return self.committed if allow_unstable else min(self.committed, self.offset - 1)

    @property
    def has_durable_committed(self) -> bool:
        """Whether there are entries to apply next, of those that are durable here."""
        applying = self.applying
        return (
            applying < self.committed
            and applying < self.offset - 1
            and not self.applying_paused
            and not self.reading
            and self.snapshot is None
        )

    def take_durable_committed(self) -> Entries:
        """`next_committed` and `accept_applying` of the durable ones, at once."""
        if not self.has_durable_committed:
            return NO_ENTRIES
        low, end = self.applying + 1, min(self.committed, self.offset - 1) + 1
        room = self.applying_bytes_max - self.applying_bytes
        check(room > 0, "%d bytes are being applied, %d may be", self.applying_bytes, self.applying_bytes_max)
        entries = self._lone.pop(low, None)
        if entries is None:
            entries = self.next_committed(False)
            if not entries.terms:
                return entries
        else:
            for index in range(low + 1, min(end, low + self.applying_entries_max)):
                following = self._lone.get(index)
                if following is None or entries.byte_size + following.byte_size > room:
                    break
                entries = entries.concat(self._lone.pop(index))
        last = low + len(entries.terms) - 1
        if not low == entries.first <= last < end:
            check(False, "entries %d to %d are given for [%d, %d)", entries.first, last, low, end)
        self.applying = last
        self.applying_bytes += entries.byte_size
        self.applying_paused = self.applying_bytes >= self.applying_bytes_max or last + 1 < end
        return entries

    def has_next_committed(self, allow_unstable: bool) -> bool:
        if self.applying_paused or self.reading or self.snapshot is not None:
            return False
        return self.applying < self._appliable_to(allow_unstable)

    def next_committed(self, allow_unstable: bool) -> Entries:
        """Entries to apply next; `allow_unstable` also those of which only the others' copies are durable."""
        if not self.has_next_committed(allow_unstable):
            return NO_ENTRIES
        room = self.applying_bytes_max - self.applying_bytes
        check(room > 0, "%d bytes are being applied, %d may be", self.applying_bytes, self.applying_bytes_max)
        try:
            end = min(self._appliable_to(allow_unstable), self.applying + self.applying_entries_max) + 1
            return self.slice(self.applying + 1, end, room)
        except NotInMemory:
            self.reading = True
            return NO_ENTRIES

    def accept_applying(self, index: int, size: int, allow_unstable: bool) -> None:
        """The state machine has entries up to `index`, of `size` bytes, in hand."""
        check(self.applying <= index, "applying %d after %d", index, self.applying)
        check(
            index <= self._appliable_to(allow_unstable),
            "applying %d, commit is %d, durable %d",
            index,
            self.committed,
            self.offset - 1,
        )
        self.applying = index
        self.applying_bytes += size
        for at in [at for at in self._lone if at <= index]:
            del self._lone[at]
        # Where the limit held something back, wait for an answer: otherwise many small reads would follow.
        self.applying_paused = self.applying_bytes >= self.applying_bytes_max or index < self._appliable_to(
            allow_unstable
        )

    def begin_applied(self, index: int) -> None:
        """At the start: the state machine holds the entries up to `index`, so that they are committed."""
        check(self.applied <= index, "applied %d lies before the log, which begins behind %d", index, self.applied)
        check(index <= self.last_index, "applied %d, last index %d", index, self.last_index)
        self.commit_to(index)
        self.applying = self.applied = index

    def applied_to(self, index: int, size: int) -> None:
        check(
            self.applied <= index <= self.applying <= self.committed,
            "applied %d, was %d, handed out %d, commit %d",
            index,
            self.applied,
            self.applying,
            self.committed,
        )
        self.applied = index
        self.applying_bytes = max(0, self.applying_bytes - size)
        self.applying_paused = self.applying_bytes >= self.applying_bytes_max

    # --- reading ----------------------------------------------------------------------------------------------------
    def entries(self, low: int, bytes_max: int) -> Entries:
        """Entries from `low` to the end, within `bytes_max`, at least one where there is one. As `slice`."""
        if low > self.last_index:
            return NO_ENTRIES
        return self.slice(low, self.last_index + 1, bytes_max)

    def slice(self, low: int, high: int, bytes_max: int) -> Entries:
        """Entries [low, high) as far as `bytes_max` allows, at least one where there is one.

        Raises Compacted, NotInMemory.
        """
        check(low <= high <= self.last_index + 1, "log slice [%d, %d) behind %d", low, high, self.last_index)
        if low >= self.offset:
            return self._tail(low, high).limit(bytes_max) if low < high else NO_ENTRIES
        if low < self.first_index:
            raise Compacted(low)
        cut = min(high, self.offset)
        try:
            stable = self.view.entries(low, cut, bytes_max)
        except Unavailable as exception:
            raise InvariantViolation(f"the stable log does not hold entries [{low}, {cut})") from exception
        check(stable.first == low and 0 < len(stable.terms) <= cut - low, "the stable log gave %s for %d", stable, low)
        if stable.first + len(stable.terms) < high and len(stable.terms) == cut - low:
            size = stable.byte_size
            if size + len(self._data[0]) + ENTRY_OVERHEAD_BYTES <= bytes_max:
                return stable.concat(self._tail(cut, high).limit(bytes_max - size))
        return stable

    def has_changes(self, low: int, high: int) -> bool:
        """Whether an entry within [low, high) changes the configuration."""
        tail = any(self._kinds[max(0, low - self.offset) : max(0, high - self.offset)])
        return tail or (low < self.offset and self.view.has_changes(low, min(high, self.offset)))

    def take_snapshot(self) -> Snapshot:
        """The newest snapshot. Raises SnapshotNotReady."""
        return self.snapshot if self.snapshot is not None else self.view.snapshot()
