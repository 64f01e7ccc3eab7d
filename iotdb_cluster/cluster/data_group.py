"""A data group's state machine as the driver feeds it, with its checkpoints and those who wait for deletes."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from iotdb_cluster.cluster.group import Outcome
from iotdb_cluster.data import DataGroup
from iotdb_cluster.errors import CallerError, Status, check
from iotdb_cluster.raft import ConfState, Entries, EntryKind, Snapshot, SnapshotNotReady

__all__ = ["DataMachine", "Machines"]


class DataMachine:
    """Wraps a `DataGroup`; `changed()` is called after each run of entries."""

    def __init__(self, data: DataGroup, changed: Callable[[], None]) -> None:
        self.data = data
        # (term, meta index, imports) as they were when the log was told of all decisions about slots
        self.told: tuple[int, int, tuple[int, ...]] = (0, 0, ())
        self.members = ConfState()  # of the group as of `data.applied`, or, until that is there, ...
        self.members_index = 0  # ... as of this index: they were stored with it
        self.checkpointed: tuple[int, ConfState] | None = None  # the newest checkpoint's index, the members then
        self.candidate: DataGroup | None = None  # received and opened; the log's mark puts it in the place of `data`
        self.replaced: list[DataGroup] = []  # what `data` was before, to be removed once nobody reads it
        self.slowed: dict[int, float] = {}  # slots of which writes wait so many ms: a move cannot keep up with them
        self._candidate_term = 0
        self._changed = changed
        self._retired: dict[tuple[int, int], list[asyncio.Future[None]]] = {}

    @property
    def alone(self) -> bool:
        """Whether no other replica of the group exists."""
        return len(self.members.voters) <= 1

    def apply(self, entries: Entries) -> list[Outcome]:
        payloads = entries.data
        if any(kind != EntryKind.NORMAL for kind in entries.kinds):
            payloads = [
                data if kind == EntryKind.NORMAL else b""
                for kind, data in zip(entries.kinds, entries.data, strict=True)
            ]
        results = self.data.apply_many(entries.first, entries.terms, payloads)
        if self._retired:
            self.answer_retired()
        self._changed()
        return [Outcome(result.value, result.error) for result in results]

    def configured(self, configuration: ConfState, index: int) -> None:
        """The group's own state does not hold its members, its snapshots do."""
        self.members, self.members_index = configuration, index

    @property
    def members_known(self) -> bool:
        """Whether it is known who the members were as of `data.applied`: not while a restart still replays."""
        return self.data.applied >= self.members_index

    # --- snapshots ----------------------------------------------------------------------------------------------------

    def snapshot(self) -> Snapshot:
        """That there is one. What goes out is settled when its files are pinned, and is not older.

        Where no checkpoint was needed yet one is made then: a member may need it however young the group is. Its leader
        begins with it anew, from index 0 on, where that led before too and it answers an append of the former term.
        """
        if not self.data.applied:
            raise SnapshotNotReady(f"group {self.data.number} has applied nothing yet")
        return Snapshot(self.data.published or 1, 0, self.members)

    def received(self, candidate: DataGroup, term: int) -> None:
        """A replica that was opened from received files; the message that makes it count may come now."""
        check(self.candidate is None, "group %d has a candidate already", self.data.number)
        self.candidate, self._candidate_term = candidate, term

    def takes(self, index: int, term: int) -> bool:
        """Whether the files of a snapshot are here."""
        return self.candidate is not None and (self.candidate.applied, self._candidate_term) == (index, term)

    def drop_candidate(self) -> DataGroup | None:
        """Take back what `received` was told; never while the core installs it."""
        candidate, self.candidate = self.candidate, None
        return candidate

    def require_staged(self, snapshot: Snapshot) -> None:
        """Its files are verified and synced."""
        known = self.takes(snapshot.index, snapshot.term)
        check(known, "group %d: snapshot %d of which the files are not here", self.data.number, snapshot.index)

    def install(self, snapshot: Snapshot) -> None:
        self.require_staged(snapshot)
        candidate = self.drop_candidate()
        if candidate is not None:
            self.replaced.append(self.data)
            candidate.decided = self.data.decided
            self.data = candidate
            self.configured(snapshot.conf_state, snapshot.index)
            self.checkpointed = (snapshot.index, snapshot.conf_state)
        self.answer_retired()
        self._changed()

    # --- deletes ------------------------------------------------------------------------------------------------------

    async def retired(self, storage_group: int, number: int) -> None:
        """Wait until this replica has applied that a delete is retired; one that it has not heard of yet is not."""
        if self._is_retired(storage_group, number):
            return
        waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        waiting = self._retired.setdefault((storage_group, number), [])
        waiting.append(waiter)
        try:
            await waiter
        finally:
            waiting.remove(waiter)
            if not waiting and self._retired.get((storage_group, number)) is waiting:
                del self._retired[storage_group, number]

    def answer_retired(self) -> None:
        """Wake those whose delete is retired."""
        for key in [key for key in self._retired if self._is_retired(*key)]:
            for waiter in self._retired.pop(key):
                if not waiter.done():
                    waiter.set_result(None)

    def _is_retired(self, storage_group: int, number: int) -> bool:
        """Also where the storage group was dropped: nothing of it is left."""
        return self.data.is_dropped(storage_group) or self.data.is_retired(storage_group, number)


class Machines(dict[int, DataMachine]):
    """The state machines of a node's data groups, by number; 702 where it has, or has no longer, a replica."""

    def __missing__(self, number: int) -> DataMachine:
        raise CallerError(Status.NO_LEADER, f"this node has no replica of group {number}")
