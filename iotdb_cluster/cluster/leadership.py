"""Who should lead a group: decided by its leader, once a second, and carried out by a transfer of leadership.

`_target` is the one place of that decision. A node whose disk is short, or that leaves the group or the cluster, hands
over at once, to the member with the most of the log that has room and stays, rather to one that has applied its log:
until then it would keep writes and strong reads waiting. Else the node that heads a group should lead it, so that every
node leads about its share; and without haste: it was heard of without a break for `STEADY_MS`, lacks next to nothing
and has applied what it has, the group had its leader for `STEADY_MS`, and the same was not tried within `AGAIN_MS`. One
such group a round: a node that comes back takes its groups over one by one.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from dataclasses import dataclass

from iotdb_cluster.cluster.driver import Driver
from iotdb_cluster.cluster.group import Group
from iotdb_cluster.raft import ProgressState
from iotdb_cluster.world import World

__all__ = ["Leadership"]

logger = logging.getLogger(__name__)

ROUND_MS = 1_000
STEADY_MS = 10_000
AGAIN_MS = 60_000
LAG_ENTRIES_MAX = 64  # of the member that is to lead: it must have all before it can


@dataclass(slots=True)
class _Lead:
    """A group that this node leads, since when as far as was seen, and when it was last offered to its head."""

    term: int
    since_ms: float
    offered_ms: float | None = None


class Leadership:
    """Hands over what this node leads and should not.

    `lacks_room(node)` says whose disk is short, `has_applied(node, group)` who is not behind in applying its log,
    `leaves(group, replica)` who is to go.
    """

    def __init__(
        self,
        world: World,
        driver: Driver,
        node: int,
        lacks_room: Callable[[int], bool],
        has_applied: Callable[[int, int], bool],
        leaves: Callable[[int, int], bool] = lambda *_: False,
    ) -> None:
        self._world = world
        self._driver = driver
        self._node = node
        self._lacks_room = lacks_room
        self._has_applied = has_applied
        self._leaves = leaves
        self._leads: dict[int, _Lead] = {}
        self._heard_since_ms: dict[int, float] = {}

    async def run(self) -> None:
        """Until cancelled."""
        while True:
            await asyncio.sleep(ROUND_MS / 1000)
            self._round(self._world.clock.monotonic_ms())

    def _round(self, now: float) -> None:
        self._listen(now)
        offered = False
        for group in list(self._driver.groups.values()):
            if not group.leads:
                self._leads.pop(group.id, None)
                continue
            lead = self._leads.get(group.id)
            if lead is None or lead.term != group.raw.term:
                lead = self._leads[group.id] = _Lead(group.raw.term, now, lead.offered_ms if lead else None)
            if not group.id or group.raw.transferee:
                continue
            target = self._target(group)
            if not target:
                target = 0 if offered else self._head(group, lead, now)
                if target:
                    offered, lead.offered_ms = True, now
            if target:
                logger.info("group %d: hands over to node %d", group.id, group.nodes[target])
                self._driver.transfer_leader(group, target)

    def _target(self, group: Group) -> int:
        """The replica that should lead instead of this one, which has no room or leaves; 0 where it should go on."""
        if not (self._lacks_room(self._node) or self._leaves(group.id, group.replica)):
            return 0
        able = [
            (self._has_applied(group.nodes.get(member, self._node), group.id), progress.match, member)
            for member, progress in sorted(group.raw.status().progress.items())
            if member in group.raw.configuration.incoming
            and progress.active
            and not self._leaves(group.id, member)
            and progress.match >= group.raw.commit
            and not self._lacks_room(group.nodes.get(member, self._node))
        ]
        return max(able)[2] if able else 0

    def _head(self, group: Group, lead: _Lead, now: float) -> int:
        """The replica of the node that heads the group, where that should lead and can now; else 0."""
        head = self.head_of(group)
        member = next((member for member, node in group.nodes.items() if node == head), 0)
        if head == self._node or not member or now - lead.since_ms < STEADY_MS:
            return 0
        if lead.offered_ms is not None and now - lead.offered_ms < AGAIN_MS:
            return 0
        heard_ms = self._heard_since_ms.get(head)
        if heard_ms is None or now - heard_ms < STEADY_MS or self._lacks_room(head):
            return 0
        if not self._has_applied(head, group.id):
            return 0
        progress = group.raw.status().progress.get(member)
        if progress is None or member not in group.raw.configuration.incoming or self._leaves(group.id, member):
            return 0
        near = group.raw.last_index - progress.match <= LAG_ENTRIES_MAX
        return member if near and progress.state is ProgressState.REPLICATE else 0

    @staticmethod
    def head_of(group: Group) -> int:
        """A data group has the number of the node that heads it."""
        return group.id

    def _listen(self, now: float) -> None:
        for node in {node for group in self._driver.groups.values() for node in group.nodes.values()}:
            if self._driver.heard_lately(node):
                self._heard_since_ms.setdefault(node, now)
            else:
                self._heard_since_ms.pop(node, None)
