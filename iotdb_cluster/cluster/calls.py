"""Calls between nodes, and finding the leader of a group: one deadline a statement, hints followed, nobody waited for.

A call to this node goes straight to the handler; one to another node over the peer connections. A handler takes and
gives bytes (`packing`, or an entry's own) so that both ways are the same.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Protocol, TypeAlias, TypeVar

from iotdb_cluster.cluster.outbox import Channel
from iotdb_cluster.cluster.waits import SLOW_MS, Waits
from iotdb_cluster.data import NotReady
from iotdb_cluster.errors import CallerError, NotLeader, OutcomeUnknown, Status
from iotdb_cluster.limits import FORWARD_HOPS_MAX
from iotdb_cluster.world import World

__all__ = ["Calls", "Deadline", "Handler", "Leaders", "Peers", "Responses"]

logger = logging.getLogger(__name__)

T = TypeVar("T")
Handler: TypeAlias = Callable[[memoryview, "Deadline"], Awaitable[bytes]]

RETRY_MS_FIRST = 5
RETRY_MS_MAX = 200
_TRIED_AGAIN = (
    Status.NO_CONNECTION,
    Status.NO_LEADER,
    Status.PARTITION_NOT_READY,
    Status.CONSISTENCY_FAILURE,  # of a leader that is cut off: there may be another one by now
)
RESPONSE_WEIGHT = 0.2  # of the newest measurement in the mean
RESPONSE_HALF_MS = 10_000  # after which a measurement counts half
ATTEMPT_MS_MAX = 5_000  # of one try at a leader: a dead connection must not eat the whole deadline


class Deadline:
    """A moment after which nobody waits any more; `waits` tells what was waited for until then."""

    __slots__ = ("_began_ms", "_world", "at_ms", "waits")

    def __init__(self, world: World, timeout_ms: float, waits: Waits | None = None) -> None:
        self._world = world
        self._began_ms = world.clock.monotonic_ms()
        self.at_ms = self._began_ms + timeout_ms
        self.waits = Waits() if waits is None else waits

    @property
    def left_ms(self) -> float:
        return self.at_ms - self._world.clock.monotonic_ms()

    @property
    def passed(self) -> bool:
        return self.left_ms <= 0

    def check(self, what: str) -> None:
        """Raise 701 where the time is up."""
        if self.passed:
            raise CallerError(Status.TIME_OUT, f"the time was up before {what}")

    def within(self, limit_ms: float) -> Deadline:
        """The earlier of this moment and `limit_ms` from now."""
        return Deadline(self._world, min(self.left_ms, limit_ms), self.waits)

    def tell_if_slow(self, what: str) -> None:
        """Log what was waited for, where that took long."""
        took_ms = self._world.clock.monotonic_ms() - self._began_ms
        if took_ms >= SLOW_MS:
            logger.info("%s took %.0f ms: %s", what, took_ms, self.waits)


class Peers(Protocol):
    """The connections to the other nodes."""

    async def call(self, node: int, channel: Channel, method: str, body: bytes, timeout_ms: float) -> memoryview:
        """Raises CallerError: what the other node answered, 706 where it was not reached, or OutcomeUnknown."""
        ...


class Calls:
    """Calls by node identifier and method name."""

    def __init__(self, node: int, peers: Peers) -> None:
        self.node = node
        self._peers = peers
        self.handlers: dict[str, Handler] = {}

    async def call(
        self, node: int, method: str, body: bytes, deadline: Deadline, channel: Channel = Channel.DATA
    ) -> memoryview:
        """The answer of a node's handler; raises CallerError."""
        if node == self.node:
            return memoryview(await self.handlers[method](memoryview(body), deadline))
        deadline.check(f"node {node} was asked to {method}")
        return await self._peers.call(node, channel, method, body, deadline.left_ms)

    async def call_each(
        self, nodes: Sequence[int], method: str, body: bytes, deadline: Deadline
    ) -> list[CallerError | None]:
        """Call several nodes at once; why each did not do it, None where it did."""

        async def ask(node: int) -> CallerError | None:
            try:
                await self.call(node, method, body, deadline)
            except CallerError as error:
                return error
            return None

        return list(await asyncio.gather(*(ask(node) for node in nodes)))


class Responses:
    """How soon nodes answer reads: a running mean, which is forgotten with time so that a slow node is tried again."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._known: dict[int, tuple[float, float]] = {}  # node -> (ms, when it was measured)

    def expected_ms(self, node: int) -> float:
        """0 of a node that was never asked."""
        ms, at = self._known.get(node, (0.0, 0.0))
        return float(ms * 0.5 ** ((self._world.clock.monotonic_ms() - at) / RESPONSE_HALF_MS))

    def took(self, node: int, ms: float) -> None:
        before = self.expected_ms(node)
        mean = ms if node not in self._known else before + RESPONSE_WEIGHT * (ms - before)
        self._known[node] = (mean, self._world.clock.monotonic_ms())

    def ordered(self, nodes: Sequence[int]) -> list[int]:
        """The soonest first, of equal ones the lower identifier."""
        return sorted(nodes, key=lambda node: (self.expected_ms(node), node))


class Leaders:
    """Runs something at the leader of a group, wherever that is at the moment, or at whoever answers soonest."""

    def __init__(self, world: World, known: Callable[[int], int], members: Callable[[int], list[int]]) -> None:
        """`known(group)`: the node that leads by what this node's own replica knows, or 0; `members(group)`: nodes."""
        self._world = world
        self._known = known
        self._members = members
        self._hints: dict[int, int] = {}
        self._running: dict[int, dict[asyncio.Timeout, int]] = {}  # by group: attempts under way, and at which node
        self._pausing: dict[int, dict[asyncio.Future[None], None]] = {}  # by group: who waits for a leader, in order
        self.responses = Responses(world)

    def changed(self, group: int) -> None:
        """This node's replica knows another leader: who waits for one, or for a node that led before, asks it at once.

        A node that stands still, or is cut off, refuses nothing; its silence would cost `ATTEMPT_MS_MAX`.
        """
        leader = self._known(group)
        if leader:
            for pause in self._pausing.pop(group, ()):
                if not pause.done():
                    pause.set_result(None)
            now = asyncio.get_running_loop().time()
            for limit, node in self._running.get(group, {}).items():
                if node != leader and not limit.expired():
                    limit.reschedule(now)

    async def _attempt(
        self, group: int, node: int, attempt: Callable[[int, Deadline], Awaitable[T]], deadline: Deadline
    ) -> T:
        """One repeatable attempt; OutcomeUnknown where another node leads meanwhile."""
        running = self._running.setdefault(group, {})
        limit = asyncio.timeout(None)
        running[limit] = node
        try:
            async with limit:
                return await attempt(node, deadline)
        except TimeoutError:
            if not limit.expired():
                raise
            raise OutcomeUnknown(f"node {node} has not answered, and does not lead group {group} any more") from None
        finally:
            del running[limit]

    def leader(self, group: int) -> int:
        """The node that leads the group by what this node's own replica knows; 0: it has none, or knows none."""
        return self._known(group)

    def guess(self, group: int) -> int:
        """The node that most probably leads the group; 0 where there is no such group."""
        known = self._known(group)
        if known:
            return known
        members, hint = self._members(group), self._hints.get(group, 0)
        if hint in members:  # one that has left the group cannot lead it
            return hint
        return members[0] if members else 0

    def pass_over(self, group: int) -> None:
        """Whom `guess` names did not do it and knew no better: guess another one."""
        self._hints[group] = self._next(group, self.guess(group))

    async def run(
        self, group: int, attempt: Callable[[int, Deadline], Awaitable[T]], deadline: Deadline, *, repeatable: bool
    ) -> T:
        """`attempt(node, deadline)` at the leader; tried again elsewhere while the deadline lasts.

        Tried again: NotLeader, a node that was not reached, a group without a leader, or one that is not ready for the
        slot yet; and, where `repeatable` (the same request id goes again, or it only reads), an outcome that is
        unknown. Everything else is raised at once; but after an attempt whose outcome is unknown no later refusal says
        that it had no effect: that stays unknown.
        """
        unknown: OutcomeUnknown | None = None
        wait_ms = float(RETRY_MS_FIRST)
        hops = 0
        node = self.guess(group)
        while True:
            failure: CallerError
            hint = 0
            began_ms = self._world.clock.monotonic_ms()
            if not node:
                failure = CallerError(Status.PARTITION_NOT_READY, "the cluster is still being formed: try again")
            else:
                try:
                    if repeatable:
                        answer = await self._attempt(group, node, attempt, deadline.within(ATTEMPT_MS_MAX))
                    else:
                        answer = await attempt(node, deadline)
                    self._hints[group] = node
                    self._waited(deadline, f"group {group}, the answer of node {node}", began_ms)
                    return answer
                except NotLeader as error:
                    failure, hint = error, error.leader
                except OutcomeUnknown as error:
                    if not repeatable:
                        raise
                    failure = unknown = error
                except NotReady as error:
                    if error.unit_closed:
                        raise
                    failure = error
                except CallerError as error:
                    if type(error) is not CallerError:  # Moved and its like are answers
                        raise
                    if error.code not in _TRIED_AGAIN:
                        raise unknown or error from None
                    failure = error
            # The next call begins elsewhere, also where this one has no time left: a node that is cut off would eat its
            # whole deadline again.
            following = self._next(group, node)
            self._hints[group] = following
            self._waited(deadline, f"group {group}: {failure.message}", began_ms)
            hops += 1
            if hint and hint != node and hops <= FORWARD_HOPS_MAX and not deadline.passed:
                self._hints[group] = hint
                node = hint
                continue
            hops = 0  # two that name each other are left alone for a moment
            if deadline.left_ms <= wait_ms:
                raise unknown or failure
            began_ms = self._world.clock.monotonic_ms()
            await self._pause(group, wait_ms)
            self._waited(deadline, f"group {group}: {failure.message}", began_ms)
            wait_ms = min(wait_ms * 2, RETRY_MS_MAX)
            node = self._next(group, node)

    async def _pause(self, group: int, ms: float) -> None:
        """So long, or until this node's replica knows another leader."""
        pausing = self._pausing.setdefault(group, {})
        woken: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        pausing[woken] = None
        try:
            await asyncio.wait([woken], timeout=ms / 1000)
        finally:
            pausing.pop(woken, None)
            if not pausing and self._pausing.get(group) is pausing:
                del self._pausing[group]

    def _waited(self, deadline: Deadline, why: str, since_ms: float) -> None:
        deadline.waits.add(why, self._world.clock.monotonic_ms() - since_ms)

    async def nearest(self, group: int, attempt: Callable[[int, Deadline], Awaitable[T]], deadline: Deadline) -> T:
        """`attempt(node, deadline)`, a read, at the member that answers soonest; the others follow where it fails."""
        wait_ms = float(RETRY_MS_FIRST)
        while True:
            failure = CallerError(Status.PARTITION_NOT_READY, "the cluster is still being formed: try again")
            for node in self.responses.ordered(self._members(group)):
                began_ms = self._world.clock.monotonic_ms()
                try:
                    answer = await attempt(node, deadline.within(ATTEMPT_MS_MAX))
                except CallerError as error:
                    lost = isinstance(error, OutcomeUnknown | NotReady) or type(error) is CallerError
                    if not lost or (type(error) is CallerError and error.code not in (*_TRIED_AGAIN, Status.TIME_OUT)):
                        raise
                    self.responses.took(node, ATTEMPT_MS_MAX)
                    failure = error
                else:
                    self.responses.took(node, self._world.clock.monotonic_ms() - began_ms)
                    return answer
            if deadline.left_ms <= wait_ms:
                raise failure
            await asyncio.sleep(wait_ms / 1000)
            wait_ms = min(wait_ms * 2, RETRY_MS_MAX)

    def _next(self, group: int, last: int) -> int:
        known = self._known(group)
        if known:
            return known
        members = self._members(group)
        if not members:
            return 0
        return members[(members.index(last) + 1) % len(members)] if last in members else members[0]

    def learned(self, hints: Mapping[int, int]) -> None:
        """Leaders that others told of."""
        self._hints.update(hints)
