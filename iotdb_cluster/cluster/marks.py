"""What nodes tell each other once a second: low-water marks of the groups they lead, free disk space, their clock.

A message is a packed head: `wall_ms`, `free_bytes`, `applied`, the groups of which the sender has next to nothing to
apply any more, and `water`, for each group that the sender leads and the receiver
is a member of (low, near) as `Housekeeping` keeps them. It goes over the meta connection, behind no bulk traffic.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import TypeAlias

from iotdb_cluster.cluster.calls import Calls, Deadline
from iotdb_cluster.cluster.outbox import Channel
from iotdb_cluster.errors import CallerError
from iotdb_cluster.packing import pack, unpack
from iotdb_cluster.world import World

__all__ = ["MARKS_CALL", "Marks", "NodeFacts", "Water"]

logger = logging.getLogger(__name__)

MARKS_CALL = "marks"
MARKS_MS = 1_000
STALE_MS = 10_000  # what a node told of its clock counts for so long
APPLIED_STALE_MS = 3_000  # and of what it has applied: it may have started again since

Water: TypeAlias = Mapping[str, tuple[int, int]]  # by group number: (low, near)


@dataclass(frozen=True, slots=True)
class NodeFacts:
    """What a node told last: its clock, disk space, groups that it is not behind in; heard when (monotonic, here)."""

    wall_ms: int
    free_bytes: int
    applied: frozenset[int]
    heard_ms: float


class Marks:
    """Tells and hears the marks of one node. `water_for(node)` and `take_water(marks)` are the low-water side."""

    def __init__(
        self,
        world: World,
        calls: Calls,
        nodes: Callable[[], Iterable[int]],
        free_bytes: Callable[[], int],
        applied: Callable[[], list[int]],
        water_for: Callable[[int], Water],
        take_water: Callable[[Water], None],
        fault: Callable[[BaseException], None],
    ) -> None:
        self._world = world
        self._calls = calls
        self._nodes = nodes
        self._free_bytes = free_bytes
        self._applied = applied
        self._water_for = water_for
        self._take_water = take_water
        self._fault = fault
        self._facts: dict[int, NodeFacts] = {}
        self._telling: dict[int, asyncio.Task[None]] = {}

    def register(self, calls: Calls) -> None:
        calls.handlers[MARKS_CALL] = self._heard

    # --- what is known ------------------------------------------------------------------------------------------------

    def facts(self, node: int) -> NodeFacts | None:
        """What the node told last, however long ago; None where it told nothing since this process began."""
        if node == self._calls.node:
            clock = self._world.clock
            return NodeFacts(clock.wall_ms(), self._free_bytes(), frozenset(self._applied()), clock.monotonic_ms())
        return self._facts.get(node)

    def has_applied(self, node: int, group: int) -> bool:
        """Whether the node said a moment ago that it has next to nothing of the group to apply."""
        told = self.facts(node)
        if told is None or self._world.clock.monotonic_ms() - told.heard_ms > APPLIED_STALE_MS:
            return False
        return group in told.applied

    def median_clock_ms(self, members: Iterable[int]) -> int | None:
        """A moment that the median of the members' wall clocks has reached, in Unix ms.

        The lower median where their number is even. None where no majority of them was heard of within `STALE_MS`.
        Members that were not are taken to be behind all others, so that the answer never runs ahead of the median.
        """
        now, everyone = self._world.clock.monotonic_ms(), set(members)
        clocks: list[int] = []
        for node in everyone:
            told = self.facts(node)
            if told is not None and now - told.heard_ms <= STALE_MS:
                clocks.append(told.wall_ms + int(now - told.heard_ms))
        if len(clocks) <= len(everyone) // 2:
            return None
        return sorted(clocks)[(len(everyone) - 1) // 2 - (len(everyone) - len(clocks))]

    # --- telling and hearing ------------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Until cancelled."""
        try:
            while True:
                self._tell_all()
                await asyncio.sleep(MARKS_MS / 1000)
        finally:
            for task in self._telling.values():
                task.cancel()
            if self._telling:
                await asyncio.wait(list(self._telling.values()))

    def _tell_all(self) -> None:
        """One message to each node, but to one that has not answered the last one yet."""
        for node in list(self._nodes()):
            if node == self._calls.node or node in self._telling:
                continue
            task = self._telling[node] = asyncio.get_running_loop().create_task(self._tell(node))
            task.add_done_callback(partial(self._told, node))

    def _told(self, node: int, task: asyncio.Task[None]) -> None:
        del self._telling[node]
        if not task.cancelled() and (error := task.exception()) is not None:
            self._fault(error)

    async def _tell(self, node: int) -> None:
        head = {
            "wall_ms": self._world.clock.wall_ms(),
            "free_bytes": self._free_bytes(),
            "applied": self._applied(),
            "water": dict(self._water_for(node)),
            "node": self._calls.node,
        }
        try:
            await self._calls.call(node, MARKS_CALL, pack(head), Deadline(self._world, MARKS_MS), Channel.META)
        except CallerError as error:
            logger.debug("node %d did not hear the marks: %s", node, error)

    async def _heard(self, body: memoryview, deadline: Deadline) -> bytes:
        del deadline
        head, _ = unpack(body)
        now = self._world.clock.monotonic_ms()
        applied = frozenset(map(int, head.get("applied", ())))  # programs before this field tell nothing of it
        self._facts[int(head["node"])] = NodeFacts(int(head["wall_ms"]), int(head["free_bytes"]), applied, now)
        self._take_water(head["water"])
        return pack(None)
