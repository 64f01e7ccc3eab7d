"""Moves of slots, driven by the leader of the group that receives them (docs/design/membership.md, "How a slot moves").

Everything here may be done again: whoever leads next begins with a round, which finds the files that are there. What
has been decided stands in the logs: the fence in the giver's, import and readiness in the receiver's, the owner in
meta's.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from iotdb_cluster.cluster.calls import Calls, Deadline, Leaders
from iotdb_cluster.cluster.data_group import DataMachine
from iotdb_cluster.cluster.driver import Driver
from iotdb_cluster.cluster.group import Group
from iotdb_cluster.cluster.meta_access import MetaAccess
from iotdb_cluster.cluster.proposals import Proposals
from iotdb_cluster.cluster.receiving import FETCH_CALL, FETCH_WAIT_MS, WHOLE_CALL
from iotdb_cluster.cluster.waits import Waits
from iotdb_cluster.data import Header, Import, Ready, encode, runs_of
from iotdb_cluster.errors import CallerError, Moved, NotLeader, Status
from iotdb_cluster.limits import MOVE_FINAL_BYTES_MAX, MOVE_ROUND_BYTES, MOVE_ROUNDS_MAX
from iotdb_cluster.meta import Move, commands
from iotdb_cluster.packing import pack, unpack
from iotdb_cluster.requests import NO_REQUEST
from iotdb_cluster.world import World

__all__ = ["MOVES_CALL", "MoveProgress", "Moving"]

logger = logging.getLogger(__name__)

MOVES_CALL = "moves"
ROUND_MS = 100
STEP_MS = 5_000  # of one proposal
FENCE_CALL_MS = 20_000  # a flush of the giver may have to end first
RETRY_MS = 100
FENCE_PAUSE_MS = 2_000
FETCH_MS = 5_000  # of one look at a voter's round
GRACE_MS = 1_000  # a voter that is slower than the majority is waited for, at least
FINAL_GRACE_MS = 100  # ... while the slots are fenced: it gets what it lacks from the others afterwards
SHRINKS = 0.5  # a round that brings more than this share of the one before does not keep up with the writes
LOOK_MS = 50  # between two looks whether the giver has another leader
ASK_MS = 1_000


@dataclass(slots=True)
class MoveProgress:
    """How far a move is, as its driver sees it: of the slowest voter of the receiver in this round.

    `bytes_done` of `bytes_total` are there; `left_s` is None where nothing is on its way.
    """

    move: int
    giver: int
    receiver: int
    slots: int
    phase: str = "begins"
    round: int = 0
    bytes_done: int = 0
    bytes_total: int = 0
    bytes_per_s: float = 0.0
    left_s: float | None = None
    waits_for: str = ""
    since_ms: float = 0.0  # by the clock of the node that drives it


@dataclass(slots=True)
class _Voter:
    """What a voter answered last in a round."""

    bytes: int = 0
    missing: int = 0
    fetched: int = 0
    fenced: bool = False
    checksum: int | None = None


class _Round:
    """One round: every voter fetches what it lacks. Enough is a majority, this node among them, that agrees."""

    def __init__(self, world: World, nodes: list[int], me: int, progress: MoveProgress) -> None:
        self._world = world
        self._nodes = nodes
        self._me = me
        self._progress = progress
        self._since_ms = world.clock.monotonic_ms()
        self._voters = {node: _Voter() for node in nodes}

    def told(self, node: int, answer: Any) -> None:
        """A voter's answer."""
        fields = ("bytes", "missing", "fetched", "fenced", "checksum")
        self._voters[node] = _Voter(*(answer[name] for name in fields))
        slowest = max(self._voters.values(), key=lambda one: one.missing - one.fetched)
        progress, passed_s = self._progress, (self._world.clock.monotonic_ms() - self._since_ms) / 1000
        progress.bytes_total = slowest.bytes
        progress.bytes_done = slowest.bytes - (slowest.missing - slowest.fetched)
        progress.bytes_per_s = slowest.fetched / passed_s if passed_s > 0 else 0.0
        left = slowest.missing - slowest.fetched
        progress.left_s = left / progress.bytes_per_s if left and progress.bytes_per_s else None

    @property
    def agreed(self) -> int | None:
        """The checksum that a majority has, with this node; None while none has."""
        mine = self._voters[self._me].checksum if self._me in self._voters else None
        alike = sum(one.checksum == mine for one in self._voters.values())
        return mine if mine is not None and 2 * alike > len(self._nodes) else None

    @property
    def fenced(self) -> bool:
        """Whether the giver's fence stands already: another leader began the move, or an attempt failed behind it."""
        return any(one.fenced for one in self._voters.values())

    @property
    def fetched(self) -> int:
        """Bytes that the slowest of those who are done had to fetch."""
        return max((one.fetched for one in self._voters.values() if one.checksum is not None), default=0)


class Moving:
    """Drives the moves to the groups that this node leads."""

    def __init__(
        self,
        world: World,
        driver: Driver,
        machines: dict[int, DataMachine],
        meta: MetaAccess,
        calls: Calls,
        leaders: Leaders,
        proposals: Proposals,
        fault: Callable[[BaseException], None],
    ) -> None:
        self._world = world
        self._driver = driver
        self._machines = machines
        self._meta = meta
        self._calls = calls
        self._leaders = leaders
        self._proposals = proposals
        self._fault = fault
        self._tasks: dict[int, asyncio.Task[None]] = {}
        self._moves: dict[int, tuple[Move, Group]] = {}  # that have a task
        self._progress: dict[int, MoveProgress] = {}
        self._given_up_ms: dict[tuple[int, int], float] = {}  # by giver and receiver: the last move without effect
        self._rounds = 0  # of this node's life

    def register(self, calls: Calls) -> None:
        calls.handlers[MOVES_CALL] = self._tell

    # --- which moves --------------------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Until cancelled."""
        try:
            while True:
                self._follow()
                try:
                    async with asyncio.timeout(ROUND_MS / 1000):
                        await self._meta.change()
                except TimeoutError:
                    continue
        finally:
            await self._end(list(self._tasks))

    def _follow(self) -> None:
        """Begin the moves that this node has to drive, end the others."""
        driven: dict[int, tuple[Move, Group]] = {}
        for move in self._meta.state.moves if self._meta.state.bootstrapped else ():
            group = self._driver.groups.get(move.receiver)
            if group is not None and group.leads_whole:
                driven[move.id] = (move, group)
        for number in [number for number in self._tasks if not self._goes_on(number, driven)]:
            self._tasks.pop(number).cancel()
            self._note_outcome(self._moves.pop(number)[0], self._progress.pop(number))
        for number, (move, group) in driven.items():
            if number not in self._tasks:
                self._moves[number] = (move, group)
                now = self._world.clock.monotonic_ms()
                self._progress[number] = MoveProgress(number, move.giver, move.receiver, len(move.slots), since_ms=now)
                task = self._tasks[number] = asyncio.get_running_loop().create_task(self._drive(move, group))
                task.add_done_callback(self._ended)

    def _goes_on(self, number: int, driven: Mapping[int, tuple[Move, Group]]) -> bool:
        """Whether the task of a move is still right: it has not ended, and its replica is the one that runs now."""
        return number in driven and driven[number][1] is self._moves[number][1] and not self._tasks[number].done()

    def _note_outcome(self, move: Move, progress: MoveProgress) -> None:
        if self._meta.state.move(move.id) is not None:  # the lead is lost, another node goes on
            return
        now = self._world.clock.monotonic_ms()
        owner = self._meta.state.table.owner(move.slots[0][0])[0]
        if owner == move.giver:
            self._given_up_ms[move.giver, move.receiver] = now
        logger.info(
            "move %d is over: %d slots of group %d, %d bytes, are now group %d's; %.0f ms",
            move.id,
            len(move.slots),
            move.giver,
            progress.bytes_total,
            owner,
            now - progress.since_ms,
        )

    def _ended(self, task: asyncio.Task[None]) -> None:
        if not task.cancelled() and (error := task.exception()) is not None:
            self._fault(error)

    async def _end(self, numbers: list[int]) -> None:
        tasks = [self._tasks.pop(number) for number in numbers]
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)

    # --- one move -----------------------------------------------------------------------------------------------------

    async def _drive(self, move: Move, group: Group) -> None:
        """Until meta has decided; whatever fails is tried again."""
        progress = self._progress[move.id]
        while self._meta.state.move(move.id) is not None and group.leads:
            try:
                await self._carry_out(move, group, progress)
            except CallerError as error:
                logger.info("move %d waits: %s", move.id, error.message)
                progress.waits_for = error.message
                if isinstance(error, NotLeader) and error.leader:
                    self._leaders.learned({move.giver: error.leader})
                elif error.code in (Status.NO_LEADER, Status.NO_CONNECTION, Status.TIME_OUT):
                    self._leaders.pass_over(move.giver)
            await asyncio.sleep(RETRY_MS / 1000)

    async def _carry_out(self, move: Move, group: Group, progress: MoveProgress) -> None:
        if not self._is_ready(move):
            if not await self._copied(move, group, progress):
                return
            await self._rested(move)
            if not await self._handed_over(move, group, progress):
                return
        progress.phase = "decision"
        await self._require_files(move, group)
        await self._decide(move, "receiver")
        progress.waits_for = ""

    def _is_ready(self, move: Move) -> bool:
        """Whether the group's log says so: an earlier attempt came as far, and its wish may yet be decided.

        Then nothing staged may be touched: a voter is not whole while it takes the last files again.
        """
        one = self._machines[move.receiver].data.imports().get(move.id)
        return one is not None and one.ready is not None

    async def _require_files(self, move: Move, group: Group) -> None:
        """CallerError unless a majority of the voters has the files that the log says are ready, and keeps them so.

        That wish may have been given up by who made it, or come from the leader before, and may have taken effect when
        rounds had begun again: then the move waits until its fence is ended.
        """
        one = self._machines[move.receiver].data.imports().get(move.id)
        ready = None if one is None else one.ready
        body = pack({"group": move.receiver, "move": move.id, "index": group.applied})

        async def has_them(node: int) -> bool:
            try:
                found, _ = unpack(await self._calls.call(node, WHOLE_CALL, body, Deadline(self._world, ASK_MS)))
            except CallerError as error:
                logger.info("move %d: node %d does not say what it has staged: %s", move.id, node, error.message)
                return False
            return ready is not None and found == ready

        nodes = group.voter_nodes()
        asked = [asyncio.get_running_loop().create_task(has_them(node)) for node in nodes]
        count = 0
        try:
            for answered in asyncio.as_completed(asked):
                count += await answered
                if 2 * count > len(nodes):
                    return
        finally:
            for task in asked:
                task.cancel()
            await asyncio.gather(*asked, return_exceptions=True)
        raise CallerError(
            Status.PARTITION_NOT_READY, f"{count} of {len(nodes)} voters have the files: the slots go back to the giver"
        )

    async def _handed_over(self, move: Move, group: Group, progress: MoveProgress) -> bool:
        """Fence, import, last round, ready; False where the move is over."""
        progress.phase = "fenced: schema and request ids"
        clock, steps = self._world.clock, Waits()
        began_ms = clock.monotonic_ms()
        head = {"group": move.giver, "move": move.id, "slots": [list(run) for run in runs_of(move.slots)]}
        deadline = Deadline(self._world, FENCE_CALL_MS)
        try:
            await self._calls.call(self._leaders.guess(move.giver), "move fence", pack(head), deadline)
        except Moved:  # it is over; this node will hear of it
            return False
        fenced_ms = clock.monotonic_ms()
        steps.add("the fence", fenced_ms - began_ms)
        await self._import(move)
        imported_ms = clock.monotonic_ms()
        steps.add("schema and request ids", imported_ms - fenced_ms)
        progress.phase = "fenced: last files"
        checksum = await self._round(move, group, progress, final=True)
        await self._propose(move.receiver, Ready(move.id, checksum.agreed or 0))
        steps.add("the last files", clock.monotonic_ms() - imported_ms)
        logger.info("move %d is ready, %.0f ms after its fence: %s", move.id, clock.monotonic_ms() - fenced_ms, steps)
        return True

    async def _copied(self, move: Move, group: Group, progress: MoveProgress) -> bool:
        """Rounds until little is missing; whether the slots may be fenced. Where too much stays it is given up."""
        fetched, slower = 0, 0
        for number in range(1, MOVE_ROUNDS_MAX + 1):
            progress.phase, progress.round = "copying", number
            before, round_ = fetched, await self._round(move, group, progress, final=False, slower=slower)
            fetched, progress.waits_for = round_.fetched, ""
            if fetched < MOVE_ROUND_BYTES or round_.fenced:
                return True
            slower += number > 1 and fetched > SHRINKS * before
        if fetched <= MOVE_FINAL_BYTES_MAX:
            return True
        logger.warning("move %d: round %d still brought %d bytes: given up", move.id, MOVE_ROUNDS_MAX, fetched)
        await self._decide(move, "giver")
        return False

    async def _rested(self, move: Move) -> None:
        """Behind a fence that came to nothing clients have some time before the next one."""
        since_ms = self._world.clock.monotonic_ms() - self._given_up_ms.get((move.giver, move.receiver), -1e18)
        if since_ms < FENCE_PAUSE_MS:
            await asyncio.sleep((FENCE_PAUSE_MS - since_ms) / 1000)

    async def _decide(self, move: Move, to: str) -> None:
        await self._meta.propose(
            lambda request: commands.end_move(request, move.id, to), Deadline(self._world, STEP_MS)
        )

    async def _propose(self, number: int, body: Import | Ready) -> None:
        entry = encode(Header(NO_REQUEST), body)
        await self._proposals.patiently(lambda: number, entry, Deadline(self._world, STEP_MS))

    async def _import(self, move: Move) -> None:
        """The giver's export, part by part, into this group's log."""
        export, part, parts = 0, 0, 1
        while part < parts:
            head, data = await self._part(move, part)
            if part and int(head["export"]) != export:  # of another leader: from the beginning
                part = 0
                continue
            export, parts = int(head["export"]), int(head["parts"])
            slots = tuple((int(a), int(b), int(c)) for a, b, c in head["slots"])
            await self._propose(move.receiver, Import(move.id, slots, export, part, parts, data))
            part += 1

    async def _part(self, move: Move, part: int) -> tuple[Any, bytes]:
        body = pack({"group": move.giver, "move": move.id, "part": part})

        async def attempt(node: int, within: Deadline) -> memoryview:
            return await self._calls.call(node, "move export", body, within)

        answer = await self._leaders.run(move.giver, attempt, Deadline(self._world, STEP_MS), repeatable=True)
        head, buffers = unpack(answer)
        return head, bytes(buffers[0])

    # --- a round ------------------------------------------------------------------------------------------------------

    async def _round(self, move: Move, group: Group, progress: MoveProgress, *, final: bool, slower: int = 0) -> _Round:
        """All voters fetch from one replica of the giver, until enough of them are done; CallerError where too few are.

        Those that are slower than the majority are waited for as long again, and at least for a moment.
        """
        nodes, giver = sorted(group.voter_nodes()), self._leaders.guess(move.giver)
        round_ = _Round(self._world, nodes, self._calls.node, progress)
        self._rounds += 1
        head = {
            "group": move.receiver,
            "slots": [list(run) for run in runs_of(move.slots)],
            "round": [move.id, group.raw.term, self._rounds, move.giver, giver, final, slower],
        }
        began_ms, until_ms = self._world.clock.monotonic_ms(), float("inf")
        loop = asyncio.get_running_loop()
        fetching = {loop.create_task(self._fetch(node, head, round_)) for node in nodes}
        failure: CallerError | None = None
        left: set[asyncio.Task[None]] = fetching
        try:
            while left and self._world.clock.monotonic_ms() < until_ms:
                done, left = await asyncio.wait(left, timeout=LOOK_MS / 1000, return_when=asyncio.FIRST_COMPLETED)
                for one in done:
                    error = one.exception()
                    if error is not None and not isinstance(error, CallerError):
                        raise error
                    failure = error or failure
                now = self._world.clock.monotonic_ms()
                if round_.agreed is not None:
                    pressing = final or round_.fenced
                    until_ms = min(until_ms, now + (FINAL_GRACE_MS if pressing else max(GRACE_MS, now - began_ms)))
                elif self._leaders.guess(move.giver) != giver:  # one that is dead refuses nothing
                    raise CallerError(Status.NO_LEADER, f"group {move.giver} has another leader: once more")
        finally:
            for one in fetching:
                one.cancel()
            await asyncio.gather(*fetching, return_exceptions=True)
        if round_.agreed is None:
            raise failure or CallerError(Status.PARTITION_NOT_READY, "the voters have not the same files: once more")
        return round_

    async def _fetch(self, node: int, head: Any, round_: _Round) -> None:
        """Ask one voter until its round is done."""
        body = pack(head)
        while True:
            asked = self._calls.call(node, FETCH_CALL, body, Deadline(self._world, FETCH_MS + FETCH_WAIT_MS))
            answer, _ = unpack(await asked)
            round_.told(node, answer)
            if answer["done"]:
                return

    # --- progress -----------------------------------------------------------------------------------------------------

    def progress(self) -> list[dict[str, Any]]:
        """The moves that this node drives, as plain values (see `MoveProgress`), by move."""
        return [asdict(one) for _, one in sorted(self._progress.items())]

    async def _tell(self, body: memoryview, deadline: Deadline) -> bytes:
        del body, deadline
        return pack(self.progress())

    async def everywhere(self) -> list[dict[str, Any]]:
        """Every move that is under way, by move: as its driver sees it; one that nobody drives says so."""
        found = {}
        for move in self._meta.state.moves:
            why = f"group {move.receiver} has no leader that could be asked: it drives the move"
            shown = MoveProgress(move.id, move.giver, move.receiver, len(move.slots), "waits", waits_for=why)
            found[move.id] = asdict(shown)

        async def ask(node: int) -> None:
            try:
                answer = await self._calls.call(node, MOVES_CALL, pack(None), Deadline(self._world, ASK_MS))
            except CallerError as error:
                logger.debug("node %d does not tell its moves: %s", node, error)
                return
            found.update({one["move"]: one for one in unpack(answer)[0] if one["move"] in found})

        await asyncio.gather(*(ask(node.id) for node in self._meta.state.nodes if node.registered))
        return [one for _, one in sorted(found.items())]
