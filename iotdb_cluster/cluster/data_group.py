"""A data group's state machine as the driver feeds it, with its checkpoints and those who wait for deletes."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from iotdb_cluster.cluster.group import Outcome
from iotdb_cluster.data import DataGroup
from iotdb_cluster.errors import SystemFault
from iotdb_cluster.raft import ConfState, Entries, EntryKind, Snapshot, SnapshotNotReady

__all__ = ["DataMachine"]


class DataMachine:
    """Wraps a `DataGroup`; `changed()` is called after each run of entries."""

    def __init__(self, data: DataGroup, changed: Callable[[], None]) -> None:
        self.data = data
        self.told = (0, 0)  # (term, meta index) of the slots that were logged last
        self._changed = changed
        self._retired: dict[tuple[int, int], list[asyncio.Future[None]]] = {}

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

    def configured(self, configuration: ConfState) -> None:
        """Members of a data group are meta's affair; the group's own state does not hold them."""

    def snapshot(self) -> Snapshot:
        """A member that needs what the log has forgotten: streaming a snapshot is not built yet."""
        raise SnapshotNotReady

    def stage(self, snapshot: Snapshot) -> None:
        raise SystemFault(f"group {self.data.number}: a snapshot of index {snapshot.index} came, which nobody sends")

    def install(self, snapshot: Snapshot) -> None:
        self.stage(snapshot)

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
