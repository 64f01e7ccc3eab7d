"""Lone entries of many groups: what a loop turn has for all of them goes to a peer, and to the disk, as columns.

The core's side, and when a step is one of these, stands in `raft.lone`. Between nodes the entries of a turn are one
word (`Appends`), as are what is acknowledged (`Acks`) and what is committed (`beats.Commits`).

An `Appends`, big-endian: u32 count; for each u32 group, u32 generation, u64 replica that is meant, u64 leader's
replica, u64 term, u64 log term, u64 index and u64 commit of an append message, u32 length; then the payloads. An
`Acks`: for each the fields of `Covered`, its leader being the replica that acknowledges, its commit the index.
"""

from __future__ import annotations

import struct
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise, starmap
from operator import itemgetter
from typing import Protocol, TypeAlias

from iotdb_cluster.cluster.applying import Applying
from iotdb_cluster.cluster.beats import Commits, Covered
from iotdb_cluster.cluster.group import COMMITS_UNSAVED, Group
from iotdb_cluster.cluster.log import Append, DurableLog, Record, State
from iotdb_cluster.cluster.timing import Timing
from iotdb_cluster.errors import CorruptData
from iotdb_cluster.limits import MIB
from iotdb_cluster.raft import COMMITTED, NEWS, REFUSED, SPOKEN, TAKEN, Entries, EntryKind, Message, MessageType

__all__ = ["Acks", "AppendRow", "Appends", "LoneEntries"]

BUSY_GROUPS = 8  # with so many groups in a turn, the next turn is soon, and has entries
NEWS_TURNS_MAX = 4  # of such turns for which the news of a commit waits
SUBMISSION_BYTES_MAX = MIB  # of payloads that are written together, whatever the turn has
_COUNT = struct.Struct(">I")
_APPEND = struct.Struct(">IIQQQQQQI")
_ACK = struct.Struct(">IIQQQQ")
_NORMAL = EntryKind.NORMAL
_TERM = itemgetter(4)  # of either row

# group, generation, replica that is meant, leader's replica, term, log term, index, commit, bytes of the payload
AppendRow: TypeAlias = tuple[int, int, int, int, int, int, int, int, int]
AckRow: TypeAlias = tuple[int, int, int, int, int, int]


@dataclass(slots=True, frozen=True)
class Appends:
    """Append messages with one normal entry each, of the message's term."""

    rows: Sequence[AppendRow]
    payloads: Sequence[bytes]

    def encode(self) -> bytes:
        return b"".join((_COUNT.pack(len(self.rows)), *starmap(_APPEND.pack, self.rows), *self.payloads))

    @classmethod
    def decode(cls, data: memoryview) -> Appends:
        """CorruptData where the bytes are cut or too many, or an append has no term."""
        if len(data) < _COUNT.size:
            raise CorruptData(f"lone entries have {len(data)} bytes")
        (entries,) = _COUNT.unpack_from(data)
        begin = _COUNT.size + entries * _APPEND.size
        if begin > len(data):
            raise CorruptData(f"{entries} lone entries have {len(data)} bytes")
        rows = list(_APPEND.iter_unpack(data[_COUNT.size : begin]))
        ends = list(accumulate([row[8] for row in rows], initial=begin))
        if ends[-1] != len(data) or not all(map(_TERM, rows)):
            raise CorruptData(f"{entries} lone entries of {len(data)} bytes end at {ends[-1]}, or one has no term")
        return cls(rows, [bytes(data[a:b]) for a, b in pairwise(ends)])


@dataclass(slots=True, frozen=True)
class Acks:
    """Acknowledgements of appends: (group, generation, replica that is meant, who acknowledges, term, index)."""

    rows: Sequence[AckRow]

    def encode(self) -> bytes:
        return b"".join(starmap(_ACK.pack, self.rows))

    @classmethod
    def decode(cls, data: memoryview) -> Acks:
        """CorruptData where the bytes are cut, or one has no term."""
        if len(data) % _ACK.size:
            raise CorruptData(f"acknowledgements have {len(data)} bytes")
        rows = list(_ACK.iter_unpack(data))
        if not all(map(_TERM, rows)):
            raise CorruptData("an acknowledgement has no term")
        return cls(rows)


class Outbox(Protocol):
    def append(self, node: int, group: Group, row: AppendRow, payload: bytes) -> None: ...
    def acknowledge(self, node: int, group: Group, row: AckRow) -> None: ...
    def committed(self, node: int, group: Group, pair: Covered) -> None: ...


class LoneEntries:
    """The driver's part for lone entries; `step`, `wake` and `later` are the driver's own, as is `apply`."""

    def __init__(
        self,
        log: DurableLog,
        outbox: Outbox,
        timing: Timing,
        applying: Applying,
        groups: dict[int, Group],
        step: Callable[[Group, Message], None],
        wake: Callable[[Group], None],
        later: Callable[[], None],
        apply: Callable[[Group, Entries], None],
        synced: Callable[[Callable[[], None]], None],
    ) -> None:
        """`later()` has `settle` and `submit` called at the end of the turn.

        `synced(work)` is called when a write is done: it does the work unless the driver has stopped.
        """
        self._log = log
        self._outbox = outbox
        self._timing = timing
        self._applying = applying
        self._groups = groups
        self._step = step
        self._wake = wake
        self._later = later
        self._apply = apply
        self._when_synced = synced
        self._records: list[Record] = []
        # By group: the newest entry among the records, and whom to acknowledge it to.
        self._written: dict[int, tuple[Group, int, int, int]] = {}  # group, term, index, leader
        self._bytes = 0
        self._due: dict[int, Group] = {}  # groups that have something to apply, or to tell
        self._untold: dict[int, Group] = {}  # groups in which members are to hear what is committed
        self._held: deque[dict[int, Group]] = deque()  # the same, of busy turns before
        self.leaves_out: Callable[[Group], bool] | None = None  # whether a group takes no entries at the moment
        # Whether a member's replica lives on a node.
        self.is_of: Callable[[Group, int, int], bool] = lambda group, replica, node: group.nodes.get(replica) == node

    # --- as a leader --------------------------------------------------------------------------------------------------

    def propose(self, group: Group, payload: bytes) -> tuple[int, int] | None:
        """Append one entry: (term, index); None where it has to be proposed otherwise."""
        raw = group.raw
        taken = raw.lone_propose(payload)
        if taken is None:
            return None
        entry, log_term, commit = taken
        index, term = entry.first, entry.terms[0]
        number, generation, replica, nodes = group.id, group.generation, group.replica, group.nodes
        for member in raw.other_members:
            node = nodes.get(member)
            if node is not None:
                row = (number, generation, member, replica, term, log_term, index - 1, commit, len(payload))
                self._outbox.append(node, group, row, payload)
        self._write(group, entry, 0)
        if group.news_owed:
            group.news_owed.clear()  # the entry goes with the commit index
        self._later()
        return term, index

    def _write(self, group: Group, entry: Entries, leader: int) -> None:
        """Have the entry written at the end of the turn, and then acknowledged to a leader."""
        self._records.append(Append(group.replica, entry))
        self._written[group.id] = (group, entry.terms[0], entry.first, leader)
        self._bytes += len(entry.data[0])
        if self._bytes > SUBMISSION_BYTES_MAX:
            self.submit()
        if not group.deadline or group.covers or group.covered_by:
            self._wake(group)  # its timers change

    def acknowledged(self, node: int, word: Acks) -> None:
        """A follower's node has entries on its disk."""
        self._timing.heard(node)
        for row in word.rows:
            group = self._meant(node, row)
            if group is None:
                continue
            _, _, replica, source, term, index = row
            outcome = group.raw.lone_acknowledged(source, term, index)
            if outcome == REFUSED:
                self._step(group, Message(MessageType.APP_RESP, replica, source, term, index=index))
            elif outcome != TAKEN or group.news_owed:
                self._agreed(group, outcome, source)

    def _agreed(self, group: Group, outcome: int, member: int) -> None:
        """What comes of an acknowledgement."""
        if outcome == COMMITTED:
            group.news_owed = dict.fromkeys(group.raw.other_members)
        elif outcome == NEWS:
            group.news_owed[member] = None
        elif outcome == SPOKEN:
            self._wake(group)
        self._due[group.id] = group
        self._later()

    def _tell_members(self, busy: bool) -> None:
        """In a busy time an entry that follows soon takes the news of a commit along; a quiet turn tells all."""
        self._held.append(self._untold)
        self._untold = {}
        while len(self._held) > (NEWS_TURNS_MAX if busy else 0):
            for group in self._held.popleft().values():
                if group.news_owed and not group.closed:
                    self._tell(group)
        if self._held:
            self._later()

    def _tell(self, group: Group) -> None:
        """Tell members what is committed; who is not known to have it hears of it when its acknowledgement comes."""
        raw = group.raw
        if not raw.is_leader:
            group.news_owed.clear()
            return
        term, commit = raw.term, raw.commit
        for member in list(group.news_owed):
            if raw.member_has(member, commit):
                del group.news_owed[member]
                node = group.nodes.get(member)
                if node is not None:
                    pair = Covered(group.id, group.generation, member, group.replica, term, commit)
                    self._outbox.committed(node, group, pair)

    # --- as a follower ------------------------------------------------------------------------------------------------

    def appended(self, node: int, word: Appends) -> None:
        """A leader's node sends entries."""
        leaves_out = self.leaves_out
        self._timing.heard(node)
        for row, payload in zip(word.rows, word.payloads, strict=True):
            group = self._meant(node, row)
            if group is None or (leaves_out is not None and leaves_out(group)):
                continue
            _, _, replica, source, term, log_term, index, commit, _ = row
            entry = Entries(index + 1, [term], [_NORMAL], [payload])
            if not self._append(group, source, log_term, commit, entry):
                self._step(
                    group, Message(MessageType.APP, replica, source, term, log_term, index, commit, entries=entry)
                )
        self._later()

    def _append(self, group: Group, source: int, log_term: int, commit: int, entry: Entries) -> bool:
        raw = group.raw
        if raw.lone_append(source, log_term, commit, entry) == REFUSED:
            return False
        self._write(group, entry, source)
        if raw.applies:
            self._due[group.id] = group
        return True

    def committed(self, node: int, word: Commits) -> None:
        """A leader's node has committed entries."""
        timing = self._timing
        for pair in word.covered:
            group = timing.follower(node, pair)
            if group is None:
                continue
            timing.touch(group)
            raw = group.raw
            if (raw.term, raw.leader) == (pair.term, pair.leader):
                raw.commit_known(pair.commit)
                if raw.applies:
                    self._due[group.id] = group
        self._later()

    # --- as either ----------------------------------------------------------------------------------------------------

    def _meant(self, node: int, row: AppendRow | AckRow) -> Group | None:
        """The replica that a node's row is for, which knows of the time; None where it is not here, or not of there."""
        group = self._groups.get(row[0])
        if (
            group is None
            or group.replica != row[2]
            or group.generation != row[1]
            or not self.is_of(group, row[3], node)
        ):
            return None
        if group.ticked != self._timing.ticks:
            self._timing.touch(group)
        return group

    def take(self, group: Group, message: Message) -> bool:
        """Take an append of one entry, or an acknowledgement, that came as a message; False: it has to be stepped."""
        kind, entries = message.type, message.entries
        if kind is MessageType.APP_RESP and not message.reject:
            outcome = group.raw.lone_acknowledged(message.source, message.term, message.index)
            if outcome == REFUSED:
                return False
            if outcome != TAKEN or group.news_owed:
                self._agreed(group, outcome, message.source)
            return True
        if kind is not MessageType.APP or entries.terms != [message.term] or entries.kinds[0] != _NORMAL:
            return False
        if message.index + 1 != entries.first:
            return False
        self._later()
        return self._append(group, message.source, message.log_term, message.commit, entries)

    def settle(self) -> None:
        """Apply and tell what is committed."""
        due, self._due = self._due, {}
        for group in due.values():
            if group.closed:
                continue
            if self._applying.spent:
                self._applying.wait(group)
            else:
                self._settle(group)
            if group.news_owed:
                self._untold[group.id] = group
        self._tell_members(len(due) >= BUSY_GROUPS)

    def _settle(self, group: Group) -> None:
        raw = group.raw
        entries = raw.lone_committed()
        if entries.terms:
            self._apply(group, entries)
            if raw.lone_applied(entries):
                self._wake(group)
            if raw.commit - group.stored.commit >= COMMITS_UNSAVED:
                group.stored = raw.handed_state
                self._records.append(State(group.replica, group.stored))

    def submit(self) -> None:
        """Hand the log what there is for it; before anything else of these groups is handed to it."""
        if not self._records:
            return
        records, self._records = self._records, []
        written, self._written = self._written, {}
        self._bytes = 0
        self._log.submit(records, lambda: self._when_synced(lambda: self._durable(written)))

    def _durable(self, written: dict[int, tuple[Group, int, int, int]]) -> None:
        timing, outbox = self._timing, self._outbox
        ticks = timing.ticks
        for group, term, index, leader in written.values():
            if group.closed:
                continue
            if group.ticked != ticks:
                timing.touch(group)
            raw = group.raw
            outcome = raw.lone_durable(term, index)
            if leader:
                node = group.nodes.get(leader)
                if node is not None:
                    outbox.acknowledge(node, group, (group.id, group.generation, leader, group.replica, term, index))
            elif outcome != TAKEN:
                self._agreed(group, outcome, group.replica)
            if raw.applies:
                self._due[group.id] = group
        self._later()
