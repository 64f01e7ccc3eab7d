"""Reads of a group's replica: the barrier in front of one, by consistency level, and reads of all that it holds."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import TypeVar

from iotdb_cluster.cluster.calls import Deadline
from iotdb_cluster.cluster.driver import Driver
from iotdb_cluster.cluster.group import Group
from iotdb_cluster.data import Pinned
from iotdb_cluster.errors import CallerError, Status
from iotdb_cluster.world import Workers

__all__ = ["applied_here", "barrier_at_leader", "read_pinned", "replica_here"]

T = TypeVar("T")


def replica_here(driver: Driver, number: int) -> Group:
    """This node's replica of a group; 702 where it has none."""
    group = driver.groups.get(number)
    if group is None:
        raise CallerError(Status.NO_LEADER, f"this node has no replica of group {number}")
    return group


async def applied_here(driver: Driver, group: Group, index: int, deadline: Deadline) -> None:
    """Wait until this node's replica has applied an index; 701 where the time is up first."""
    try:
        async with asyncio.timeout(max(0.0, deadline.left_ms) / 1000):
            await driver.wait_applied(group, index)
    except TimeoutError:
        raise CallerError(Status.TIME_OUT, f"group {group.id} has not applied index {index} here") from None


async def read_pinned(workers: Workers, pinned: Pinned, read: Callable[[], T]) -> T:
    """What `read`, on a worker, makes of it; it is let go when that has ended, also where nobody waits any more."""
    try:
        for _ in iter(pinned.step, False):
            await asyncio.sleep(0)
    except BaseException:
        pinned.close()
        raise

    def ended(reading: asyncio.Future[T]) -> None:
        pinned.close()
        if not reading.cancelled():
            reading.exception()  # told to who asked, unless nobody waits any more

    reading = asyncio.ensure_future(workers.run(read))
    reading.add_done_callback(ended)
    return await asyncio.shield(reading)


async def barrier_at_leader(
    driver: Driver, number: int, consistency: str, deadline: Deadline, lag_max: int | None = None
) -> Group:
    """Afterwards this replica may be read: at `strong` it leads, and holds all that was acknowledged before the call.

    At `weak` it is read as it is, at `mid` too where it lacks at most `lag_max` of the entries that it knows to be
    committed. Raises NotLeader, or 705 where nobody confirms in time, or too many are lacking.
    """
    group = replica_here(driver, number)
    if consistency == "mid" and lag_max is not None and group.raw.commit - group.applied > lag_max:
        lacking = group.raw.commit - group.applied
        raise CallerError(
            Status.CONSISTENCY_FAILURE,
            f"this replica of group {number} lacks {lacking} entries, max_read_log_lag allows {lag_max}: try again",
        )
    if consistency != "strong":
        return group
    try:
        async with asyncio.timeout(max(0.0, deadline.left_ms) / 1000):
            await driver.read_barrier(group, leader_only=True)
    except TimeoutError:
        raise CallerError(
            Status.CONSISTENCY_FAILURE, f"no majority of group {number} confirms its leader: try again"
        ) from None
    return group
