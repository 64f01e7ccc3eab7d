"""The receiver's side of a move of slots, at each of its voters: the files, fetched round by round into a stage.

The receiver's leader asks (`move fetch`), again and again while a round goes on, so that it sees how far each voter is
and a round outlives a change of lead. What is staged is left alone until the group owns the slots, or the move is over.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, TypeVar

from iotdb_cluster.cluster.calls import Calls, Deadline
from iotdb_cluster.cluster.copying import BrokenFile, Fetcher, ListedFile, Listing
from iotdb_cluster.cluster.data_group import DataMachine
from iotdb_cluster.cluster.driver import Driver
from iotdb_cluster.cluster.meta_access import MetaAccess
from iotdb_cluster.cluster.outbox import Channel
from iotdb_cluster.cluster.reading import applied_here, replica_here
from iotdb_cluster.cluster.settings import Settings
from iotdb_cluster.data import Runs
from iotdb_cluster.errors import CallerError, CorruptData, Status, SystemFault
from iotdb_cluster.packing import pack, unpack
from iotdb_cluster.storage import FileInfo, Stage, StagedUnit
from iotdb_cluster.world import World

__all__ = ["FETCH_CALL", "FETCH_WAIT_MS", "RECEIVING_CALLS", "WHOLE_CALL", "MoveReceiving"]

logger = logging.getLogger(__name__)

T = TypeVar("T")
FETCH_CALL, WHOLE_CALL = "move fetch", "move whole"
RECEIVING_CALLS = (FETCH_CALL, WHOLE_CALL)
FETCH_WAIT_MS = 500  # an answer says how far the round is when it is not done by then
OPEN_MS = 30_000
LOOK_MS = 100  # between two looks for imports that can be read ahead
SWEEP_MS = 2_000
_NOWHERE = (0, 0)
STARTED_IDLE_MS_MAX = 30_000  # a round that nobody asks for any more ends
ROUND_FAILURES = (CallerError, OSError, SystemFault)


class _Round(NamedTuple):
    """One round of one move, as the receiver's leader asks for it."""

    move: int
    term: int
    number: int
    giver: int
    node: int
    final: bool
    slower: int = 0  # rounds so far that brought hardly less than the one before


@dataclass(slots=True)
class _Fetching:
    """A round that is under way, or done, at this voter."""

    round: _Round
    asked_ms: float
    task: asyncio.Task[int] | None = None
    bytes: int = 0  # of the files of the copy
    fetched: int = 0  # of those that were not here
    missing: int = 0
    fenced: bool = False  # at the giver, when its copy was made

    @property
    def under_way(self) -> bool:
        return self.task is not None and not self.task.done()


@dataclass(slots=True)
class _Staged:
    """What this life of the process knows of a stage: files that are whole, by unit and name."""

    held: set[tuple[str, str, int, int]] = field(default_factory=set)


class MoveReceiving:
    """Fetches the files of the moves to groups of which this node has a replica."""

    def __init__(
        self,
        world: World,
        settings: Settings,
        driver: Driver,
        machines: dict[int, DataMachine],
        meta: MetaAccess,
        calls: Calls,
        fetcher: Fetcher,
        fault: Callable[[BaseException], None],
    ) -> None:
        """`fault` is told what no round fails with as rounds may."""
        self._fault = fault
        self._world = world
        self._settings = settings
        self._driver = driver
        self._machines = machines
        self._meta = meta
        self._calls = calls
        self._fetcher = fetcher
        self._fetching: dict[int, _Fetching] = {}  # by move
        self._staged: dict[int, _Staged] = {}

    def register(self, calls: Calls) -> None:
        calls.handlers.update({FETCH_CALL: self._fetch_call, WHOLE_CALL: self._whole_call})

    async def close(self) -> None:
        for one in list(self._fetching.values()):
            await _stopped(one)

    # --- a round ------------------------------------------------------------------------------------------------------

    async def _fetch_call(self, body: memoryview, deadline: Deadline) -> bytes:
        """{"done", "bytes", "missing", "fetched", "fenced", "checksum": of the final manifests, when done}."""
        head, _ = unpack(body)
        group = replica_here(self._driver, int(head["group"]))
        wanted = _Round(*head["round"])
        if wanted.term < group.raw.term:
            raise CallerError(Status.NO_LEADER, f"group {group.id} is in term {group.raw.term}")
        if self._is_unknown(wanted.move):
            raise CallerError(Status.PARTITION_NOT_READY, f"move {wanted.move} is over")
        while (one := self._fetching.get(wanted.move)) is not None and one.round != wanted:
            if (one.round.term, one.round.number) > (wanted.term, wanted.number):
                raise CallerError(Status.PARTITION_NOT_READY, "a later round of the move has begun")
            await self._end(one)  # others may wait for the same: whoever comes first begins
        if one is None:
            one = self._fetching[wanted.move] = _Fetching(wanted, 0.0)
            runs = tuple((int(a), int(b), int(c)) for a, b, c in head["slots"])
            one.task = asyncio.get_running_loop().create_task(self._fetch(one, group.id, runs))
            one.task.add_done_callback(self._looked_at)  # who asked may have gone
        one.asked_ms = self._world.clock.monotonic_ms()
        checksum = await self._waited(one, deadline)
        return pack(
            {
                "done": checksum is not None,
                "bytes": one.bytes,
                "missing": one.missing,
                "fetched": one.fetched,
                "fenced": one.fenced,
                "checksum": checksum,
            }
        )

    async def _whole_call(self, body: memoryview, deadline: Deadline) -> bytes:
        """The checksum of what is staged for a move that is ready, None where that is not whole.

        From here on nothing touches it: the log says here that the move is ready, so no round begins, and none goes on.
        """
        head, _ = unpack(body)
        group, move = replica_here(self._driver, int(head["group"])), int(head["move"])
        await applied_here(self._driver, group, int(head["index"]), deadline)
        data = self._machines[group.id].data
        known = data.imports().get(move)
        if known is None or known.ready is None:
            raise CallerError(Status.PARTITION_NOT_READY, f"move {move} is not ready here")
        while (one := self._fetching.get(move)) is not None:
            await self._end(one)
        try:
            whole = await self._work(data.stage(move).whole)
        except SystemFault as error:
            logger.warning("move %d: what is staged cannot be read: %s", move, error)
            return pack(None)
        return pack(None if whole is None else whole[0])

    async def _end(self, one: _Fetching) -> None:
        """Stop a round, if it goes on, and forget it: afterwards nobody works in the stage for its sake."""
        await _stopped(one)
        if self._fetching.get(one.round.move) is one:
            del self._fetching[one.round.move]

    async def _waited(self, one: _Fetching, deadline: Deadline) -> int | None:
        """The round's outcome, None while it goes on. A round that failed is forgotten: asked again, it begins anew."""
        task = one.task
        if task is None:
            return None
        await asyncio.wait([task], timeout=max(0.0, min(FETCH_WAIT_MS, deadline.left_ms - FETCH_WAIT_MS)) / 1000)
        if not task.done():
            return None
        try:
            return task.result()
        except asyncio.CancelledError:
            raise CallerError(Status.PARTITION_NOT_READY, "another round of the move has begun") from None
        except ROUND_FAILURES as error:
            if self._fetching.get(one.round.move) is one:
                del self._fetching[one.round.move]
            logger.info("move %d: a round failed: %s", one.round.move, error)
            if isinstance(error, CallerError):
                raise
            raise CallerError(Status.INTERNAL_SERVER_ERROR, f"files of move {one.round.move}: {error}") from None

    def _looked_at(self, task: asyncio.Task[int]) -> None:
        """A round that failed as rounds may is told to who asks; anything else is a failure of the node."""
        error = None if task.cancelled() else task.exception()
        if error is not None and not isinstance(error, ROUND_FAILURES):
            self._fault(error)

    async def _read_ahead(self, machine: DataMachine) -> None:
        """Imports that are whole are read before the group owns their slots: that is applied on the loop."""
        for move, work in machine.data.reading_ahead().items():
            try:
                await self._work(work)
            except CorruptData as error:  # OWN meets the same, and says so
                logger.warning("move %d: what was imported cannot be read: %s", move, error)

    async def _fetch(self, one: _Fetching, number: int, runs: Runs) -> int:
        """Bring all files of the giver's copy here; the checksum of the final manifests, 0 in a round before."""
        wanted = one.round
        known = self._machines[number].data.imports().get(wanted.move)
        if known is not None and known.ready is not None:
            raise CallerError(Status.PARTITION_NOT_READY, f"move {wanted.move} waits for meta's decision alone")
        stage = self._machines[number].data.stage(wanted.move)
        staged = self._staged.get(wanted.move)
        if staged is None:
            await self._work(stage.begin, [list(run) for run in runs])
            staged = self._staged[wanted.move] = _Staged()
        head = {
            "group": wanted.giver,
            "move": wanted.move,
            "slots": [list(run) for run in runs],
            "final": wanted.final,
            "slower": wanted.slower,
        }
        deadline = Deadline(self._world, OPEN_MS)
        answer, manifests = unpack(
            await self._calls.call(wanted.node, "move open", pack(head), deadline, Channel.SNAPSHOT)
        )
        listing, one.fenced = Listing.load(answer), bool(answer["fenced"])
        names = [str(name) for name, _ in answer["units"]]
        broken: BrokenFile | None = None
        try:
            lacking = await self._work(_lacking, stage, staged, listing.files, names)
            one.bytes, one.missing = listing.bytes, sum(file.size for file, _ in lacking)
            self._check_room(stage, one.missing)

            def came(size: int) -> None:
                one.fetched += size

            await self._fetcher.fetch(wanted.node, listing.number, lacking, came, urgent=wanted.final)
            staged.held.update(_held(names, file) for file, _ in lacking)
            if not wanted.final:
                return 0
            units = [
                StagedUnit(str(name), bytes(manifest), int(epoch))
                for (name, epoch), manifest in zip(answer["units"], manifests, strict=True)
            ]
            durable = {(unit, file) for unit, file, *_ in staged.held}  # as they came, or were found here
            checksum: int = await self._work(stage.finish, units, durable)
            await self._read_ahead(self._machines[number])
            return checksum
        except BrokenFile as error:
            broken = error
            raise
        finally:
            await self._fetcher.end(wanted.node, listing.number, broken)

    async def _work(self, work: Callable[..., T], *args: Any) -> T:
        """On a worker; who is cancelled waits for it: it must not meet whoever comes next in the stage."""
        working = asyncio.ensure_future(self._world.workers.run(work, *args))
        try:
            return await asyncio.shield(working)
        except asyncio.CancelledError:
            await asyncio.wait([working])
            raise

    def _check_room(self, stage: Stage, missing: int) -> None:
        free = self._world.files.free_bytes(stage.directory)
        if missing and free - missing < self._settings.disk_free_min_bytes:
            raise SystemFault(f"{missing} bytes are missing, the disk has {free}")

    # --- what is over -------------------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Read imports ahead, and remove what is of no use any more, until cancelled."""
        swept_ms = self._world.clock.monotonic_ms()
        while True:
            await asyncio.sleep(LOOK_MS / 1000)
            self._fetcher.look()
            for machine in list(self._machines.values()):
                await self._read_ahead(machine)
            now = self._world.clock.monotonic_ms()
            if now - swept_ms < SWEEP_MS:
                continue
            swept_ms = now
            for move, one in list(self._fetching.items()):
                if now - one.asked_ms > STARTED_IDLE_MS_MAX or self._is_unknown(move):
                    await self._end(one)
            for machine in list(self._machines.values()):
                await self._sweep(machine)

    def _is_unknown(self, move: int) -> bool:
        return self._meta.state.move(move) is None and self._meta.index >= move

    async def _sweep(self, machine: DataMachine) -> None:
        data = machine.data
        table = self._meta.state.table
        for move, runs in (await self._world.workers.run(data.stages)).items():
            if not self._is_unknown(move) or move in self._fetching or machine.data is not data:
                continue
            if data.is_over(move, runs, lambda slot: table.owner(slot)[1]):
                self._staged.pop(move, None)
                try:
                    await self._world.workers.run(data.remove_stage, move)
                except SystemFault as error:
                    logger.warning("what is left of move %d stays for now: %s", move, error)


def _lacking(
    stage: Stage, staged: _Staged, files: Sequence[ListedFile], names: Sequence[str]
) -> list[tuple[ListedFile, str]]:
    """The files that are not here yet, each with its path; on a worker. One is known by size and checksum too."""
    lacking: list[tuple[ListedFile, str]] = []
    for name in names:
        stage.make_unit(name)
    for file in files:
        name = names[file.place]
        info = FileInfo(file.name, "", file.size, file.crc32c, _NOWHERE, _NOWHERE, _NOWHERE, 0, 0)
        if _held(names, file) not in staged.held and stage.holds(name, info):
            staged.held.add(_held(names, file))
        if _held(names, file) not in staged.held:
            lacking.append((file, f"{stage.unit_directory(name)}/{file.name}"))
    return lacking


def _held(names: Sequence[str], file: ListedFile) -> tuple[str, str, int, int]:
    return names[file.place], file.name, file.size, file.crc32c


async def _stopped(one: _Fetching) -> None:
    if one.under_way and one.task is not None:
        if not one.task.cancelling():  # once: it waits then for its worker, and would be torn from that
            one.task.cancel()
        await asyncio.wait([one.task])
