"""Lone entries of many groups: what a loop turn has for all of them goes to a peer, and to the disk, as columns.

The core's side, and when a step is one of these, stands in `raft.lone`. Between nodes the entries of a turn are one
word (`Appends`), as are what is acknowledged (`Acks`) and what is committed (`beats.Commits`).

An `Appends`, big-endian: u32 count; for each u32 group, u32 generation, u64 replica that is meant, u64 leader's
replica, u64 term, u64 log term, u64 index and u64 commit of an append message, u32 length; then the payloads. An
`Acks`: for each the fields of `Covered`, its leader being the replica that acknowledges, its commit the index.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import accumulate, count, pairwise
from typing import Protocol, TypeAlias

from iotdb_cluster.cluster.beats import Covered
from iotdb_cluster.cluster.group import COMMITS_UNSAVED, Group
from iotdb_cluster.cluster.log import Append, DurableLog, Record, State
from iotdb_cluster.cluster.timing import Timing
from iotdb_cluster.errors import CorruptData
from iotdb_cluster.limits import MIB
from iotdb_cluster.raft import Entries, EntryKind, HardState, LoneWork, Message, MessageType

__all__ = ["Acks", "AppendRow", "Appends", "LoneEntries"]

SUBMISSION_BYTES_MAX = MIB  # of payloads that are written together, whatever the turn has
_COUNT = struct.Struct(">I")
_APPEND = struct.Struct(">IIQQQQQQI")
_ACK = struct.Struct(">IIQQQQ")

# group, generation, replica that is meant, leader's replica, term, log term, index, commit
AppendRow: TypeAlias = tuple[int, int, int, int, int, int, int, int]
AckRow: TypeAlias = tuple[int, int, int, int, int, int]


@dataclass(slots=True, frozen=True)
class Appends:
    """Append messages with one normal entry each, of the message's term."""

    rows: Sequence[AppendRow]
    payloads: Sequence[bytes]

    def encode(self) -> bytes:
        pack = _APPEND.pack
        heads = [pack(*row, len(payload)) for row, payload in zip(self.rows, self.payloads, strict=True)]
        return b"".join((_COUNT.pack(len(heads)), *heads, *self.payloads))

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
        if ends[-1] != len(data) or not all(row[4] for row in rows):
            raise CorruptData(f"{entries} lone entries of {len(data)} bytes end at {ends[-1]}, or one has no term")
        return cls([row[:8] for row in rows], [bytes(data[a:b]) for a, b in pairwise(ends)])


@dataclass(slots=True, frozen=True)
class Acks:
    """Acknowledgements of appends: (group, generation, replica that is meant, who acknowledges, term, index)."""

    rows: Sequence[AckRow]

    def encode(self) -> bytes:
        return b"".join([_ACK.pack(*row) for row in self.rows])

    @classmethod
    def decode(cls, data: memoryview) -> Acks:
        """CorruptData where the bytes are cut, or one has no term."""
        if len(data) % _ACK.size:
            raise CorruptData(f"acknowledgements have {len(data)} bytes")
        rows = list(_ACK.iter_unpack(data))
        if not all(row[4] for row in rows):
            raise CorruptData("an acknowledgement has no term")
        return cls(rows)


class Outbox(Protocol):
    def append(self, node: int, group: Group, row: AppendRow, payload: bytes) -> None: ...
    def acknowledge(self, node: int, group: Group, row: AckRow) -> None: ...
    def committed(self, node: int, group: Group, pair: Covered) -> None: ...


class LoneEntries:
    """The driver's part for lone entries; `step` and `wake` are the driver's own, as is `apply`."""

    def __init__(
        self,
        log: DurableLog,
        outbox: Outbox,
        timing: Timing,
        groups: dict[int, Group],
        step: Callable[[Group, Message], None],
        wake: Callable[[Group], None],
        apply: Callable[[Group, Entries], None],
        synced: Callable[[Callable[[], None]], None],
    ) -> None:
        """`synced(work)` is called when a write is done: it does the work unless the driver has stopped."""
        self._log = log
        self._outbox = outbox
        self._timing = timing
        self._groups = groups
        self._step = step
        self._wake = wake
        self._apply = apply
        self._when_synced = synced
        self._records: list[Record] = []
        self._written: list[tuple[Group, int, int, int]] = []  # group, term, index, whom to acknowledge it to
        self._bytes = 0
        self.leaves_out: Callable[[Group], bool] | None = None  # whether a group takes no entries at the moment
        # Whether a member's replica lives on a node.
        self.is_of: Callable[[Group, int, int], bool] = lambda group, replica, node: group.nodes.get(replica) == node

    # --- what a group's core gives ------------------------------------------------------------------------------------

    def handle(self, group: Group, work: LoneWork) -> None:
        """Do what the core's step asks for; what is to be written waits for `submit`."""
        if work.entries.terms:
            self._write(group, work)
        for member in work.news:
            self._tell(group, member, work.commit)
        if work.commit - group.stored.commit >= COMMITS_UNSAVED:
            group.stored = HardState(group.raw.term, group.raw.vote, work.commit)
            self._records.append(State(group.replica, group.stored))
        if work.committed.terms:
            self._apply(group, work.committed)
            group.raw.lone_applied(work.committed)

    def _write(self, group: Group, work: LoneWork) -> None:
        entries = work.entries
        term = entries.terms[-1]
        self._records.append(Append(group.replica, entries))
        self._written.append((group, term, entries.last, work.leader))
        self._bytes += entries.payload_bytes
        for member in work.members:
            node = group.nodes.get(member)
            log_term = work.log_term
            for before, commit, payload in zip(count(entries.first - 1), work.commits, entries.data, strict=False):
                if node is not None:
                    row = (group.id, group.generation, member, group.replica, term, log_term, before, commit)
                    self._outbox.append(node, group, row, payload)
                log_term = term
        if self._bytes > SUBMISSION_BYTES_MAX:
            self.submit()

    def _tell(self, group: Group, member: int, commit: int) -> None:
        """Tell a member what is committed; it hears of no more than it is known to have, so perhaps later."""
        node = group.nodes.get(member)
        if node is None:
            return
        raw = group.raw
        pair = Covered(group.id, group.generation, member, group.replica, raw.term, commit)
        if raw.member_has(member, commit):
            self._outbox.committed(node, group, pair)
        else:
            group.news_owed[member] = pair

    def tell_owed(self, group: Group) -> None:
        """The members that have acknowledged meanwhile hear what is committed."""
        raw = group.raw
        for member, pair in list(group.news_owed.items()):
            node = group.nodes.get(member)
            if pair.term != raw.term or node is None:
                del group.news_owed[member]
            elif raw.member_has(member, pair.commit):
                del group.news_owed[member]
                self._outbox.committed(node, group, pair)

    def submit(self) -> None:
        """Hand the log what the turn has for it."""
        if not self._records:
            return
        records, self._records = self._records, []
        written, self._written = self._written, []
        self._bytes = 0
        self._log.submit(records, lambda: self._when_synced(lambda: self._durable(written)))

    def _durable(self, written: list[tuple[Group, int, int, int]]) -> None:
        for group, term, index, leader in written:
            if group.closed:
                continue
            self._timing.touch(group)
            group.raw.lone_durable(term, index)
            self._wake(group)
            node = group.nodes.get(leader)
            if node is not None:
                row = (group.id, group.generation, leader, group.replica, term, index)
                self._outbox.acknowledge(node, group, row)

    # --- what peers say -----------------------------------------------------------------------------------------------

    def appended(self, node: int, word: Appends) -> None:
        """A leader's node sends entries."""
        self._timing.heard(node)
        for row, payload in zip(word.rows, word.payloads, strict=True):
            number, generation, replica, source, term, log_term, index, commit = row
            group = self._group(node, number, generation, replica, source)
            if group is None or (self.leaves_out is not None and self.leaves_out(group)):
                continue
            self._timing.touch(group)
            if group.raw.lone_append(source, term, log_term, index, commit, payload):
                self._wake(group)
            else:
                entries = Entries(index + 1, [term], [EntryKind.NORMAL], [payload])
                self._step(
                    group, Message(MessageType.APP, replica, source, term, log_term, index, commit, entries=entries)
                )

    def acknowledged(self, node: int, word: Acks) -> None:
        """A follower's node has entries on its disk."""
        self._timing.heard(node)
        for number, generation, replica, source, term, index in word.rows:
            group = self._group(node, number, generation, replica, source)
            if group is None:
                continue
            self._timing.touch(group)
            if not group.raw.lone_acknowledged(source, term, index):
                self._step(group, Message(MessageType.APP_RESP, replica, source, term, index=index))
            else:
                self._wake(group)

    def _group(self, node: int, number: int, generation: int, replica: int, source: int) -> Group | None:
        """The replica here that is meant, where there is one and the other is on that node."""
        group = self._groups.get(number)
        if (
            group is None
            or group.replica != replica
            or group.generation != generation
            or not self.is_of(group, source, node)
        ):
            return None
        return group
