"""The meta group on this node: its state machine fed by the driver, its checkpoints, and proposing to it.

A checkpoint is one file, `meta-<index>.ckpt`: magic, version, CRC32C, then a packed head (index, term, members) and the
dumped state. A received snapshot is staged as such a file, by a worker, before its message is taken; the log's
`Install` mark makes it count.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from contextlib import suppress

import crc32c

from iotdb_cluster.cluster.group import Outcome
from iotdb_cluster.cluster.log import make_durable_directories
from iotdb_cluster.errors import CorruptData, check
from iotdb_cluster.meta import MetaState
from iotdb_cluster.packing import pack, unpack
from iotdb_cluster.raft import ConfState, Entries, EntryKind, LogView, Snapshot, SnapshotNotReady
from iotdb_cluster.world import FileSystem

__all__ = ["CHECKPOINT_ENTRIES", "MetaMachine"]

CHECKPOINT_ENTRIES = 1_000  # entries between two checkpoints; so many are replayed at a start at most
KEPT_ENTRIES = 1_000  # entries behind a checkpoint that stay in the log for members that lag a little
_HEAD = struct.Struct(">7sBI")
_MAGIC, _VERSION = b"METACKP", 1


class MetaMachine:
    """Applies the meta group's entries to a `MetaState`; `changed()` is called after each run of them."""

    def __init__(self, files: FileSystem, directory: str, changed: Callable[[], None]) -> None:
        self._files = files
        self._directory = directory
        self._changed = changed
        self.state = MetaState()
        self.index = 0
        self.term = 0
        self.members = ConfState()  # as of `index`, or, until that is there, as of ...
        self.members_index = 0
        self.checkpointed = 0
        self.checkpoint_asked = False
        self._received: tuple[int, int, MetaState] | None = None  # index, term and state of a snapshot that is staged

    def apart(self) -> MetaMachine:
        """Another one over the same checkpoints, to look at what a log would come to; nobody hears of it."""
        return MetaMachine(self._files, self._directory, lambda: None)

    # --- applying -----------------------------------------------------------------------------------------------------

    def apply(self, entries: Entries) -> list[Outcome]:
        outcomes = []
        for offset, (kind, data) in enumerate(zip(entries.kinds, entries.data, strict=True)):
            payload = data if kind == EntryKind.NORMAL else b""
            result = self.state.apply(entries.first + offset, payload)
            outcomes.append(Outcome(result.value, result.error))
        self.index, self.term = entries.last, entries.terms[-1]
        self._changed()
        return outcomes

    def configured(self, configuration: ConfState, index: int) -> None:
        self.members, self.members_index = configuration, index

    @property
    def members_known(self) -> bool:
        """Whether it is known who the members were as of `index`: not while a restart still replays."""
        return self.index >= self.members_index

    # --- checkpoints --------------------------------------------------------------------------------------------------

    @property
    def checkpoint_due(self) -> bool:
        """Not while a restart still replays: who the members were then is not known."""
        due = self.checkpoint_asked or self.index - self.checkpointed >= CHECKPOINT_ENTRIES
        return due and self.members_known

    @property
    def forgettable(self) -> int:
        """The log may forget entries up to this index."""
        return max(0, self.checkpointed - KEPT_ENTRIES)

    def snapshot(self) -> Snapshot:
        """SnapshotNotReady while a restart still replays."""
        if not self.members_known:
            raise SnapshotNotReady(
                f"the meta group is replayed to {self.index}, its members are of {self.members_index}"
            )
        return Snapshot(self.index, self.term, self.members, self.state.dump())

    def stage(self, snapshot: Snapshot) -> None:
        """Write a checkpoint file; on a worker. OSError."""
        self._write(snapshot)

    def receive(self, snapshot: Snapshot) -> None:
        """Stage another member's snapshot, which counts once the log has its `Install` mark; on a worker. OSError."""
        self._write(snapshot)
        self._received = snapshot.index, snapshot.term, MetaState.load(snapshot.data)

    def takes(self, snapshot: Snapshot) -> bool:
        """Whether a snapshot was received."""
        return self._received is not None and self._received[:2] == (snapshot.index, snapshot.term)

    def require_staged(self, snapshot: Snapshot) -> None:
        check(self.takes(snapshot), "meta: snapshot %d is not staged", snapshot.index)

    def install(self, snapshot: Snapshot) -> None:
        received = self._received
        if received is not None and received[:2] == (snapshot.index, snapshot.term):
            self.state = received[2]
        else:
            self.state = MetaState.load(snapshot.data)
        if received is not None and received[0] <= snapshot.index:
            self._received = None
        self.index, self.term = snapshot.index, snapshot.term
        self.configured(snapshot.conf_state, snapshot.index)
        self.checkpointed = snapshot.index
        self._changed()

    def recover(self, log: LogView) -> None:
        """Load the newest checkpoint that the log continues; CorruptData where there is a gap between them.

        A snapshot that was staged, and whose mark did not get into the log, may lie behind the log's end, or beside
        entries of another leader: it does not count.
        """
        first, last = log.first_index(), log.last_index()
        for index in sorted(self._indexes(), reverse=True):
            if first - 1 <= index <= max(last, first - 1):
                snapshot = self._read(index)
                if snapshot.term == log.term(index):
                    self.install(snapshot)
                    return
        self.index = first - 1
        if self.index > 1:
            raise CorruptData(
                f"{self._directory}: the meta log begins at {first}, no checkpoint reaches it: {self._indexes()}"
            )

    def _name(self, index: int) -> str:
        return f"{self._directory}/meta-{index:020d}.ckpt"

    def _indexes(self) -> list[int]:
        names = self._files.list(self._directory)
        return [int(name[5:25]) for name in names if name.startswith("meta-") and name.endswith(".ckpt")]

    def _write(self, snapshot: Snapshot) -> None:
        members = snapshot.conf_state
        head = {
            "index": snapshot.index,
            "term": snapshot.term,
            "voters": list(members.voters),
            "learners": list(members.learners),
            "voters_outgoing": list(members.voters_outgoing),
            "learners_next": list(members.learners_next),
            "auto_leave": members.auto_leave,
        }
        body = pack(head, [snapshot.data])
        path = self._name(snapshot.index)
        make_durable_directories(self._files, self._directory)
        file = self._files.open(path + ".tmp", create=True)
        try:
            file.truncate(0)
            file.write(0, _HEAD.pack(_MAGIC, _VERSION, crc32c.crc32c(body)) + body)
            file.sync()
        finally:
            file.close()
        self._files.rename(path + ".tmp", path)
        self._files.sync_directory(self._directory)
        for index in self._indexes():
            # The one that the log continues stays until another one counts; a later one was received meanwhile.
            if index < self.checkpointed and index != snapshot.index:
                with suppress(FileNotFoundError):  # another worker stages a received snapshot
                    self._files.remove(self._name(index))

    def _read(self, index: int) -> Snapshot:
        path = self._name(index)
        file = self._files.open(path)
        try:
            raw = file.read(0, file.size())
        finally:
            file.close()
        if len(raw) < _HEAD.size:
            raise CorruptData(f"{path}: {len(raw)} bytes are no checkpoint")
        magic, version, checksum = _HEAD.unpack_from(raw)
        body = raw[_HEAD.size :]
        if magic != _MAGIC or version != _VERSION:
            raise CorruptData(f"{path}: version {version} of {magic!r}; this program knows {_VERSION} of {_MAGIC!r}")
        if crc32c.crc32c(body) != checksum:
            raise CorruptData(f"{path}: wrong checksum")
        head, buffers = unpack(body)
        members = ConfState(
            tuple(head["voters"]),
            tuple(head["learners"]),
            tuple(head["voters_outgoing"]),
            tuple(head["learners_next"]),
            bool(head["auto_leave"]),
        )
        return Snapshot(int(head["index"]), int(head["term"]), members, bytes(buffers[0]))
