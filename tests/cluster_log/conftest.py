"""A durable log on a simulated disk in virtual time, and a naive model of what it must hold."""

from __future__ import annotations

import asyncio
import copy
import random
from collections.abc import Callable, Coroutine, Iterator, Sequence
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import pytest

from iotdb_cluster.cluster.log import (
    Append,
    Compact,
    Configuration,
    DurableLog,
    Install,
    LogOptions,
    Record,
    Remove,
    ReplicaLog,
    State,
)
from iotdb_cluster.raft import ConfState, Entries, HardState
from iotdb_cluster.simulation import PowerCut, SimulatedDisk, SimulatedWorkers, VirtualLoop

BLOCK = 4096
DIRECTORY = "/node/log"


@dataclass
class ModelReplica:
    """What one replica's log holds, as plainly as can be."""

    hard_state: HardState = field(default_factory=HardState)
    conf_state: ConfState = field(default_factory=ConfState)
    mark: tuple[int, int] = (0, 0)
    configured: int = 0
    entries: dict[int, tuple[int, int, bytes]] = field(default_factory=dict)

    @property
    def last(self) -> int:
        return max(self.entries, default=self.mark[0])


class Model:
    def __init__(self) -> None:
        self.replicas: dict[int, ModelReplica] = {}

    def apply(self, record: Record) -> None:
        if isinstance(record, Remove):
            self.replicas.pop(record.replica, None)
            return
        replica = self.replicas.setdefault(record.replica, ModelReplica())
        if isinstance(record, State):
            replica.hard_state = record.hard_state
        elif isinstance(record, Configuration):
            replica.conf_state, replica.configured = record.conf_state, record.index
        elif isinstance(record, Append):
            entries = record.entries
            replica.entries = {i: entry for i, entry in replica.entries.items() if i < entries.first}
            for at in range(len(entries)):
                replica.entries[entries.first + at] = (entries.terms[at], entries.kinds[at], entries.data[at])
        elif isinstance(record, Compact):
            if record.index > replica.mark[0]:
                replica.mark = (record.index, record.term)
                replica.entries = {i: entry for i, entry in replica.entries.items() if i > record.index}
        elif isinstance(record, Install):
            replica.mark = (record.index, record.term)
            replica.conf_state, replica.configured = record.conf_state, record.index
            replica.entries = {}


def contents_of(log: ReplicaLog) -> ModelReplica:
    found = ModelReplica(log.hard_state, log.conf_state, log.compacted, configured=log.configured)
    index = log.first_index()
    while index <= log.last_index():
        entries = log.entries(index, log.last_index() + 1, 10_000)
        for at in range(len(entries)):
            found.entries[index + at] = (entries.terms[at], entries.kinds[at], entries.data[at])
            assert log.term(index + at) == entries.terms[at]
            assert log.has_changes(index + at, index + at + 1) == (entries.kinds[at] > 0)
        index = entries.last + 1
    return found


def holds(log: DurableLog) -> dict[int, ModelReplica]:
    return {replica: contents_of(log.view(replica)) for replica in log.replicas()}


class Generator:
    """Random submissions that a consensus core could make, given what was submitted before."""

    def __init__(self, rng: random.Random, replicas: int = 3, payload_max: int = 3_000) -> None:
        self.rng = rng
        self.replicas = replicas
        self.payload_max = payload_max

    def submission(self, model: Model) -> list[Record]:
        rng = self.rng
        replica = rng.randint(1, self.replicas)
        state = model.replicas.get(replica, ModelReplica())
        records: list[Record] = []
        term = max([state.hard_state.term, state.mark[1], *(entry[0] for entry in state.entries.values())])
        if rng.random() < 0.3:
            term += rng.random() < 0.3
            records.append(State(replica, HardState(max(term, 1), rng.randint(0, 3), rng.randint(0, state.last))))
        action = rng.random()
        if action < 0.7:
            first = state.last + 1
            if rng.random() < 0.2 and state.entries:
                first = rng.randint(min(state.entries), state.last)
            count = rng.choice((1, 1, 2, 5))
            below = state.entries.get(first - 1, (state.mark[1], 0, b""))[0]
            terms = sorted(rng.randint(below, max(term, below) + 1) for _ in range(count))
            data = [self._payload(rng.choice((0, 10, 200, self.payload_max))) for _ in range(count)]
            kinds = [rng.randint(0, 2) for _ in range(count)]
            records.append(Append(replica, Entries(first, terms, kinds, data)))
        elif action < 0.88 and state.entries:
            index = rng.randint(min(state.entries), state.last)
            records.append(Compact(replica, index, state.entries[index][0]))
        elif action < 0.92:
            voters = tuple(range(rng.randint(0, 4)))
            records.append(
                Configuration(
                    replica,
                    ConfState(voters, (9,), (), (7, 8), rng.random() < 0.5),
                    rng.randrange(99),
                    rng.randrange(9),
                    8,
                )
            )
        elif action < 0.96:
            index = state.last + rng.randint(1, 20)
            records.append(Install(replica, index, term + 1, ConfState((1, 2, 3))))
        elif action < 0.98:
            records = [Remove(replica)]
        return records

    def _payload(self, size: int) -> bytes:
        """Half of them can be compressed."""
        return (
            self.rng.randbytes(size) if self.rng.random() < 0.5 else (b"%d " % self.rng.getrandbits(60)) * (size // 20)
        )


class Bench:
    """Opens, drives and crashes one log."""

    def __init__(self, seed: int, **options: Any) -> None:
        self.rng = random.Random(seed)
        self.loop = VirtualLoop()
        self.loop.set_exception_handler(lambda loop, context: None)  # noqa: ARG005
        self.disk = SimulatedDisk(self.rng, directories=("/node",))
        self.options = LogOptions(
            **{"segment_bytes": 16 * BLOCK, "batch_bytes_max": 6 * BLOCK, "cache_bytes_max": 20_000, **options}
        )
        self.faults: list[BaseException] = []

    def open(self, **options: Any) -> DurableLog:
        chosen = LogOptions(**{**{name: getattr(self.options, name) for name in self.options.__slots__}, **options})
        return DurableLog.open(
            self.disk.mount(),
            DIRECTORY,
            self.rng,
            chosen,
            workers=SimulatedWorkers(self.loop, self.rng),
            on_fault=self.faults.append,
        )

    def run(self, main: Coroutine[Any, Any, Any]) -> Any:
        return self.loop.run_until_complete(main)

    def write(self, log: DurableLog, submissions: Sequence[Sequence[Record]], close: bool = True) -> list[int]:
        """Submit, wait for the answers, and close; the numbers of the submissions in the order of their answers."""
        answered: list[int] = []

        async def main() -> None:
            writer = asyncio.ensure_future(log.run())
            for number, records in enumerate(submissions):
                log.submit(records, lambda number=number: answered.append(number))
            while len(answered) < len(submissions) and not self.faults:  # noqa: ASYNC110
                await asyncio.sleep(0.001)
            if close:
                await log.close()
                await writer
            else:
                writer.cancel()
                await asyncio.gather(writer, return_exceptions=True)

        self.run(main())
        return answered

    def reopened(self, **options: Any) -> dict[int, ModelReplica]:
        """What the log holds, opened and abandoned."""
        log = self.open(**options)
        found = holds(log)
        log.abandon()
        return found

    def close(self) -> None:
        for task in asyncio.all_tasks(self.loop):
            task.cancel()
        self.loop.run_until_complete(asyncio.sleep(1))
        self.loop.close()


@pytest.fixture
def make_bench() -> Iterator[Callable[..., Bench]]:
    benches: list[Bench] = []

    def make(seed: int = 0, **options: Any) -> Bench:
        benches.append(Bench(seed, **options))
        return benches[-1]

    yield make
    for bench in benches:
        bench.close()


@pytest.fixture
def kit() -> SimpleNamespace:
    """The helpers of this file, by name."""
    return SimpleNamespace(
        BLOCK=BLOCK,
        DIRECTORY=DIRECTORY,
        Generator=Generator,
        Model=Model,
        PowerCut=PowerCut,
        contents_of=contents_of,
        copy=copy,
        holds=holds,
    )
