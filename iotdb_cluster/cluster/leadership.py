"""Who should lead a group: decided by its leader, once a second, and carried out by a transfer of leadership."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable

from iotdb_cluster.cluster.driver import Driver
from iotdb_cluster.cluster.group import Group

__all__ = ["Leadership"]

logger = logging.getLogger(__name__)

ROUND_MS = 1_000


class Leadership:
    """Hands over what this node leads and should not. `lacks_room(node)` says whose disk is short."""

    def __init__(self, driver: Driver, node: int, lacks_room: Callable[[int], bool]) -> None:
        self._driver = driver
        self._node = node
        self._lacks_room = lacks_room

    async def run(self) -> None:
        """Until cancelled."""
        while True:
            await asyncio.sleep(ROUND_MS / 1000)
            for group in list(self._driver.groups.values()):
                if group.id and group.leads and not group.raw.transferee:
                    target = self._target(group)
                    if target:
                        logger.info("group %d: hands over to node %d", group.id, group.nodes[target])
                        self._driver.transfer_leader(group, target)

    def _target(self, group: Group) -> int:
        """The replica that should lead instead of this one; 0 where it should go on."""
        if not self._lacks_room(self._node):
            return 0
        able = [
            (progress.match, member)
            for member, progress in sorted(group.raw.status().progress.items())
            if member in group.raw.configuration.voters
            and progress.active
            and progress.match >= group.raw.commit
            and not self._lacks_room(group.nodes.get(member, self._node))
        ]
        return max(able)[1] if able else 0
