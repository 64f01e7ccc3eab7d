"""What is going on when the power is cut: writers that insert and delete, and one client that flushes and merges.

Each writer has series of its own and does one thing after another, so it knows what must be there at the end. What was
not answered may have happened, or may happen later: its points may be there or not. A series or storage group whose
drop was not answered is left alone after that, since the drop may come at any time.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from functools import partial

from iotdb_cluster.errors import CallerError, Status
from iotdb_cluster.simulation.client import SimulatedClient

__all__ = ["Points", "flush", "write"]

TIME_STEP = 97
FLUSH_S = 0.4  # between two FLUSH
PAUSE_S = 0.02  # at most, between two calls of a writer
REFUSED_S = 0.05
WISHES = {"insert": 89, "delete": 8, "delete series": 2, "drop group": 1}
UNKNOWN = frozenset({Status.TIME_OUT, Status.INTERNAL_SERVER_ERROR})


@dataclass(slots=True)
class Points:
    """By series and time: what must be there, and what may be."""

    acknowledged: dict[str, dict[int, float]] = field(default_factory=dict)
    maybe: dict[str, dict[int, float]] = field(default_factory=dict)
    deletes: int = 0
    stop: bool = False

    def count(self) -> int:
        """Points that must be there."""
        return sum(map(len, self.acknowledged.values()))

    def gone(self, series: str, low: int, high: int, *, surely: bool) -> None:
        """A delete from `low` to `high`, both included; not `surely`: one without an answer."""
        points = self.acknowledged.setdefault(series, {})
        for time in [time for time in points if low <= time <= high]:
            value = points.pop(time)
            if not surely:
                self.maybe.setdefault(series, {})[time] = value


@dataclass(slots=True)
class _Writer:
    number: int
    rng: random.Random
    clients: Sequence[SimulatedClient]
    points: Points
    count: int = 0  # calls; it gives each insert its time and value
    lives: dict[str, int] = field(default_factory=dict)  # how many names of a kind were left alone

    def _name(self, kind: str) -> str:
        return f"{kind}{self.lives.get(kind, 0) or ''}"

    def _devices(self) -> list[tuple[str, str]]:
        """(kind, device): two in storage groups that the writers share, one in a group of its own."""
        shared = [f"root.cut{group}.d{self.number}x" for group in (0, 1)]
        own = f"root.gone{self.number}x"
        return [*((kind, self._name(kind)) for kind in shared), (own, f"{self._name(own)}.d")]

    async def step(self) -> bool:
        """One call; whether it was granted, or may have been."""
        self.count += 1
        (wish,) = self.rng.choices(list(WISHES), list(WISHES.values()))
        kind, device = self.rng.choice(self._devices())
        if wish == "insert":
            return await self._insert(f"{device}.s1", self.count * TIME_STEP)
        if wish == "delete":
            return await self._delete(f"{device}.s1")
        if wish == "delete series" or not kind.startswith("root.gone"):
            return await self._drop(kind, f"{device}.s1", f"DELETE TIMESERIES {device}.s1")
        return await self._drop(kind, f"{device}.s1", f"DELETE STORAGE GROUP {self._name(kind)}")

    async def _insert(self, series: str, time: int) -> bool:
        device, _, measurement = series.rpartition(".")
        value = float(self.count)
        client = self.rng.choice(self.clients)
        done = await _outcome(lambda: client.insert(device, measurement, time, value))
        if done is not False:
            (self.points.acknowledged if done else self.points.maybe).setdefault(series, {})[time] = value
        return done is not False

    async def _delete(self, series: str) -> bool:
        high = self.rng.randrange(self.count) * TIME_STEP
        low = max(0, high - self.rng.choice((0, 5, 20)) * TIME_STEP)
        done = await self._change(f"DELETE FROM {series} WHERE time >= {low} AND time <= {high}")
        if done is not False:
            self.points.gone(series, low, high, surely=done is True)
        return done is not False

    async def _drop(self, kind: str, series: str, statement: str) -> bool:
        done = await self._change(statement)
        if done is not False:
            self.points.gone(series, 0, self.count * TIME_STEP, surely=done is True)
        if done is None:
            self.lives[kind] = self.lives.get(kind, 0) + 1
        return done is not False

    async def _change(self, statement: str) -> bool | None:
        client = self.rng.choice(self.clients)
        done = await _outcome(lambda: client.execute(statement))
        self.points.deletes += done is True
        return done


async def _outcome(call: Callable[[], Awaitable[None]]) -> bool | None:
    """Whether a call was granted; None where nobody can tell."""
    try:
        await call()
    except CallerError as error:
        codes = {error.code, *(part.code for part in error.parts if part is not None)}
        return None if codes & UNKNOWN else False
    return True


async def write(clients: Sequence[SimulatedClient], number: int, points: Points) -> None:
    """Insert unique values and delete until told to stop; note what became of each."""
    writer = _Writer(number, random.Random(f"powercut:{number}"), clients, points)
    while not points.stop:
        if not await writer.step():
            await asyncio.sleep(REFUSED_S)
        await asyncio.sleep(writer.rng.uniform(0.0, PAUSE_S))


async def flush(clients: Sequence[SimulatedClient], points: Points) -> None:
    """FLUSH again and again: files, manifests and checkpoints are made all the time."""
    turn = 0
    while not points.stop:
        await asyncio.sleep(FLUSH_S)
        turn += 1
        statement = "FLUSH" if turn % 3 else "FULL MERGE"
        await _outcome(partial(clients[turn % len(clients)].execute, statement))
