"""Clients that write, delete and read a few cells through random nodes, and note what they did and saw."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from itertools import count

from iotdb_cluster.errors import CallerError, Status
from iotdb_cluster.simulation.client import SimulatedClient
from iotdb_cluster.simulation.history import Action, Count, Delete, History, Last, Operation, Read, State, Write

__all__ = ["Clients", "Register", "Workload", "registers"]

UNKNOWN = frozenset({Status.TIME_OUT, Status.INTERNAL_SERVER_ERROR})
MEASUREMENT = "s1"
REST_S = 0.5  # a client that rests looks so often whether it is over
CHASING = (2, 2)  # readers and writers of a chase
CHASED_MAX = 250  # their operations in one run


@dataclass(frozen=True)
class Register:
    """A series of a few cells. `group`: registers that a dropped storage group takes with it."""

    group: str
    device: str
    times: tuple[int, ...]
    narrow: bool

    @property
    def series(self) -> str:
        return f"{self.device}.{MEASUREMENT}"


def registers(partition_ms: int) -> list[Register]:
    """Two storage groups that stay and one that is dropped; cells in one time partition, and in one each."""
    narrow = tuple(partition_ms * 3 + step for step in (100, 200, 300))
    wide = tuple(partition_ms * step + 7 for step in (1, 4, 9))
    return [
        Register("root.sim0", "root.sim0.d0", narrow, narrow=True),
        Register("root.sim0", "root.sim0.d1", wide, narrow=False),
        Register("root.sim1", "root.sim1.d0", narrow, narrow=True),
        Register("root.sim1", "root.sim1.d1", narrow[:1], narrow=True),
        Register("root.gone", "root.gone.d0", narrow, narrow=True),
    ]


@dataclass(slots=True)
class Workload:
    """What is wished for how often, drawn from the seed. Weights need not sum to one."""

    weights: dict[str, float]
    pause_ms: tuple[float, float] = (0.0, 80.0)
    burst: int = 8  # operations that a client does one right after the other, before a long pause
    stay: float = 0.7  # the chance that a client asks the node again that it asked before

    @classmethod
    def draw(cls, rng: random.Random) -> Workload:
        weights = {"write": 40.0, "point": 25.0, "all": 10.0, "last": 8.0, "count": 6.0}
        rare = {"delete": 5.0, "delete series": 2.0, "drop group": 0.7, "flush": 1.5, "create": 1.0}
        weights.update(
            {wish: weight * rng.choice((0.3, 1.0, 3.0)) for wish, weight in rare.items() if rng.random() < 0.7}
        )
        return cls(weights, (0.0, rng.choice((2.0, 10.0, 50.0))), rng.choice((1, 8, 30)), rng.choice((0.0, 0.7, 0.95)))


@dataclass
class Clients:
    """All clients of a run, their histories, and the order of everything."""

    registers: Sequence[Register]
    workload: Workload
    histories: dict[str, History] = field(default_factory=dict)
    moments: count[int] = field(default_factory=lambda: count(1))
    values: count[int] = field(default_factory=lambda: count(1))
    chases: count[int] = field(default_factory=lambda: count(1))
    acknowledged: int = 0
    unknown: int = 0
    refused: int = 0
    begun: int = 0  # operations of the clients that `run`
    chased: int = 0  # operations of those that `chase`
    hurry: bool = False  # no more rests between them
    refusals: dict[str, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for register in self.registers:
            self.histories[register.series] = History(len(register.times), register.narrow)

    async def run(
        self, name: str, rng: random.Random, sessions: Sequence[SimulatedClient], between_ms: float, operations: int
    ) -> None:
        """One client, until all have begun `operations`: bursts of them, one every `between_ms` taken together."""
        wishes, weights = list(self.workload.weights), list(self.workload.weights.values())
        session = rng.choice(sessions)
        low, high = self.workload.pause_ms
        left = rng.randint(1, self.workload.burst)
        while self.begun < operations:
            if not left:
                left = rng.randint(1, 2 * self.workload.burst - 1)
                rests = rng.uniform(0.0, 2.0) * left * between_ms / 1000
                while rests > 0 and not self.hurry:
                    await asyncio.sleep(min(rests, REST_S))
                    rests -= REST_S
            left -= 1
            self.begun += 1
            if rng.random() >= self.workload.stay:
                session = rng.choice(sessions)
            (wish,) = rng.choices(wishes, weights)
            if not await self.act(name, rng, session, rng.choice(self.registers), wish):
                session = rng.choice(sessions)
                await asyncio.sleep(rng.uniform(0.01, 0.2))
            await asyncio.sleep(rng.uniform(low, high) / 1000)

    async def chase(
        self,
        rng: random.Random,
        chased: Callable[[], SimulatedClient],
        others: Callable[[], Sequence[SimulatedClient]],
        registers: Sequence[Register],
        over: Callable[[], bool],
    ) -> None:
        """Some keep reading through one node, whatever becomes of it, while others write through the rest."""
        every = rng.choice((0.05, 0.1, 0.15))

        def done() -> bool:
            self.chased += 1
            return over() or self.chased > CHASED_MAX

        async def reads(name: str) -> None:
            session = chased()
            while not done():
                await self.read(name, rng, session, rng.choice(registers), rng.choice(("point", "all", "last")))
                await asyncio.sleep(rng.uniform(0.0, 2.0) * every)
            session.drop()

        async def writes(name: str) -> None:
            sessions = others()
            while not done():
                await self.write(name, rng, rng.choice(sessions), rng.choice(registers))
                await asyncio.sleep(rng.uniform(0.0, 2.0) * every)
            for session in sessions:
                session.drop()

        number = next(self.chases)
        await asyncio.gather(
            *(reads(f"chaser{number}r{one}") for one in range(CHASING[0])),
            *(writes(f"chaser{number}w{one}") for one in range(CHASING[1])),
        )

    async def act(self, name: str, rng: random.Random, session: SimulatedClient, register: Register, wish: str) -> bool:
        """Carry out one wish; whether it was granted."""
        if wish == "write":
            return await self.write(name, rng, session, register)
        if wish == "delete":
            first = rng.randrange(len(register.times))
            last = rng.randrange(first, len(register.times))
            low, high = register.times[first], register.times[last]
            text = f"DELETE FROM {register.series} WHERE time >= {low} AND time <= {high}"
            return await self._change(name, [register], Delete(first, last), lambda: session.execute(text))
        if wish == "delete series":
            every = Delete(0, len(register.times) - 1)
            return await self._change(
                name, [register], every, lambda: session.execute(f"DELETE TIMESERIES {register.series}")
            )
        if wish == "drop group":
            return await self._drop(name, session)
        if wish in ("flush", "create"):
            text = "FLUSH"
            if wish == "create":
                text = f"CREATE TIMESERIES {register.series} WITH DATATYPE=DOUBLE, ENCODING=GORILLA"
            return await self._change(name, [], None, lambda: session.execute(text))
        return await self.read(name, rng, session, register, wish)

    async def write(self, name: str, rng: random.Random, session: SimulatedClient, register: Register) -> bool:
        cell, value = rng.randrange(len(register.times)), float(next(self.values))
        time = register.times[cell]
        text = f"INSERT INTO {register.device}(timestamp, {MEASUREMENT}) VALUES ({time}, {value})"
        if rng.random() < 0.25:
            return await self._change(name, [register], Write(cell, value), lambda: session.execute(text))
        return await self._change(
            name, [register], Write(cell, value), lambda: session.insert(register.device, MEASUREMENT, time, value)
        )

    async def _drop(self, name: str, session: SimulatedClient) -> bool:
        group = self.registers[-1].group
        gone = [register for register in self.registers if register.group == group]
        every = Delete(0, len(gone[0].times) - 1)
        return await self._change(name, gone, every, lambda: session.execute(f"DELETE STORAGE GROUP {group}"))

    async def _change(
        self, name: str, of: Sequence[Register], action: Action | None, call: Callable[[], Awaitable[None]]
    ) -> bool:
        invoked = next(self.moments)
        returned: int | None = None
        try:
            await call()
            returned = next(self.moments)
            self.acknowledged += 1
        except CallerError as error:
            codes = {error.code, *(part.code for part in error.parts if part is not None)}
            if not codes & UNKNOWN:
                self._refused(error)
                if isinstance(action, Delete) and Status.TIMESERIES_NOT_EXIST in codes:
                    nothing = Read(0, (None,) * (action.last + 1))
                    self._note(of, Operation(name, invoked, next(self.moments), nothing))
                    return True
                return False
            self.unknown += 1
        if action is not None:
            self._note(of, Operation(name, invoked, returned, action))
        return returned is not None

    def _refused(self, error: CallerError) -> None:
        self.refused += 1
        text = f"{int(error.code)} {error.message[:60]}"
        self.refusals[text] = self.refusals.get(text, 0) + 1

    def _note(self, of: Sequence[Register], operation: Operation) -> None:
        for register in of:
            self.histories[register.series].operations.append(operation)

    async def read(
        self, name: str, rng: random.Random, session: SimulatedClient, register: Register, wish: str
    ) -> bool:
        times = register.times
        first = rng.randrange(len(times))
        last = rng.randrange(first, len(times))
        invoked = next(self.moments)
        try:
            if wish == "point":
                action = await self._point(session, register, first)
            elif wish == "last":
                action = await self._last(session, register)
            elif wish == "count":
                action = await self._count(session, register, first, last)
            else:
                action = await self._all(session, register)
        except CallerError as error:
            if error.code not in UNKNOWN:
                self._refused(error)
            return False
        self._note([register], Operation(name, invoked, next(self.moments), action))
        return True

    async def _point(self, session: SimulatedClient, register: Register, cell: int) -> Action:
        rows = await session.query(f"SELECT {MEASUREMENT} FROM {register.device} WHERE time = {register.times[cell]}")
        return Read(cell, _cells(register, rows)[cell : cell + 1])

    async def _all(self, session: SimulatedClient, register: Register) -> Action:
        return Read(0, _cells(register, await session.query(f"SELECT {MEASUREMENT} FROM {register.device}")))

    async def _last(self, session: SimulatedClient, register: Register) -> Action:
        rows = await session.query(f"SELECT LAST {MEASUREMENT} FROM {register.device}")
        if not rows:
            return Last(-1, None)
        time, (_, value, *_) = rows[0]
        return Last(register.times.index(time), float(value) if value is not None else None)

    async def _count(self, session: SimulatedClient, register: Register, first: int, last: int) -> Action:
        low, high = register.times[first], register.times[last]
        rows = await session.query(
            f"SELECT count({MEASUREMENT}) FROM {register.device} WHERE time >= {low} AND time <= {high}"
        )
        number = rows[0][1][0] if rows else 0
        return Count(first, last, int(number or 0))


def _cells(register: Register, rows: Sequence[tuple[int, tuple[object, ...]]]) -> State:
    found = {time: value for time, (value,) in rows}
    if len(found) != len(rows) or not set(found) <= set(register.times):
        raise AssertionError(f"{register.series} has rows that nobody wrote: {rows}")
    return tuple(value if isinstance(value, float) else None for value in map(found.get, register.times))
