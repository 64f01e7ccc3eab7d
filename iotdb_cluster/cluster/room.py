"""Whether a node may take more points: its memory and its disk, asked before a write is proposed, never after."""

from __future__ import annotations

import asyncio
import errno
import logging
from collections.abc import Callable, Sequence

from iotdb_cluster.cluster.calls import Deadline
from iotdb_cluster.cluster.group import Group
from iotdb_cluster.cluster.marks import NodeFacts
from iotdb_cluster.cluster.settings import Settings
from iotdb_cluster.data import Kind, decode_header
from iotdb_cluster.errors import CallerError, Status
from iotdb_cluster.limits import MIB
from iotdb_cluster.world import World

__all__ = ["DiskSpace", "RoomGuard", "disk_is_full"]

ASK_MS = 50  # a writer that waits looks so often
WAIT_MS_MAX = 10_000  # and so long (max_waiting_time_when_insert_blocked)
ASK_DISK_MS = 500  # free space is asked for so often


def disk_is_full(error: BaseException | None) -> bool:
    """Whether a failure is that there was no space: what was to be written may be tried again, nothing is torn."""
    while error is not None and not isinstance(error, OSError):
        error = error.__cause__
    return error is not None and error.errno in (errno.ENOSPC, errno.EDQUOT)


logger = logging.getLogger(__name__)


class NoMemory(CallerError):
    """The memtables are full: flushing makes room in a moment."""


class NoWindow(CallerError):
    """Many entries of the group are on their way."""


class NoDisk(CallerError):
    """This node's disk is short, and others that have room may lead the group in a moment."""


class DiskSpace:
    """The space that is left on the disks of a node, asked for twice a second at most."""

    def __init__(self, world: World, settings: Settings, log_is_short: Callable[[], bool]) -> None:
        self._world = world
        self._log_is_short = log_is_short
        self._paths = tuple(dict.fromkeys((settings.data_paths[0], settings.wal_path)))
        self._asked_ms = -1e18
        self._free = 1 << 62

    @property
    def free_bytes(self) -> int:
        """Of the fullest of the directories for points and for the log; none while the log lacks its spare segments.

        Where the system does not say, what it said last: whoever writes there meets the failure.
        """
        now = self._world.clock.monotonic_ms()
        if now - self._asked_ms > ASK_DISK_MS:
            self._asked_ms = now
            try:
                self._free = min(self._world.files.free_bytes(path) for path in self._paths)
            except OSError as error:
                logger.warning("the free space is not known: %s", error)
        return 0 if self._log_is_short() else self._free


class RoomGuard:
    """Refuses points with 413, and the reason, where memory or disk run short; all else goes on in the reserve.

    `told(node)` is what a node told of itself last (`Marks.facts`).
    """

    def __init__(
        self, settings: Settings, memory_bytes: Callable[[], int], me: int, told: Callable[[int], NodeFacts | None]
    ) -> None:
        self._settings = settings
        self._memory_bytes = memory_bytes
        self._me = me
        self._told = told

    async def admit(self, payload: bytes, group: Group, deadline: Deadline) -> None:
        """As `check`, but wait while memory is full or the lead is about to be handed over, `WAIT_MS_MAX` at most."""
        until = deadline.within(WAIT_MS_MAX)
        while True:
            try:
                self.check(payload, group.voter_nodes())
                self._check_window(group)
                return
            except (NoMemory, NoDisk, NoWindow) as refusal:
                if until.left_ms <= ASK_MS or not group.leads:
                    # As it comes over the wire: a refusal like others, and no answer to an earlier attempt.
                    raise CallerError(refusal.code, refusal.message) from None
            await asyncio.sleep(ASK_MS / 1000)

    def check(self, payload: bytes, voters: Sequence[int]) -> None:
        """Raise 413 where the entry brings points and there is no room for them on the nodes of its group's voters."""
        kind, _ = decode_header(payload)
        if kind is not Kind.INSERT:
            return
        used = self._memory_bytes()
        if used + len(payload) > self._settings.memtable_bytes_max:
            raise NoMemory(
                Status.WRITE_PROCESS_REJECT,
                f"memtables hold {used // MIB} of {self._settings.memtable_bytes_max // MIB} MiB: writes are faster "
                "than flushing, try again in a moment",
            )
        short = [node for node in voters if self.lacks_room(node)]
        if not short:
            return
        reason = f"{self._free_texts(short)}, {self._settings.disk_free_min_bytes // MIB} MiB are kept in reserve: "
        if 2 * (len(voters) - len(short)) <= len(voters):
            raise CallerError(Status.WRITE_PROCESS_REJECT, reason + "no points are taken until there is room")
        if self._me in short:
            raise NoDisk(Status.WRITE_PROCESS_REJECT, reason + "another node is about to lead, try again")

    def _check_window(self, group: Group) -> None:
        waiting = group.raw.last_index - group.raw.commit
        if waiting >= self._settings.uncommitted_entries_max:
            raise NoWindow(
                Status.WRITE_PROCESS_REJECT,
                f"group {group.id} has {waiting} entries that are not committed yet: try again in a moment",
            )

    def lacks_room(self, node: int) -> bool:
        """Whether a node's disk has less than its reserve, as far as it has told."""
        told = self._told(node)
        return told is not None and told.free_bytes < self._settings.disk_free_min_bytes

    def stands_aside(self, group: Group) -> bool:
        """Whether this node leaves a group's new entries to others: a majority of the voters has room without it.

        Half of the reserve is for what its disk must still take where that is not so.
        """
        told = self._told(self._me)
        if told is None or 2 * told.free_bytes >= self._settings.disk_free_min_bytes:
            return False
        voters = group.voter_nodes()
        return 2 * sum(node != self._me and not self.lacks_room(node) for node in voters) > len(voters)

    def _free_texts(self, nodes: Sequence[int]) -> str:
        found = [(node, self._told(node)) for node in sorted(nodes)]
        return ", ".join(
            f"the disk of node {node} has {told.free_bytes // MIB} MiB free" for node, told in found if told
        )
