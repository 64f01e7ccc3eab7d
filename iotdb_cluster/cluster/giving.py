"""The giver's side of a move of slots: units and schema for the receiver, and the end of a fence that is too long."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine, Mapping, Sequence
from typing import Any

from iotdb_cluster.cluster.calls import Calls, Deadline
from iotdb_cluster.cluster.copying import GivenCopies
from iotdb_cluster.cluster.data_group import DataMachine
from iotdb_cluster.cluster.driver import Driver
from iotdb_cluster.cluster.group import Group
from iotdb_cluster.cluster.housekeeping import Housekeeping
from iotdb_cluster.cluster.meta_access import MetaAccess
from iotdb_cluster.cluster.proposals import Proposals
from iotdb_cluster.cluster.reading import replica_here
from iotdb_cluster.data import DataGroup, Fence, Header, Import, NotReady, encode, slots_in
from iotdb_cluster.errors import CallerError, CorruptData, Status
from iotdb_cluster.limits import FENCE_MS_INHERITED, FENCE_MS_MAX, SLOWED_MS_FIRST, SLOWED_MS_MAX
from iotdb_cluster.meta import Move, commands
from iotdb_cluster.packing import pack, unpack
from iotdb_cluster.requests import NO_REQUEST
from iotdb_cluster.storage import PinnedUnit, UnitId
from iotdb_cluster.world import World

__all__ = ["GIVING_CALLS", "MoveGiving"]

logger = logging.getLogger(__name__)

GIVING_CALLS = ("move open", "move fence", "move export")
REST_MS = 1_000  # between two looks which units are to rest
ROUND_MS = 50  # between two looks at the fences, while moves are under way
FLUSH_MS = 500  # a move's units are flushed so often for its rounds: each voter of the receiver asks
END_MS = 5_000
SLOWED_IDLE_MS_MAX = 120_000  # a move that asks for no further round for so long slows nothing


class MoveGiving:
    """Gives what moves away from the groups that this node leads."""

    def __init__(
        self,
        world: World,
        driver: Driver,
        machines: dict[int, DataMachine],
        meta: MetaAccess,
        given: GivenCopies,
        proposals: Proposals,
        housekeeping: Housekeeping,
        spawn: Callable[[Coroutine[Any, Any, None]], None],
    ) -> None:
        self._world = world
        self._driver = driver
        self._machines = machines
        self._meta = meta
        self._given = given
        self._proposals = proposals
        self._housekeeping = housekeeping
        self._spawn = spawn
        self._flushed_ms: dict[int, float] = {}  # by move
        self._exports: dict[int, list[Import]] = {}
        self._fenced_ms: dict[int, float] = {}  # by move: since when this node leads a group that has fenced for it
        self._ending: set[int] = set()
        self._resting: set[int] = set()  # the moves of which the units rest, ...
        self._rested_ms = 0.0  # ... as of this moment
        self._slowed: dict[
            int, tuple[float, float]
        ] = {}  # by move: how long its slots' writes wait, when that was told
        self._terms: dict[int, int] = {}  # by group: the term of the lead that was looked at last

    def register(self, calls: Calls) -> None:
        handlers = (self._open_call, self._fence_call, self._export_call)
        calls.handlers.update(zip(GIVING_CALLS, handlers, strict=True))

    # --- unasked ------------------------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Until cancelled."""
        while True:
            await asyncio.sleep(ROUND_MS / 1000)
            self._look()

    def _look(self) -> None:
        moves = {move.id: move for move in self._meta.state.moves} if self._meta.state.bootstrapped else {}
        for known in (self._flushed_ms, self._exports, self._fenced_ms, self._slowed):
            for over in [move for move in known if move not in moves]:
                del known[over]
        now = self._world.clock.monotonic_ms()
        if self._resting != set(moves) or now - self._rested_ms > REST_MS:
            self._resting, self._rested_ms = set(moves), now
            self._let_rest([(move.giver, {slot for slot, _ in move.slots}) for move in moves.values()])
        for move in moves.values():
            group = self._driver.groups.get(move.giver)
            if group is None or not group.leads or not self._machines[group.id].data.fenced(move.id):
                self._fenced_ms.pop(move.id, None)
                continue
            inherited = self._terms.get(group.id) != group.raw.term  # clients have waited for this lead already
            self._fenced_ms.setdefault(move.id, now - (FENCE_MS_MAX - FENCE_MS_INHERITED if inherited else 0))
            if now - self._fenced_ms[move.id] > FENCE_MS_MAX and move.id not in self._ending:
                self._ending.add(move.id)
                self._spawn(self._end(move.id))
        self._slow_down(moves, now)
        self._terms = {group.id: group.raw.term for group in self._driver.groups.values() if group.id and group.leads}

    def _let_rest(self, moving: Sequence[tuple[int, set[int]]]) -> None:
        """No compaction begins in what moves away: each changed file would be copied again.

        A unit that is opened meanwhile rests from the next look on: to look at all units takes time.
        """
        for number, machine in self._machines.items():
            slots = {slot for giver, some in moving if giver == number for slot in some}
            if slots or machine.data.store.resting:
                machine.data.store.resting = set(machine.data.units_in(slots))

    def _slow_down(self, moves: Mapping[int, Move], now: float) -> None:
        """Writes of slots whose rounds do not shrink wait: until the fence, the move's end, or nobody asks any more."""
        for number, machine in self._machines.items():
            slowed: dict[int, float] = {}
            for move, (delay_ms, told_ms) in self._slowed.items():
                goes_on = moves[move].giver == number and now - told_ms < SLOWED_IDLE_MS_MAX
                if goes_on and not machine.data.fenced(move):
                    slowed.update((slot, delay_ms) for slot, _ in moves[move].slots)
            if slowed or machine.slowed:
                machine.slowed = slowed

    async def _end(self, move: int) -> None:
        """A move whose fence lasts too long: the slots are to be read and written again, here."""
        logger.warning("move %d: its fence lasts more than %d ms: the slots stay", move, FENCE_MS_MAX)
        try:
            await self._meta.propose(
                lambda request: commands.end_move(request, move, "giver"), Deadline(self._world, END_MS)
            )
        except CallerError as error:  # the fence is looked at again
            logger.info("move %d is not ended yet: %s", move, error.message)
        finally:
            self._ending.discard(move)

    # --- asked by the receiver ----------------------------------------------------------------------------------------

    def _led(self, head: Any) -> tuple[Group, DataGroup]:
        group = replica_here(self._driver, int(head["group"]))
        if not group.leads:
            raise group.not_leader()
        return group, self._machines[group.id].data

    async def _open_call(self, body: memoryview, deadline: Deadline) -> bytes:
        """A copy of the units of a move's slots, as they are here; with `final` as the fence left them."""
        del deadline
        head, _ = unpack(body)
        group, data = self._led(head)
        move, final = int(head["move"]), bool(head["final"])
        slots = slots_in(data.fenced(move) if final else _runs(head["slots"]))
        if final and not slots:
            raise NotReady(f"group {group.id} has fenced nothing for move {move}")
        now = self._world.clock.monotonic_ms()
        if not head["slower"] or self._meta.state.move(move) is None:
            self._slowed.pop(move, None)
        else:
            delay_ms = min(SLOWED_MS_MAX, SLOWED_MS_FIRST * 2 ** (int(head["slower"]) - 1))
            if self._slowed.get(move, (0.0, 0.0))[0] != delay_ms:
                logger.info("move %d: its rounds do not shrink: writes of its slots wait %.0f ms", move, delay_ms)
            self._slowed[move] = (delay_ms, now)
        if final or now - self._flushed_ms.get(move, -1e18) >= FLUSH_MS:
            self._flushed_ms[move] = now
            if not await self._housekeeping.flush_units(group.id, data.units_in(slots)):
                raise _no_room(group)
        group, data = self._led(head)
        try:
            epochs, units = self._pinned(data, move, slots, final)
        except CorruptData as error:
            raise CallerError(Status.PARTITION_NOT_READY, f"group {group.id}: a unit is damaged: {error}") from None
        copy = self._given.give_units(data, units)
        names = [[pinned.name, epoch] for (_, pinned), epoch in zip(units, epochs, strict=True)]
        fenced = bool(data.fenced(move))
        return pack({**copy, "units": names, "fenced": fenced}, [pinned.manifest for _, pinned in units])

    async def _fence_call(self, body: memoryview, deadline: Deadline) -> bytes:
        """Fence the slots of a move, with all that they hold on disk; harmless when it comes twice.

        Raises Moved where the move is over.
        """
        head, _ = unpack(body)
        group, data = self._led(head)
        move, slots = int(head["move"]), _runs(head["slots"])
        entry = encode(Header(NO_REQUEST), Fence(move, slots, move))

        async def fence() -> None:
            deadline.check(f"move {move} was fenced")
            await self._proposals.patiently(lambda: group.id, entry, deadline.within(END_MS))

        units = data.units_in(slots_in(slots))
        if not await self._housekeeping.fence_units(group.id, units, fence):
            raise _no_room(group)
        return pack(None)

    def _pinned(
        self, data: DataGroup, move: int, slots: dict[int, int], final: bool
    ) -> tuple[list[int], list[tuple[UnitId, PinnedUnit]]]:
        """(the epoch that each unit is to get, the pinned units)."""
        units = data.units_in(slots)
        if final:
            fenced = data.pin_fenced(move)
            return [epoch for _, epoch in fenced], [(unit, one) for unit, (one, _) in zip(units, fenced, strict=True)]
        found: list[tuple[UnitId, PinnedUnit]] = []
        try:
            found.extend((unit, data.store.pin_files(unit)) for unit in units)
        except CorruptData:
            for _, pinned in found:
                pinned.release()
            raise
        return [0] * len(found), found

    async def _export_call(self, body: memoryview, deadline: Deadline) -> bytes:
        """One part of what the receiver's log is to have: {"slots", "export", "parts"} and its bytes."""
        del deadline
        head, _ = unpack(body)
        _, data = self._led(head)
        move = int(head["move"])
        parts = self._exports.get(move)
        if parts is None or int(head["part"]) == 0:
            export = data.export(move)
            for _ in iter(export.step, False):
                await asyncio.sleep(0)
            parts = self._exports[move] = await self._world.workers.run(export.parts)
        part = int(head["part"])
        if part >= len(parts):
            raise CallerError(Status.ILLEGAL_PARAMETER, f"move {move} has {len(parts)} parts, not {part}")
        one = parts[part]
        return pack({"slots": [list(run) for run in one.slots], "export": one.export, "parts": one.parts}, [one.data])


def _no_room(group: Group) -> CallerError:
    return CallerError(Status.WRITE_PROCESS_REJECT, f"group {group.id}: the disk has no room for a flush")


def _runs(value: Any) -> tuple[tuple[int, int, int], ...]:
    return tuple((int(first), int(last), int(epoch)) for first, last, epoch in value)
