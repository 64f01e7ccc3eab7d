"""What a node does unasked: found the cluster, register, tell groups their slots, drive deletes and drops.

Everything here is a comparison of what is with what should be, followed by proposals that are harmless when they come
twice; so any crash is mended by whoever leads next. A step runs once at a time, beside the others; it starts when
something changed, and every `ROUND_MS` while something is open.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine
from functools import partial
from typing import Any, TypeAlias

from iotdb_cluster.cluster.calls import Deadline
from iotdb_cluster.cluster.data_group import DataMachine
from iotdb_cluster.cluster.driver import Driver
from iotdb_cluster.cluster.group import Group
from iotdb_cluster.cluster.membership import Membership
from iotdb_cluster.cluster.meta_access import MetaAccess
from iotdb_cluster.cluster.proposals import Proposals
from iotdb_cluster.cluster.slot_decisions import due_decisions
from iotdb_cluster.data import (
    DeleteAction,
    DeleteProgress,
    DeleteUnit,
    DropStorageGroup,
    Fence,
    Header,
    due_actions,
    encode,
)
from iotdb_cluster.errors import CallerError, Moved
from iotdb_cluster.meta import StorageGroup, commands
from iotdb_cluster.requests import NO_REQUEST
from iotdb_cluster.world import World

__all__ = ["Duties"]

logger = logging.getLogger(__name__)

_Key: TypeAlias = tuple[str, int]

PAUSE_MS = 2  # after a change: what changes at every turn of the loop is looked at a few hundred times a second
ROUND_MS = 100  # between two rounds while something is open
IDLE_ROUND_MS = 1_000
STEP_TIMEOUT_MS = 5_000
ACTIONS_MAX = 64  # deletes that are driven at once by a group's leader


class Duties:
    """The unasked work of one node."""

    def __init__(
        self,
        world: World,
        driver: Driver,
        meta: MetaAccess,
        proposals: Proposals,
        machines: dict[int, DataMachine],
        membership: Membership,
    ) -> None:
        self._world = world
        self._driver = driver
        self._meta = meta
        self._proposals = proposals
        self._machines = machines
        self._members = membership
        self._changed = asyncio.Event()
        self._progress: dict[int, tuple[int, DeleteProgress]] = {}
        self._running: dict[_Key, asyncio.Task[bool]] = {}
        self._again: set[_Key] = set()  # steps under way that are due once more
        self._left: set[_Key] = set()  # steps that ended with something left to do
        self._failure: BaseException | None = None

    def wake(self) -> None:
        """Something changed that a round may have to act upon."""
        self._changed.set()

    async def run(self) -> None:
        """Until cancelled, or until a step fails with what is no caller's error."""
        try:
            while self._failure is None:
                self._changed.clear()
                busy = self._launch()
                try:
                    async with asyncio.timeout((ROUND_MS if busy else IDLE_ROUND_MS) / 1000):
                        await self._changed.wait()
                except TimeoutError:
                    continue
                await asyncio.sleep(PAUSE_MS / 1000)
            raise self._failure
        finally:
            tasks = list(self._running.values())
            for task in tasks:
                task.cancel()
            if tasks:
                await asyncio.wait(tasks)

    def _launch(self) -> bool:
        """Begin the steps that are due and not under way; whether something is left to do."""
        due = self._due()
        self._left.intersection_update(key for key, _ in due)
        for key, step in due:
            if key in self._running:
                self._again.add(key)
                continue
            task = asyncio.get_running_loop().create_task(step())
            self._running[key] = task
            task.add_done_callback(partial(self._ended, key))
        return bool(self._running or self._left)

    def _due(self) -> list[tuple[_Key, Callable[[], Coroutine[Any, Any, bool]]]]:
        """Each step on its own: one that waits for a group without a majority must not hold up the others."""
        steps: list[tuple[_Key, Callable[[], Coroutine[Any, Any, bool]]]] = [(("member", 0), self._membership)]
        if self._meta.state.bootstrapped:
            if self._meta.leads:
                going = [one for one in self._meta.state.storage_groups(dropping=True) if one.dropping]
                steps += [(("drop", one.id), partial(self._drop, one)) for one in going]
            for one in [group for group in self._driver.groups.values() if group.id and group.leads_whole]:
                if self._machines[one.id].told != self._decided(one):
                    steps.append((("slots", one.id), partial(self._tell_slots, one)))
                steps.append((("lead", one.id), partial(self._lead, one)))
        return steps

    def _ended(self, key: _Key, task: asyncio.Task[bool]) -> None:
        del self._running[key]
        self._left.discard(key)
        if task.cancelled():
            return
        error = task.exception()
        if isinstance(error, CallerError):
            logger.debug("a step is tried again: %s", error)
            self._left.add(key)
        elif error is not None:
            self._failure = error
            self._changed.set()
        elif task.result():
            self._left.add(key)
        if key in self._again:
            self._again.discard(key)
            if key not in self._left:  # something changed after it had looked
                self._changed.set()

    def _deadline(self) -> Deadline:
        return Deadline(self._world, STEP_TIMEOUT_MS)

    async def _membership(self) -> bool:
        if not self._meta.state.bootstrapped:
            if self._meta.leads:
                await self._members.found()
            return True
        await self._members.register()
        return False

    # --- storage groups that go ---------------------------------------------------------------------------------------

    async def _drop(self, storage_group: StorageGroup) -> bool:
        """At its schema slot first, then in every other group; then meta forgets it."""
        owner, _ = self._meta.state.owner_of_slot(self._meta.state.slot_map.schema_slot_of(storage_group.path))
        await self._drop_in(owner.id, storage_group)
        told = {owner.id}
        while others := [group.id for group in self._meta.state.groups if group.id not in told]:  # one may be made
            told.update(others)
            await asyncio.gather(*(self._drop_in(number, storage_group) for number in others))
        await self._meta.propose(lambda request: commands.finish_drop(request, storage_group.id), self._deadline())
        return False

    async def _drop_in(self, group: int, storage_group: StorageGroup) -> None:
        header = Header(NO_REQUEST, storage_group.id)
        payload = encode(header, DropStorageGroup(storage_group.changed))
        await self._proposals.patiently(lambda: group, payload, self._deadline())

    # --- groups that this node leads ----------------------------------------------------------------------------------

    async def _lead(self, group: Group) -> bool:
        return await self._drive_deletes(group, self._machines[group.id])

    def _decided(self, group: Group) -> tuple[int, int, tuple[int, ...]]:
        """What `DataMachine.told` is when the group's log holds all that is decided about its slots."""
        imports = tuple(self._machines[group.id].data.imports())
        return group.raw.term, self._meta.state.members_changed, imports

    async def _tell_slots(self, group: Group) -> bool:
        """Log what meta has decided about slots and this group has not heard of."""
        machine, state, index = self._machines[group.id], self._meta.state, self._meta.index
        told = self._decided(group)
        due = due_decisions(state, index, machine.data)
        for body in due:
            await self._proposals.patiently(lambda: group.id, encode(Header(NO_REQUEST), body), self._deadline())
        if any(isinstance(body, Fence) for body in due):  # what is fenced goes next
            return True
        machine.told = told
        return False

    async def _drive_deletes(self, group: Group, machine: DataMachine) -> bool:
        term, progress = self._progress.get(group.id, (0, DeleteProgress()))
        if term != group.raw.term:
            progress = DeleteProgress()
            self._progress[group.id] = (group.raw.term, progress)
        while True:
            actions = []
            for action in due_actions(machine.data, progress):
                actions.append(action)
                if len(actions) == ACTIONS_MAX:
                    break
            if not actions or not group.leads:
                machine.answer_retired()
                return False
            for action in actions:
                progress.started(action)
            done = await asyncio.gather(*(self._act(group, action, progress) for action in actions))
            machine.answer_retired()
            if not all(done):
                return True

    async def _act(self, group: Group, action: DeleteAction, progress: DeleteProgress) -> bool:
        number, header = group.id, action.header
        if isinstance(action.body, DeleteUnit):
            owner, epoch = self._meta.state.owner_of_slot(header.slot)
            number, header = owner.id, header._replace(slot_epoch=epoch)
        try:
            await self._proposals.patiently(lambda: number, encode(header, action.body), self._deadline())
        except CallerError as error:
            progress.postponed(action)
            logger.log(
                logging.DEBUG if isinstance(error, Moved) else logging.INFO,
                "delete %d of storage group %d waits: %s",
                action.body.number,
                header.storage_group,
                error.message,
            )
            return False
        progress.finished(action)
        return True
