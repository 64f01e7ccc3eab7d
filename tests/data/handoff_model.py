"""Random histories of slots that move between data groups, held against a dictionary.

One history is a seed. Three groups of two replicas each own slots of two storage groups. Meta, here a table, moves
slots there and back; a move's steps come one by one between inserts (some of them repeated under their old request id),
range deletes, expiry, drops of storage groups, flushes, checkpoints, snapshots, restarts and power cuts; moves are
cancelled, begun again by another leader, staged on one replica alone. After each step:

* an insert under the epoch of the owner that is not fenced is taken, and changes the points once, however often;
* no slot is served by two groups, and none that is fenced;
* what the owner answers is what the dictionary says; the replicas of a group have equal states, and equal points.

    python tests/data/handoff_model.py --histories 2000 --seed 1
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import time as clock
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from iotdb_cluster.columns import Column, DataType, Tablet, shape_of
from iotdb_cluster.data import (
    Body,
    DataGroup,
    DeleteAction,
    DeleteIntent,
    DeleteProgress,
    DeleteUnit,
    Discard,
    Dissolve,
    DropSlots,
    DropStorageGroup,
    EnsureSeries,
    Expire,
    Fence,
    Header,
    Import,
    IntentKind,
    ListPartition,
    Own,
    Ready,
    Result,
    Runs,
    due_actions,
    encode,
    encode_insert,
    runs_of,
)
from iotdb_cluster.errors import CallerError, CorruptData, Status
from iotdb_cluster.limits import INT64_MAX, INT64_MIN
from iotdb_cluster.requests import NO_REQUEST, RequestId
from iotdb_cluster.schema import PathPattern, SeriesSpec
from iotdb_cluster.simulation import PowerCut, SimulatedDisk
from iotdb_cluster.storage import StagedUnit, UnitId

PATHS = {5: "root.a", 6: "root.b"}
SHAPE = shape_of(("s",), (DataType.INT64,))
PARTITIONS = (0, 1, 2)
SLOTS = [base + at for base in (100, 200) for at in range(5)]  # 0 to 2: partitions, 3: nothing, 4: the schema
PERSISTENT = 40  # a request may come again so much later


def slot_of(storage_group: int, partition: int | None) -> int:
    """Of the schema where there is no partition."""
    return (storage_group - 4) * 100 + (4 if partition is None else partition)


class Wrong(AssertionError):
    """The groups and the dictionary differ."""


def ensure(good: bool, message: str, *details: object) -> None:
    if not good:
        raise Wrong(f"{message}: {details}" if details else message)


class Replica:
    """One replica with a disk of its own."""

    def __init__(self, number: int, at: int, log: list[bytes], random_: random.Random) -> None:
        self.number = number
        self.random = random_
        self.log = log
        self.disk = SimulatedDisk(random.Random(random_.random()), directories=("/data",))
        self.base = self.directory = f"/data/group-{number}-1-{at}"
        self.cuts = 0
        self.open()

    def open(self) -> list[Result]:
        self.files = self.disk.mount()
        self.group = DataGroup.open(self.number, self.files, self.directory)
        rest = self.log[self.group.applied :]
        return self.group.apply_many(self.group.applied + 1, [1] * len(rest), rest)

    def run(self, work: Callable[[], Any]) -> Any:
        """Work of which the power may go; None where it did: the replica is open again then."""
        if self.random.random() < 0.1:
            self.disk.cut_at = self.disk.calls + self.random.randrange(1, 25)
        try:
            return work()
        except PowerCut:
            self.recover()
            return None
        finally:
            self.disk.cut_at = None

    def recover(self) -> list[Result]:
        self.cuts += 1
        self.disk.cut_at = None
        self.disk.power_on()
        return self.open()

    def apply(self, payload: bytes) -> Result:
        """The newest entry of the log."""
        try:
            if self.random.random() < 0.02:
                self.disk.cut_at = self.disk.calls + self.random.randrange(1, 6)
            return self.group.apply(len(self.log), 1, payload)
        except PowerCut:
            return self.recover()[-1]
        finally:
            self.disk.cut_at = None

    def write(self, path: str, data: bytes) -> None:
        file = self.files.open(path, create=True)
        file.truncate(0)
        file.write(0, data)
        file.sync()
        file.close()

    def read(self, path: str) -> bytes:
        file = self.files.open(path)
        data = file.read(0, file.size())
        file.close()
        return data

    def flush(self, units: list[UnitId] | None = None) -> None:
        jobs = self.group.store.seal(units)
        for job in jobs:
            job.run()
            job.finish()

    def checkpoint(self) -> None:
        self.group.store.mark_absent()
        self.group.checkpoint_now()


@dataclass
class Move:
    giver: int
    receiver: int
    runs: Runs
    parts: list[Import] = field(default_factory=list)
    fenced: bool = False
    staged: int | None = None
    ready: bool = False
    to: int = 0  # the group that meta decided for
    meta_index: int = 0
    owned: bool = False
    left: bool = False

    @property
    def slots(self) -> list[int]:
        return [slot for first, last, _ in self.runs for slot in range(first, last + 1)]


class History:
    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        self.logs: dict[int, list[bytes]] = {number: [] for number in (1, 2, 3)}
        self.replicas = {
            number: [Replica(number, at, log, self.random) for at in (1, 2)] for number, log in self.logs.items()
        }
        self.meta_index = 1
        self.sequence = {1: 0, 2: 0}
        self.owner: dict[int, tuple[int, int]] = {}  # (group, epoch)
        self.highest = dict.fromkeys(SLOTS, 1)
        self.moves: dict[int, Move] = {}
        self.over: dict[int, Move] = {}
        self.points: dict[tuple[int, int], dict[int, int]] = {}  # (storage group, partition) -> what it holds
        self.series: dict[int, set[str]] = {number: set() for number in PATHS}
        self.intents: dict[tuple[int, int], int] = {}
        self.sent: list[tuple[Header, int, list[int]]] = []
        self.applied: set[RequestId] = set()
        self.dropped: dict[int, int] = {}  # storage group -> meta index
        self.dropped_in: dict[int, set[int]] = {number: set() for number in self.logs}
        self.counts: Counter[str] = Counter()
        self.expiries: list[Header] = []
        for number in self.logs:
            mine = [slot for at, slot in enumerate(SLOTS) if at % 3 == number - 1]
            self.owner.update(dict.fromkeys(mine, (number, 1)))
            self.add(number, Own(runs_of((slot, 1) for slot in mine), 1))

    # --- entries ------------------------------------------------------------------------------------------------------

    def put(self, number: int, payload: bytes) -> Result:
        """The same becomes of it at both replicas; what `validate` refused is refused."""
        first = self.replicas[number][0].group
        refused = None
        try:
            first.validate(payload)
        except CallerError as error:
            refused = type(error)
        self.logs[number].append(payload)
        one, other = (replica.apply(payload) for replica in self.replicas[number])
        ensure((one.value, type(one.error)) == (other.value, type(other.error)), "replicas differ", one, other)
        ensure(refused in (None, type(one.error)), "validate refused what apply took", refused, one)
        return one

    def add(self, number: int, body: Body, header: Header | None = None) -> Result:
        return self.put(number, encode(header or Header(NO_REQUEST), body))

    def request(self) -> RequestId:
        node = self.random.choice([1, 2])
        self.sequence[node] += 1
        return RequestId(node, 1, self.sequence[node], max(1, self.sequence[node] - PERSISTENT))

    def header(self, storage_group: int, partition: int | None) -> Header:
        slot = slot_of(storage_group, partition)
        return Header(self.request(), storage_group, slot, self.owner[slot][1], 0, partition or 0)

    def serves(self, slot: int) -> bool:
        """Whether the owner of a slot has heard of it, and no move has fenced it."""
        number, epoch = self.owner[slot]
        group = self.replicas[number][0].group
        return group.slot_epoch(slot) == epoch and not group.is_fenced(slot)

    # --- what clients do ----------------------------------------------------------------------------------------------

    def create(self) -> None:
        storage_group, name = self.random.choice(list(PATHS)), self.random.choice("st")
        header = self.header(storage_group, None)
        path = PATHS[storage_group]
        body = EnsureSeries(path, (SeriesSpec.default(f"{path}.d.{name}", DataType.INT64),))
        if self.add(self.owner[header.slot][0], body, header).error is None:
            self.series[storage_group].add(f"{path}.d.{name}")
        else:
            ensure(not self.serves(header.slot) or storage_group in self.dropped, "not created")

    def open(self, storage_group: int, partition: int) -> bool:
        if (storage_group, partition) in self.points:
            return True
        header = self.header(storage_group, None)._replace(partition=partition)
        slot = slot_of(storage_group, partition)
        answer = self.add(self.owner[header.slot][0], ListPartition(slot), header)
        if answer.error is not None or not self.serves(slot) or storage_group in self.dropped:
            return False
        listed = self.replicas[self.owner[header.slot][0]][0].group.listed(storage_group, partition)[1]
        opened = self.add(self.owner[slot][0], listed, self.header(storage_group, partition))
        ensure(opened.error is None, "not opened", opened)
        self.points[storage_group, partition] = {}
        self.intents[storage_group, partition] = listed.last_intent
        return True

    def insert(self) -> None:
        storage_group, partition = self.random.choice(list(PATHS)), self.random.choice(PARTITIONS)
        if not self.open(storage_group, partition):
            return
        header = self.header(storage_group, partition)
        value = self.meta_index * 1_000 + len(self.sent)
        times = [self.random.randrange(12) for _ in range(self.random.randrange(1, 4))]
        if self.random.random() < 0.1:  # of somebody who knows an older table
            header = header._replace(slot_epoch=max(1, header.slot_epoch - self.random.randrange(3)))
        self.sent.append((header, value, times))
        self.send(header, value, times)

    def repeat(self) -> None:
        """A copy that was on its way: it goes to whoever owns the slot now."""
        if self.sent:
            header, value, times = self.random.choice(self.sent[-15:])
            self.send(header._replace(slot_epoch=self.owner[header.slot][1]), value, times)

    def send(self, header: Header, value: int, times: list[int]) -> None:
        column = Column.of(DataType.INT64, [value] * len(times))
        tablet = Tablet(f"{PATHS[header.storage_group]}.d", SHAPE, np.array(times, np.int64), [column])
        payload = encode_insert(header, [tablet])
        number, epoch = self.owner[header.slot]
        if self.random.random() < 0.2:
            number = self.random.choice(list(self.logs))
        result = self.put(number, payload)
        serving = header.slot_epoch == epoch and number == self.owner[header.slot][0] and self.serves(header.slot)
        if result.error is None:
            self.counts["inserts"] += 1
            self.counts["repeated"] += header.request in self.applied
            if header.request not in self.applied:
                self.applied.add(header.request)
                self.points[header.storage_group, header.partition].update(dict.fromkeys(times, value))
        else:
            code = result.error.code
            ensure(not serving or code in (Status.STORAGE_GROUP_NOT_EXIST, Status.TIME_OUT), "refused", result, header)

    def delete(self) -> None:
        storage_group = self.random.choice(list(PATHS))
        low = self.random.randrange(12)
        pattern = PathPattern.parse(f"{PATHS[storage_group]}.d.*")
        body = DeleteIntent(IntentKind.RANGE, (pattern,), low, low + self.random.randrange(4))
        header = self.header(storage_group, None)
        self.add(self.owner[header.slot][0], body, header)

    def drive(self) -> None:
        """What some leader finds due."""
        progress = DeleteProgress()
        for key, number in self.intents.items():
            for intent in range(1, number + 1):
                progress.done.setdefault((key[0], intent), set()).add(key[1])
        number = self.random.choice(list(self.logs))
        actions: list[DeleteAction] = list(due_actions(self.replicas[number][0].group, progress))
        for action in actions[:3]:
            owner, epoch = self.owner[action.header.slot]
            body = action.body
            if not isinstance(body, DeleteUnit):
                self.add(number, body, action.header)
                continue
            where = action.header.storage_group, action.header.partition
            if self.add(owner, body, action.header._replace(slot_epoch=epoch)).error is None:
                self.points.setdefault(where, {})
                if self.intents.get(where, 0) < body.number:
                    self.intents[where] = body.number
                    self.counts["deletes"] += 1
                    for time in [time for time in self.points[where] if body.delete.low <= time <= body.delete.high]:
                        del self.points[where][time]

    def expire(self) -> None:
        storage_group, number = self.random.choice(list(PATHS)), self.random.choice(list(self.logs))
        header, before = Header(self.request(), storage_group), self.random.randrange(5)
        group = self.replicas[number][0].group
        here = [
            key for key, unit in group.units().items() if key[0] == storage_group and not group.is_fenced(unit.slot)
        ]
        if self.add(number, Expire(before), header).error is None:
            for key in here:
                for time in [time for time in self.points[key] if time < before]:
                    del self.points[key][time]

    def drop(self) -> None:
        """Meta drops a storage group; each group hears of it in its own time."""
        if not self.dropped and self.random.random() < 0.1:
            self.meta_index += 1
            self.dropped[self.random.choice(list(PATHS))] = self.meta_index
        for storage_group, meta_index in self.dropped.items():
            number = self.random.choice(list(self.logs))
            result = self.add(number, DropStorageGroup(meta_index), Header(NO_REQUEST, storage_group))
            ensure(result.error is None, "not dropped")
            self.dropped_in[number].add(storage_group)

    # --- moves --------------------------------------------------------------------------------------------------------

    def begin_move(self) -> None:
        busy = {slot for move in self.moves.values() for slot in move.slots}
        giver, receiver = self.random.sample(list(self.logs), 2)
        free = [slot for slot, owner in self.owner.items() if owner[0] == giver and slot not in busy]
        if not free or len(self.moves) >= 3:
            return
        slots = self.random.sample(free, self.random.randrange(1, min(4, len(free)) + 1))
        self.meta_index += 1
        runs = runs_of((slot, self.owner[slot][1] + 1) for slot in slots)
        self.moves[self.meta_index] = Move(giver, receiver, runs)

    def step_move(self) -> None:
        if not self.moves:
            self.begin_move()
            return
        number = self.random.choice(list(self.moves))
        move = self.moves[number]
        if move.to:
            self.finish(number, move)
        elif self.random.random() < 0.05:
            self.decide(move, move.giver)
        elif not move.fenced:
            for slot in move.slots:
                self.tell(slot)
            ensure(self.add(move.giver, Fence(number, move.runs, number)).error is None, "not fenced", move)
            move.fenced = True
        elif move.staged is None or self.random.random() < 0.1:
            if not move.ready:
                self.stage(number, move)
        elif not move.parts or self.random.random() < 0.1:
            export = self.random.choice(self.replicas[move.giver]).group.export(number)
            move.parts = export.parts()
            for part in self.random.sample(move.parts, self.random.randrange(1, len(move.parts) + 1)):
                ensure(self.add(move.receiver, part).error is None, "not imported")
            self.counts["exports"] += 1
        elif not move.ready:
            whole = self.replicas[move.receiver][0].group.imports()[number].is_whole
            move.ready = self.add(move.receiver, Ready(number, move.staged)).error is None
            ensure(move.ready == whole, "ready", whole)
            if not whole:
                move.parts = []
        else:
            self.decide(move, move.receiver)

    def tell(self, slot: int) -> None:
        """Its owner of meta's decision, where that came with no move."""
        number, epoch = self.owner[slot]
        if self.replicas[number][0].group.slot_epoch(slot) < epoch:
            result = self.add(number, Own(((slot, slot, epoch),), self.meta_index))
            ensure(result.error is None, "not owned", result)

    def stage(self, number: int, move: Move) -> None:
        """From one replica of the giver, whose units are flushed and whole, to one or both of the receiver."""
        giver = self.random.choice(self.replicas[move.giver])
        units = giver.group.units_in(move.slots)
        if any(unit in giver.group.store.corrupt for unit in units):
            self.mend()
            return
        giver.flush(units)
        takers = self.random.sample(self.replicas[move.receiver], self.random.randrange(1, 3))
        taken = [replica.run(lambda replica=replica: self.copy(number, move, giver, replica)) for replica in takers]
        move.staged = next((checksum for checksum in taken if checksum is not None), None)
        self.counts["staged"] += move.staged is not None
        for replica in self.replicas[move.receiver]:
            for work in replica.group.reading_ahead().values():
                replica.run(work)

    def copy(self, number: int, move: Move, giver: Replica, receiver: Replica) -> int:
        stage = receiver.group.stage(number)
        stage.begin([list(run) for run in move.runs])
        units = []
        for pinned, epoch in giver.group.pin_fenced(number):
            directory = stage.make_unit(pinned.name)
            for info in pinned.files:
                if not stage.holds(pinned.name, info):
                    receiver.write(f"{directory}/{info.name}", giver.read(info.path))
            units.append(StagedUnit(pinned.name, pinned.manifest, epoch))
            pinned.release()
        return stage.finish(units)

    def decide(self, move: Move, to: int) -> None:
        self.meta_index += 1
        move.to, move.meta_index = to, self.meta_index
        for first, last, epoch in move.runs:
            for slot in range(first, last + 1):
                self.owner[slot] = (to, epoch if to == move.receiver else epoch + 1)

    def finish(self, number: int, move: Move) -> None:
        """The groups hear of the decision one after the other."""
        first, second = (not move.owned), (not move.left)
        if first and (not second or self.random.random() < 0.5):
            runs = runs_of((slot, self.owner[slot][1]) for slot in move.slots)
            moved = move.to == move.receiver
            result = self.add(move.to, Own(runs, move.meta_index, number if moved else 0))
            ensure(result.value == {"slots": len(move.slots)} or not moved, "not owned", result)
            move.owned = True
            self.counts["moved" if moved else "cancelled"] += 1
        elif move.to == move.receiver:
            result = self.add(move.giver, DropSlots(move.runs, move.meta_index))
            ensure(result.value == {"slots": len(move.slots)}, "not dropped", result)
            move.left = True
        else:
            ensure(self.add(move.receiver, Discard(number)).error is None, "not discarded")
            move.left = True
        if move.owned and move.left:
            self.over[number] = self.moves.pop(number)

    def dissolve(self) -> None:
        """Never of a group that owns slots."""
        number = self.random.choice(list(self.logs))
        group = self.replicas[number][0].group
        if group.slots():
            ensure(self.add(number, Dissolve(self.meta_index)).error is not None, "dissolved", number)

    # --- what nodes do ------------------------------------------------------------------------------------------------

    def upkeep(self) -> None:
        replica = self.random.choice(self.replicas[self.random.choice(list(self.logs))])
        what = self.random.random()
        if what < 0.3:
            replica.run(replica.flush)
        elif what < 0.6:
            replica.run(replica.checkpoint)
        elif what < 0.7:
            replica.open()
        elif what < 0.75:
            replica.disk.power_cut()
            replica.recover()
        elif what < 0.8:
            self.install(replica)
        elif what < 0.9:
            replica.run(lambda: self.sweep(replica))
        else:
            self.mend()

    def sweep(self, replica: Replica) -> None:
        for number, runs in replica.group.stages().items():
            known = number in self.moves
            if not known and replica.group.is_over(number, runs, lambda slot: self.owner[slot][1]):
                replica.group.remove_stage(number)
                self.counts["swept"] += 1
        replica.group.store.collect()

    def install(self, replica: Replica) -> None:
        """A snapshot of the other replica takes the place of this one."""
        (source,) = (one for one in self.replicas[replica.number] if one is not replica)
        if source.group.store.corrupt:
            return
        source.checkpoint()
        copy = source.group.copy(source.group.read_checkpoint())
        directory = f"{replica.base}.{copy.index:020d}"
        if directory == replica.directory or source.random.random() < 0.3:
            copy.release()
            return
        for one in copy.files:
            path = f"{directory}/{one.path}"
            parent = path.rpartition("/")[0]
            replica.files.make_directories(parent)
            replica.write(path, one.read(source.files, 0, one.size))
            while parent != "/":
                replica.files.sync_directory(parent)
                parent = parent.rpartition("/")[0] or "/"
        copy.release()
        if replica.directory != replica.base:
            replica.files.remove_tree(replica.directory)
        replica.directory = directory
        replica.open()
        self.counts["installed"] += 1

    def mend(self) -> None:
        """Absent units are fetched from the other replica."""
        for one, other in (pair for pair in self.replicas.values()):
            for damaged, whole in ((one, other), (other, one)):
                for unit in sorted(damaged.group.store.corrupt):
                    if unit not in whole.group.store.corrupt:
                        damaged.run(lambda unit=unit, damaged=damaged, whole=whole: self.fetch(unit, damaged, whole))

    def fetch(self, unit: UnitId, damaged: Replica, whole: Replica) -> None:
        store = damaged.group.store
        store.mark_absent()
        whole.flush([unit])
        pinned = whole.group.store.pin_files(unit)
        directory = store.begin_mirror(unit)
        damaged.files.make_directories(directory)
        for info in pinned.files:
            damaged.write(f"{directory}/{info.name}", whole.read(info.path))
        damaged.files.sync_directory(directory)
        damaged.files.sync_directory(store.directory)
        store.finish_mirror(store.open_mirror(unit, directory, pinned.manifest))
        pinned.release()
        store.collect()
        self.counts["fetched"] += 1

    # --- what must hold -----------------------------------------------------------------------------------------------

    def look(self) -> None:
        for number, (one, other) in self.replicas.items():
            ensure(one.group.dump_state() == other.group.dump_state(), "states differ", number)
        for slot, (owner, epoch) in self.owner.items():
            serving = [number for number in self.logs if self.answers(number, slot)]
            ensure(len(serving) <= 1 and serving in ([], [owner]), "served", slot, serving, owner, epoch)

    def answers(self, number: int, slot: int) -> bool:
        """Whether a group answers a read of a slot, under any epoch."""
        group = self.replicas[number][0].group
        found = False
        for epoch in range(1, self.owner[slot][1] + 2):
            try:
                group.schema(9, slot, epoch)
                found = True
            except CallerError:
                continue
        return found

    def compare(self) -> None:
        """All points, of every slot that is served; units may be absent at one replica, never at both."""
        for (storage_group, partition), points in sorted(self.points.items()):
            slot = slot_of(storage_group, partition)
            owner, epoch = self.owner[slot]
            read = 0
            for replica in self.replicas[owner]:
                try:
                    found = self.read(replica, storage_group, partition, slot, epoch)
                except CorruptData:
                    continue
                except CallerError as error:
                    gone = storage_group in self.dropped_in[owner] or replica.group.is_dropped(storage_group)
                    ensure(gone or (not self.serves(slot)), "not read", error.message)
                    continue
                read += 1
                ensure(found == points, "points differ", storage_group, partition, owner, found, points)
            served = self.serves(slot) and not self.replicas[owner][0].group.is_dropped(storage_group)
            ensure(read > 0 or not served, "lost", slot)
        for storage_group, series in self.series.items():
            slot = slot_of(storage_group, None)
            owner, epoch = self.owner[slot]
            group = self.replicas[owner][0].group
            if self.serves(slot) and not group.is_dropped(storage_group):
                _, found = group.match(storage_group, slot, epoch, PathPattern.parse(f"{PATHS[storage_group]}.*.*"))
                ensure({one.path for one in found} == series, "series differ", found, series)

    def read(self, replica: Replica, storage_group: int, partition: int, slot: int, epoch: int) -> dict[int, int]:
        found: dict[int, int] = {}
        with replica.group.reader(storage_group, partition, slot, epoch, 1_000) as reader:
            device = f"{PATHS[storage_group]}.d"
            for times, values in reader.read(device, "s", DataType.INT64, INT64_MIN, INT64_MAX):
                found.update(zip(times.tolist(), values.tolist(), strict=True))
        return found

    def run(self, steps: int) -> None:
        deeds: list[tuple[Callable[[], None], int]] = [
            (self.insert, 10),
            (self.repeat, 3),
            (self.create, 1),
            (self.delete, 1),
            (self.drive, 3),
            (self.expire, 1),
            (self.drop, 1),
            (self.step_move, 14),
            (self.begin_move, 1),
            (self.dissolve, 1),
            (self.upkeep, 6),
        ]
        for at in range(steps):
            self.random.choices([deed for deed, _ in deeds], [weight for _, weight in deeds])[0]()
            self.look()
            if at % 10 == 9:
                self.compare()
        while self.moves:
            self.step_move()
        for storage_group, meta_index in self.dropped.items():
            for number in self.logs:
                self.add(number, DropStorageGroup(meta_index), Header(NO_REQUEST, storage_group))
                self.dropped_in[number].add(storage_group)
                group = self.replicas[number][0].group
                here = {key[0] for key in group.units()} | set(group.storage_groups())
                ensure(storage_group not in here, "dropped, and still here", number, storage_group)
        self.look()
        self.compare()
        for _ in range(20):  # the power may go while a unit is fetched
            if any(replica.group.store.corrupt for replicas in self.replicas.values() for replica in replicas):
                self.mend()
        for one, other in self.replicas.values():
            ensure(not one.group.store.corrupt and not other.group.store.corrupt, "units are absent")
            digest = one.group.digest()
            ensure(digest == other.group.digest(), "digests differ", one.number)
            for replica in (one, other):
                replica.open()
                ensure(replica.group.digest() == digest, "another digest after a restart", one.number)
        self.compare()
        self.counts["cuts"] += sum(replica.cuts for replicas in self.replicas.values() for replica in replicas)


def run(seed: int, steps: int = 150) -> Counter[str]:
    """What was done; raises Wrong, or whatever the groups raised."""
    history = History(seed)
    history.run(steps)
    return history.counts


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--histories", type=int, default=2_000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--steps", type=int, default=150)
    arguments = parser.parse_args()
    began, counts = clock.monotonic(), Counter[str]()
    failed: list[int] = []
    for seed in range(arguments.seed, arguments.seed + arguments.histories):
        try:
            counts += run(seed, arguments.steps)
        except Exception as error:  # a tool: each failing seed is told
            failed.append(seed)
            print(f"seed {seed}: {type(error).__name__}: {str(error)[:300]}", file=sys.stderr)
    line = {
        "target": "handoff-model",
        "ok": not failed,
        "seed": arguments.seed,
        "histories": arguments.histories,
        "failed": failed[:20],
        "seconds": round(clock.monotonic() - began, 1),
    }
    print(json.dumps({**line, **counts}))
    return int(bool(failed))


if __name__ == "__main__":
    sys.exit(main())
