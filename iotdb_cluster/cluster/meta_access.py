"""The meta group as the rest of a node uses it: its state here, barriers, proposals, and what happens at a change."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import Any

from iotdb_cluster.cluster.calls import Calls, Deadline, Leaders
from iotdb_cluster.cluster.driver import Driver
from iotdb_cluster.cluster.group import Group
from iotdb_cluster.cluster.meta_group import MetaMachine
from iotdb_cluster.cluster.proposals import GROUP
from iotdb_cluster.cluster.request_ids import RequestIds
from iotdb_cluster.errors import CallerError, OutcomeUnknown, Status
from iotdb_cluster.meta import META_GROUP, MetaState
from iotdb_cluster.packing import pack, unpack
from iotdb_cluster.requests import RequestId

__all__ = ["SETTLE_MS", "MetaAccess"]

logger = logging.getLogger(__name__)

MOVED_WAIT_MS = 1_000  # for a decision about slots that are on their way, before their group is asked again
SETTLE_MS = 1_000  # a node that does not follow within is cut off, or down: nobody waits longer for it


class MetaAccess:
    """One node's door to the meta group."""

    def __init__(
        self,
        driver: Driver,
        group: Group,
        machine: MetaMachine,
        calls: Calls,
        leaders: Leaders,
        requests: RequestIds,
    ) -> None:
        self._driver = driver
        self._last_group = group
        self._machine = machine
        self._calls = calls
        self._leaders = leaders
        self._requests = requests
        self._changed = asyncio.Event()

    @property
    def _group(self) -> Group:
        """It stands still for a moment, and is another one then, when it is forced into its next generation."""
        self._last_group = self._driver.groups.get(META_GROUP, self._last_group)
        return self._last_group

    @property
    def state(self) -> MetaState:
        """This node's replica of it; at least as new as the last barrier."""
        return self._machine.state

    @property
    def index(self) -> int:
        """Of the last decision that `state` holds."""
        return self._machine.index

    @property
    def leads(self) -> bool:
        """Whether this node leads the meta group, and `state` holds all that was decided before it did."""
        group = self._group
        return group.leads_whole and not group.closed

    @property
    def hears_leader(self) -> bool:
        """Whether the meta group has a leader of which something came lately.

        Who is no voter any more looks for no other one, and knows the last for ever.
        """
        leader = self._group.leader_node
        return self._group.leads or (leader != 0 and self._driver.heard_lately(leader))

    @property
    def begins_anew(self) -> bool:
        """Whether the meta group was forced into a generation of which meta itself has not been told yet."""
        record = self.state.meta_group
        return record is not None and record.generation < self._group.generation

    async def barrier(self, deadline: Deadline) -> None:
        """Afterwards `state` holds every decision that was acknowledged before the call. 705 where that fails."""
        left_ms = deadline.left_ms
        try:
            async with asyncio.timeout(max(0.0, deadline.left_ms) / 1000):
                await self._driver.read_barrier(self._group)
        except TimeoutError:
            raise CallerError(
                Status.CONSISTENCY_FAILURE, "the meta group has no leader that answers: try again"
            ) from None
        finally:
            deadline.waits.add("the meta group's barrier", left_ms - deadline.left_ms)

    async def moved(self, seen: int, deadline: Deadline) -> None:
        """A group does not own a slot any more as the table of `seen` (its `members_changed`) has it: wait for a newer.

        Meta may not have decided yet: then for a while, and the caller asks the group again in any case.
        """
        limit = deadline.within(MOVED_WAIT_MS)
        began_ms = limit.left_ms
        try:
            await self.barrier(limit)
            async with asyncio.timeout(max(0.0, limit.left_ms) / 1000):
                while self.state.members_changed <= seen:
                    await self.change()
        except (CallerError, TimeoutError) as error:
            logger.debug("slots move, and meta does not say where to: %s", error)
        finally:
            deadline.waits.add("slots move", began_ms - limit.left_ms)

    async def change(self) -> None:
        """Wait until `changed` is called."""
        await self._changed.wait()

    def changed(self) -> None:
        """This node's replica of meta has applied something."""
        changed, self._changed = self._changed, asyncio.Event()
        changed.set()

    def register(self, calls: Calls) -> None:
        calls.handlers["meta applied"] = self._applied_call

    async def settle(self, deadline: Deadline) -> None:
        """Wait until every node that can be reached decides by what this one has applied."""
        body = pack({"index": self._machine.index})
        others = [node.id for node in self.state.nodes if node.registered and node.id != self._calls.node]

        async def follow(node: int) -> None:
            try:
                await self._calls.call(node, "meta applied", body, deadline.within(SETTLE_MS))
            except CallerError as error:
                logger.info("node %d has not followed a change yet: %s", node, error.message)

        await asyncio.gather(*map(follow, others))

    async def _applied_call(self, body: memoryview, deadline: Deadline) -> bytes:
        head, _ = unpack(body)
        try:
            async with asyncio.timeout(max(0.0, deadline.left_ms) / 1000):
                await self._driver.wait_applied(self._group, int(head["index"]))
        except TimeoutError:
            raise CallerError(Status.TIME_OUT, f"meta entry {head['index']} is not applied here yet") from None
        return pack(None)

    async def propose(self, command: Callable[[RequestId], bytes], deadline: Deadline) -> Any:
        """Have a command decided; its value, when this node has applied it, if it can. Raises what the decision was."""
        request = self._requests.take()
        body = GROUP.pack(0) + command(request)

        async def attempt(node: int, within: Deadline) -> memoryview:
            return await self._calls.call(node, "propose", body, within)

        try:
            answer = await self._leaders.run(0, attempt, deadline, repeatable=True)
        except CallerError as error:
            if type(error) is CallerError and error.code == Status.TIME_OUT:
                raise OutcomeUnknown(error.message) from None
            raise
        finally:
            self._requests.finish(request)
        value, _ = unpack(answer)
        try:
            await self.barrier(deadline)
        except CallerError as error:  # it is decided all the same, and strong reads ask for the barrier themselves
            logger.debug("a decision is not seen here yet: %s", error.message)
        return value
