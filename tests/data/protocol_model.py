"""A model of the protocol of inserts, units, floors and delete intents, run on real `DataGroup`s.

One schedule is a seed. Two coordinators with caches of their own, and a driver of deletes that dies and is replaced,
send entries to three groups; messages are delayed, reordered, doubled, and answers are lost. Every operation on a cell
(series, time) is noted with the moments of its beginning and end, and reads are held against these:

* a value that is read was written, was not refused, and no acknowledged write or delete stands between it and the read;
* a cell that reads empty has no acknowledged write that no delete can have removed.

    python tests/data/protocol_model.py --schedules 20000 --seed 1 [--without PART]

`--without` takes one part of the protocol away, which must make schedules fail.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import time as clock
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any
from unittest import mock

import numpy as np

from iotdb_cluster.columns import Column, DataType, Tablet, shape_of
from iotdb_cluster.data import (
    DataGroup,
    DeleteAction,
    DeleteIntent,
    DeleteProgress,
    EnsureSeries,
    Header,
    IntentKind,
    ListPartition,
    NotReady,
    OpenUnit,
    Own,
    Result,
    Retiring,
    decode_header,
    due_actions,
    encode,
    encode_insert,
)
from iotdb_cluster.data import (
    group as group_module,
)
from iotdb_cluster.data.state import StorageGroupState
from iotdb_cluster.errors import CallerError, Moved, OutcomeUnknown, StaleSchema, Status
from iotdb_cluster.limits import INT64_MAX, INT64_MIN
from iotdb_cluster.requests import NO_REQUEST, Admission, RequestId, RequestWindow
from iotdb_cluster.schema import PathPattern, SeriesSpec
from iotdb_cluster.simulation import SimulatedDisk

STORAGE_GROUP, PATH, DEVICE = 5, "root.sg", "root.sg.d"
SERIES = ("s1", "s2")
INTERVAL = 10
SCHEMA_SLOT = 100
SLOTS = {0: 100, 1: 101, 2: 102}  # partition -> slot; slot n belongs to group n - 100
TIMES = [0, 10, 20]
Cell = tuple[str, int]


class GaveUp(Exception):
    """The coordinator waits no longer: the outcome of its request is unknown."""


@dataclass(slots=True)
class Operation:
    """A write of `value`, or a delete (None), of `cells`. `end` None: unknown; `refused`: it has no effect.

    A delete counts as refused if its request was never applied: what its coordinator heard may be about another try.
    """

    cells: frozenset[Cell]
    value: int | None
    begin: int
    end: int | None = None
    refused: bool = False
    request: RequestId = field(default=NO_REQUEST, repr=False)


@dataclass(slots=True)
class Read:
    begin: int
    end: int
    found: dict[Cell, int]


@dataclass(slots=True)
class Call:
    """An entry for the group that owns `slot`; repeated as it is until it is answered or given up."""

    slot: int
    payload: bytes


class Replica:
    """A group with its log; a restart replays the log from the newest checkpoint."""

    def __init__(self, number: int) -> None:
        self.number = number
        self.files = SimulatedDisk()
        self.log: list[bytes] = []
        self.waiting: list[tuple[bytes, Callable[[Result], None]]] = []
        self.group = DataGroup.open(number, self.files, f"group{number}")
        self.taken: set[RequestId] = set()

    def append(self, payload: bytes) -> Result:
        self.log.append(payload)
        result = self.group.apply(len(self.log), 1, payload)
        if result.error is None:
            self.taken.add(decode_header(payload)[1].request)
        return result

    def restart(self) -> None:
        self.group = DataGroup.open(self.number, self.files, f"group{self.number}")
        rest = self.log[self.group.applied :]
        self.group.apply_many(self.group.applied + 1, [1] * len(rest), rest)


class Schedule:
    """The world of one seed: a pool of things that can happen next, of which a random one does."""

    def __init__(self, seed: int, unlisted: bool = False) -> None:
        self.random = random.Random(seed)
        self.unlisted = unlisted
        self.now = 0
        self.pool: list[Callable[[], None]] = []
        self.replicas = {slot: Replica(slot - 100) for slot in SLOTS.values()}
        self.epochs = dict.fromkeys(SLOTS.values(), 1)
        self.meta_index = 1
        self.operations: list[Operation] = []
        self.reads: list[Read] = []
        self.running = 0
        self.chaos = True
        for slot in SLOTS.values():
            if slot == SCHEMA_SLOT or self.chance(0.5):
                self.own(slot)
            else:
                self.later(lambda slot=slot: self.own(slot))  # type: ignore[misc]
        self.progress = DeleteProgress()
        self.values = 0

    # --- what happens -------------------------------------------------------------------------------------------------

    def chance(self, probability: float) -> bool:
        return self.chaos and self.random.random() < probability

    def later(self, event: Callable[[], None]) -> None:
        self.pool.append(event)

    def after(self, rounds: int, event: Callable[[], None]) -> None:
        """As `later`, `rounds` times over."""
        self.later(event if rounds <= 0 else lambda: self.after(rounds - 1, event))

    def step(self) -> None:
        self.now += 1
        at = self.random.randrange(len(self.pool))
        self.pool[at], self.pool[-1] = self.pool[-1], self.pool[at]
        self.pool.pop()()

    def own(self, slot: int) -> None:
        self.meta_index += 1
        self.replicas[slot].append(encode(Header(NO_REQUEST), Own(((slot, slot, self.epochs[slot]),), self.meta_index)))

    def raise_epoch(self) -> None:
        slot = self.random.choice(list(SLOTS.values()))
        self.epochs[slot] += 1
        if self.chance(0.5):
            self.own(slot)
        else:
            self.later(lambda: self.own(slot))

    def disturb(self) -> None:
        replica = self.replicas[self.random.choice(list(SLOTS.values()))]
        what = self.random.random()
        if what < 0.3:
            self.raise_epoch()
        elif what < 0.6:
            self.progress = DeleteProgress()
        elif what < 0.8:
            replica.group.checkpoint_now()
        else:
            replica.restart()

    # --- messages -----------------------------------------------------------------------------------------------------

    def send(self, slot: int, payload: bytes, answer: Callable[[Result], None]) -> None:
        replica = self.replicas[slot]

        def commit() -> None:
            if replica.waiting:
                entry, told = replica.waiting.pop(0)
                result = replica.append(entry)
                if not self.chance(0.1):
                    self.later(lambda: told(result))

        def deliver() -> None:
            if self.chance(0.25):
                self.after(self.random.randrange(30), deliver)
            try:
                replica.group.validate(payload)
            except CallerError as error:
                refusal = Result(error=error)
                self.later(lambda: answer(refusal))
                return
            replica.waiting.append((payload, answer))
            self.later(commit)

        self.later(deliver)

    def start(self, task: Generator[Call | None, Any, None]) -> None:
        self.running += 1
        self.later(lambda: self.resume(task, None, None))

    def resume(self, task: Generator[Call | None, Any, None], value: Any, error: Exception | None) -> None:
        try:
            call = task.send(value) if error is None else task.throw(error)
        except StopIteration:
            self.running -= 1
            return
        if call is None:
            self.later(lambda: self.resume(task, None, None))
            return
        done = False

        def answered(result: Result) -> None:
            nonlocal done
            if not done:
                done = True
                self.resume(task, result.value, result.error)

        tries = 0

        def impatient() -> None:
            nonlocal done, tries
            if done:
                return
            tries += 1
            if self.chaos and tries > 12:
                done = True
                self.resume(task, None, GaveUp())
                return
            if tries % 3 == 0:
                self.send(call.slot, call.payload, answered)
            self.later(impatient)

        self.send(call.slot, call.payload, answered)
        self.later(impatient)

    # --- the driver of deletes ----------------------------------------------------------------------------------------

    def drive(self) -> None:
        progress = self.progress
        for action in due_actions(self.replicas[SCHEMA_SLOT].group, progress):
            if not self.chance(0.4):
                self.perform(progress, action)
        if self.running or any(self.replicas[SCHEMA_SLOT].group.intents(STORAGE_GROUP)):
            self.later(self.drive)

    def perform(self, progress: DeleteProgress, action: DeleteAction) -> None:
        progress.started(action)
        over = False

        def told(result: Result) -> None:
            nonlocal over
            if not over:
                over = True
                if result.error is None:
                    progress.finished(action)
                else:
                    progress.postponed(action)

        waited = 0

        def time_out() -> None:
            nonlocal over, waited
            waited += 1
            if over:
                return
            if waited < 4:
                self.later(time_out)
                return
            over = True
            progress.postponed(action)

        slot = action.header.slot
        payload = encode(action.header._replace(slot_epoch=self.epochs[slot]), action.body)
        self.send(slot, payload, told)
        if self.chance(0.5):  # a driver that went has sent it too, and it comes late
            self.after(self.random.randrange(20, 50), lambda: self.send(slot, payload, told))
        self.later(time_out)

    # --- the whole ----------------------------------------------------------------------------------------------------

    def run(self) -> str:
        """Why the schedule's history is wrong; empty where it is right."""
        coordinators = [Coordinator(self, 1), Coordinator(self, 2)]
        for _ in range(self.random.randrange(8, 24)):
            self.start(self.random.choice(coordinators).any_operation())
        self.later(self.drive)
        for turn in range(20_000):
            if not self.running and not self.replicas[SCHEMA_SLOT].group.intents(STORAGE_GROUP) and not self.pool:
                break
            if not self.pool:  # a late message began a delete after the driver had gone
                self.later(self.drive)
            if turn > 1_500:
                self.chaos = False
            if self.chance(0.02):
                self.disturb()
            self.step()
        else:
            return f"the schedule does not end: {self.running} operations run"
        for replica in self.replicas.values():
            replica.restart()
        self.start(coordinators[0].read())
        while self.pool:
            self.step()
        for one in self.operations:
            if one.value is None:
                one.refused = one.request not in self.replicas[SCHEMA_SLOT].taken
        return verdict(self.operations, self.reads)


class Coordinator:
    """A node that clients ask: it caches what it resolved and which units it opened, and hears of nothing."""

    def __init__(self, world: Schedule, node: int) -> None:
        self.world = world
        self.node = node
        self.next = self.low = 1
        self.finished: set[int] = set()
        self.types: dict[str, tuple[DataType, int]] = {}
        self.opened: set[int] = set()
        self.epochs = dict.fromkeys(SLOTS.values(), 1)

    def take(self) -> RequestId:
        self.next += 1
        return RequestId(self.node, 1, self.next - 1, self.low)

    def finish(self, request: RequestId) -> None:
        self.finished.add(request.sequence)
        while self.low in self.finished:
            self.low += 1

    def header(self, request: RequestId, partition: int, slot: int, schema_epoch: int = 0) -> Header:
        return Header(request, STORAGE_GROUP, slot, self.epochs[slot], schema_epoch, partition)

    def learn(self) -> None:
        self.epochs = dict(self.world.epochs)

    def any_operation(self) -> Generator[Call | None, Any, None]:
        what = self.world.random.random()
        if what < 0.5:
            return self.insert()
        if what < 0.7:
            return self.delete(IntentKind.TIMESERIES)
        if what < 0.8:
            return self.delete(IntentKind.RANGE)
        return self.read()

    def pause(self) -> Iterator[None]:
        for _ in range(self.world.random.randrange(25)):
            yield None

    def patiently(self, make: Callable[[], tuple[int, bytes]]) -> Generator[Call | None, Any, Any]:
        """Propose until it is taken; what is made anew at each try must not be able to take effect twice."""
        for _ in range(60):
            slot, payload = make()
            try:
                return (yield Call(slot, payload))
            except Moved:
                self.learn()
            except (NotReady, Retiring):
                self.learn()
            yield None
        raise GaveUp

    # --- inserts ------------------------------------------------------------------------------------------------------

    def resolve(self) -> Generator[Call | None, Any, None]:
        wanted = [name for name in SERIES if name not in self.types]
        if not wanted:
            return
        kind = self.world.random.choice([DataType.INT64, DataType.INT32])
        body = EnsureSeries(PATH, tuple(SeriesSpec.default(f"{DEVICE}.{name}", kind) for name in wanted))
        request = self.take()
        try:
            answer = yield from self.patiently(
                lambda: (SCHEMA_SLOT, encode(self.header(request, 0, SCHEMA_SLOT), body))
            )
        finally:
            self.finish(request)
        for name, found in zip(wanted, answer["series"], strict=True):
            if isinstance(found, int):
                self.types[name] = (DataType(found), answer["epoch"])

    def open(self, partition: int) -> Generator[Call | None, Any, None]:
        if partition in self.opened:
            return
        slot = SLOTS[partition]
        listing: Any = {"floor": 0, "last_intent": 0}
        if not self.world.unlisted:
            listing = yield from self.patiently(
                lambda: (SCHEMA_SLOT, encode(self.header(NO_REQUEST, partition, SCHEMA_SLOT), ListPartition(slot)))
            )
        opening = OpenUnit(listing["floor"], listing["last_intent"])
        yield from self.patiently(lambda: (slot, encode(self.header(NO_REQUEST, partition, slot), opening)))
        self.opened.add(partition)

    def insert(self) -> Generator[Call | None, Any, None]:
        """One value into one cell or two of one row."""
        world = self.world
        yield from self.pause()
        time = world.random.choice(TIMES)
        wanted = world.random.choice([SERIES, SERIES[:1], SERIES[1:]])
        world.values += 1
        operation = Operation(frozenset((name, time) for name in wanted), world.values, world.now, refused=True)
        world.operations.append(operation)
        try:
            for _ in range(8):
                yield from self.resolve()
                if not world.chance(0.4):  # else it believes that the unit is open
                    yield from self.open(time // INTERVAL)
                if all(name in self.types for name in wanted):
                    taken = yield from self.write(operation, wanted, time)
                    if taken:
                        return
                self.types.clear()
                self.learn()
        except GaveUp:
            return

    def write(self, operation: Operation, wanted: tuple[str, ...], time: int) -> Generator[Call | None, Any, bool]:
        types = tuple(self.types[name][0] for name in wanted)
        columns = [Column.of(kind, [operation.value]) for kind in types]
        tablet = Tablet(DEVICE, shape_of(wanted, types), np.array([time], np.int64), columns)
        partition = time // INTERVAL
        epoch = min(self.types[name][1] for name in wanted)
        request = self.take()
        payload = encode_insert(self.header(request, partition, SLOTS[partition], epoch), [tablet])
        operation.refused = False
        try:
            for _ in range(40):
                try:
                    yield Call(SLOTS[partition], payload)
                except (Moved, StaleSchema):
                    operation.refused = True
                    return False
                except NotReady:
                    self.opened.discard(partition)
                    yield from self.open(partition)
                else:
                    operation.end = self.world.now
                    return True
            raise GaveUp
        finally:
            self.finish(request)

    # --- deletes ------------------------------------------------------------------------------------------------------

    def delete(self, kind: IntentKind) -> Generator[Call | None, Any, None]:
        world = self.world
        yield from self.pause()
        names = world.random.choice([SERIES, SERIES[:1], SERIES[1:]])
        low, high, first, last = INT64_MIN, INT64_MAX, INT64_MIN, INT64_MAX
        if kind is IntentKind.RANGE:
            low, high = sorted(world.random.choices(TIMES, k=2))
            first, last = low // INTERVAL, high // INTERVAL
        cells = frozenset((name, time) for name in names for time in TIMES if low <= time <= high)
        operation = Operation(cells, None, world.now)
        world.operations.append(operation)
        patterns = tuple(PathPattern.exact(f"{DEVICE}.{name}") for name in names)
        body = DeleteIntent(kind, patterns, low, high, first, last)
        request = operation.request = self.take()
        try:
            answer = yield from self.patiently(
                lambda: (SCHEMA_SLOT, encode(self.header(request, 0, SCHEMA_SLOT), body))
            )
        except (GaveUp, OutcomeUnknown):
            return
        except CallerError as error:
            if error.code != Status.TIMESERIES_NOT_EXIST:
                raise
            return
        finally:
            self.finish(request)
        while answer["intent"] and not self.retired(answer["intent"]):
            yield None
        operation.end = world.now

    def retired(self, number: int) -> bool:
        return self.world.replicas[SCHEMA_SLOT].group.is_retired(STORAGE_GROUP, number)

    # --- reads --------------------------------------------------------------------------------------------------------

    def read(self) -> Generator[Call | None, Any, None]:
        """Every cell: plan at the schema slot, then each unit at its own moment."""
        world = self.world
        yield from self.pause()
        begin = world.now
        for _ in range(30):
            found: dict[Cell, int] = {}
            self.learn()
            try:
                schema = world.replicas[SCHEMA_SLOT].group.schema(STORAGE_GROUP, SCHEMA_SLOT, self.epochs[SCHEMA_SLOT])
                if schema is not None:
                    series = [(one.measurement, one.type) for one in schema.tree.match(PathPattern.parse(DEVICE))]
                    epoch, partitions = schema.epoch, sorted(schema.directory)
                    for partition in partitions:
                        for _ in range(world.random.randrange(4) if world.chaos else 0):
                            yield None
                        self.read_unit(partition, epoch, series, found)
            except (StaleSchema, Moved, NotReady):
                yield None
                continue
            world.reads.append(Read(begin, world.now, found))
            return

    def read_unit(self, partition: int, epoch: int, series: list[tuple[str, DataType]], found: dict[Cell, int]) -> None:
        slot = SLOTS[partition]
        group = self.world.replicas[slot].group
        try:
            reader = group.reader(STORAGE_GROUP, partition, slot, self.epochs[slot], epoch)
        except NotReady as refusal:
            if not refusal.unit_closed:
                raise
            return
        for name, kind in series:
            for times, values in reader.read(DEVICE, name, kind, INT64_MIN, INT64_MAX):
                for time, value in zip(times.tolist(), values.tolist(), strict=True):
                    found[name, time] = value
        reader.close()


# --- the checker ------------------------------------------------------------------------------------------------------


def verdict(operations: list[Operation], reads: list[Read]) -> str:
    """What no single server could have answered; empty where there is nothing of it."""
    for read in reads:
        for cell in [(name, time) for name in SERIES for time in TIMES]:
            about = [one for one in operations if cell in one.cells and not one.refused and one.begin <= read.end]
            value = read.found.get(cell)
            wrong = _empty(about, read) if value is None else _shown(about, read, value)
            if wrong:
                return f"{cell} reads {value} at {read.begin}..{read.end}: {wrong}"
    return ""


def _shown(about: list[Operation], read: Read, value: int) -> str:
    writes = [one for one in about if one.value == value]
    if not writes:
        return "nobody wrote that, or it was refused"
    [write] = writes
    for other in about:
        if write.end is not None and other.end is not None and write.end < other.begin and other.end < read.begin:
            return f"{write} was followed by {other}"
    return ""


def _empty(about: list[Operation], read: Read) -> str:
    deletes = [one for one in about if one.value is None]
    for write in about:
        if write.value is None or write.end is None or write.end >= read.begin:
            continue
        if not any(delete.end is None or delete.end > write.begin for delete in deletes):
            return f"{write} is lost"
    return ""


# --- taking parts away ------------------------------------------------------------------------------------------------


def _no_floor(*_: Any) -> None:
    return None


def _always_new(self: RequestWindow, request: RequestId) -> Admission:
    del self, request
    return Admission.NEW


def _unnumbered(self: DataGroup, index: int, header: Header, body: Any, repeat: bool) -> Any:
    unit = self._open_if_closed(index, header, body.opening)
    unit.last_intent = 0
    return _delete_unit(self, index, header, body.__class__(body.number, 0, body.delete, body.opening), repeat)


_delete_unit = DataGroup._delete_unit


def _retire_at_once(self: DeleteProgress, storage_group: int, intent: Any) -> list[int]:
    del self, storage_group, intent
    return []


def _no_record(self: RequestWindow, request: RequestId) -> None:
    del self, request


PARTS: dict[str, Callable[[], Any]] = {
    "floor": lambda: mock.patch.object(group_module, "check_floor", _no_floor),
    "request-ids": lambda: mock.patch.object(RequestWindow, "record", _no_record),
    "intent-numbers": lambda: mock.patch.object(DataGroup, "_delete_unit", _unnumbered),
    "retiring": lambda: mock.patch.object(StorageGroupState, "check_not_retiring", _no_floor),
    "units-first": lambda: mock.patch.object(DeleteProgress, "missing", _retire_at_once),
}
SWITCHES = {"listing": {"unlisted": True}}


@contextmanager
def without(part: str) -> Iterator[dict[str, bool]]:
    """Run schedules with the yielded keywords, one part of the protocol taken away ("": none)."""
    if part in PARTS:
        with PARTS[part]():
            yield {}
    else:
        yield SWITCHES[part] if part else {}


def run_schedules(first: int, count: int, part: str = "", stop_at: int = 0) -> list[tuple[int, str]]:
    """(seed, what is wrong) of the seeds first .. first + count - 1 that fail; ends after `stop_at` of them if > 0."""
    failures: list[tuple[int, str]] = []
    with without(part) as switches:
        for seed in range(first, first + count):
            wrong = Schedule(seed, **switches).run()
            if wrong:
                failures.append((seed, wrong))
                if stop_at and len(failures) >= stop_at:
                    break
    return failures


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--schedules", type=int, default=300)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--without", default="", choices=["", *PARTS, *SWITCHES])
    arguments = parser.parse_args()
    began = clock.monotonic()
    failures = run_schedules(arguments.seed, arguments.schedules, arguments.without)
    for seed, wrong in failures[:10]:
        print(f"seed {seed}: {wrong}")
    ok = bool(failures) == bool(arguments.without)
    print(
        json.dumps(
            {
                "target": "protocol-model",
                "ok": ok,
                "schedules": arguments.schedules,
                "without": arguments.without,
                "failed": len(failures),
                "seed": arguments.seed,
                "seconds": round(clock.monotonic() - began, 1),
            }
        )
    )
    return 0 if ok else 1


if __name__ == "__main__":
    sys.exit(main())
