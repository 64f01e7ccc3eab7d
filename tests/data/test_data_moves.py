"""Slots that move from one group to another and back: what each entry does, and what it refuses."""

from __future__ import annotations

import contextlib
import random
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from iotdb_cluster.columns import Column, DataType, Tablet, shape_of
from iotdb_cluster.data import (
    DONE,
    Body,
    DataGroup,
    DeleteIntent,
    DeleteProgress,
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
    Kind,
    ListPartition,
    NotReady,
    OpenUnit,
    Own,
    Ready,
    Result,
    due_actions,
    encode,
    encode_insert,
    runs_of,
)
from iotdb_cluster.errors import CallerError, CorruptData, Moved
from iotdb_cluster.limits import INT64_MAX, INT64_MIN
from iotdb_cluster.packing import pack, unpack
from iotdb_cluster.requests import NO_REQUEST, RequestId
from iotdb_cluster.schema import PathPattern, SeriesSpec
from iotdb_cluster.simulation import PowerCut, SimulatedDisk
from iotdb_cluster.storage import StagedUnit, checksum_of

SG, SLOT = 5, 40
SHAPE = shape_of(("s",), (DataType.INT64,))


class Member:
    """A group of one replica with its log, and the numbers that entries need. Requests are counted for all of them."""

    sequence = 0

    def __init__(self, number: int, *slots: tuple[int, int]) -> None:
        self.disk = SimulatedDisk()
        self.directory = f"/data/group-{number}-1-1"
        self.group = DataGroup.open(number, self.disk, self.directory)
        self.payloads: list[bytes] = []
        if slots:
            self.add(Own(runs_of(slots), 1))

    def put(self, payload: bytes) -> Result:
        """Apply an entry; what `validate` says to it is what becomes of it."""
        refused: CallerError | None = None
        try:
            self.group.validate(payload)
        except CallerError as error:
            refused = error
        self.payloads.append(payload)
        result = self.group.apply(len(self.payloads), 1, payload)
        assert type(result.error) is type(refused), (result, refused)
        return result

    def header(self, epoch: int, partition: int = 0, slot: int = SLOT) -> Header:
        Member.sequence += 1
        return Header(RequestId(1, 1, Member.sequence, 1), SG, slot, epoch, 0, partition)

    def add(self, body: Body, header: Header | None = None) -> Result:
        return self.put(encode(header or Header(NO_REQUEST), body))

    def value(self, body: Body, header: Header | None = None) -> Any:
        result = self.add(body, header)
        assert result.error is None, result
        return result.value

    def refused(self, body: Body, header: Header | None = None) -> type[CallerError]:
        result = self.add(body, header)
        assert result.error is not None
        return type(result.error)

    def insert(self, epoch: int, times: Sequence[int], value: int, partition: int = 0) -> bytes:
        column = Column.of(DataType.INT64, [value] * len(times))
        tablet = Tablet("root.sg.d", SHAPE, np.array(times, np.int64), [column])
        return encode_insert(self.header(epoch, partition), [tablet])

    def begin(self, epoch: int, partitions: Sequence[int] = (0,)) -> None:
        """The series and the units."""
        self.value(EnsureSeries("root.sg", (SeriesSpec.default("root.sg.d.s", DataType.INT64),)), self.header(epoch))
        for partition in partitions:
            answer = self.value(ListPartition(SLOT), self.header(epoch, partition))
            assert self.add(OpenUnit(**answer), self.header(epoch, partition)) == DONE

    def points(self, epoch: int, partition: int = 0) -> dict[int, int]:
        found: dict[int, int] = {}
        with self.group.reader(SG, partition, SLOT, epoch, 1_000) as reader:
            for times, values in reader.read("root.sg.d", "s", DataType.INT64, INT64_MIN, INT64_MAX):
                found.update(zip(times.tolist(), values.tolist(), strict=True))
        return found

    def flush(self) -> None:
        for job in self.group.store.seal():
            job.run()
            job.finish()

    def restart(self) -> None:
        """As a restart makes it."""
        before = self.group.dump_state()
        self.group = DataGroup.open(self.group.number, self.disk, self.directory)
        rest = self.payloads[self.group.applied :]
        self.group.apply_many(self.group.applied + 1, [1] * len(rest), rest)
        assert self.group.dump_state() == before


def copy_units(giver: Member, source: SimulatedDisk, group: DataGroup, target: SimulatedDisk, move: int) -> int:
    """The final round: the checksum."""
    stage = group.stage(move)
    stage.begin([list(run) for run in giver.group.fenced(move)])
    units = []
    for pinned, epoch in giver.group.pin_fenced(move):
        directory = stage.make_unit(pinned.name)
        for info in pinned.files:
            if not stage.holds(pinned.name, info):
                file = target.open(f"{directory}/{info.name}", create=True)
                file.truncate(0)
                file.write(0, source.open(info.path).read(0, info.bytes))
                assert stage.holds(pinned.name, info)
        units.append(StagedUnit(pinned.name, pinned.manifest, epoch))
        pinned.release()
    checksum = stage.finish(units)
    assert checksum == checksum_of(units)
    return checksum


def stage(giver: Member, receiver: Member, move: int) -> int:
    giver.flush()
    return copy_units(giver, giver.disk, receiver.group, receiver.disk, move)


def hand_over(giver: Member, receiver: Member, move: int, epoch: int, slots: Sequence[int] = (SLOT,)) -> None:
    """All up to the decision."""
    runs = runs_of((slot, epoch) for slot in slots)
    assert giver.add(Fence(move, runs, move)) == DONE
    for part in giver.group.export(move).parts():
        assert receiver.add(part) == DONE
    assert receiver.add(Ready(move, stage(giver, receiver, move))) == DONE


def decide(giver: Member, receiver: Member, move: int, epoch: int, slots: Sequence[int] = (SLOT,)) -> None:
    runs = runs_of((slot, epoch) for slot in slots)
    assert receiver.value(Own(runs, move + 1, move)) == {"slots": len(slots)}
    assert giver.value(DropSlots(runs, move + 1)) == {"slots": len(slots)}


@pytest.fixture
def giver() -> Member:
    return Member(1, *((slot, 1) for slot in range(SLOT, SLOT + 5)))


@pytest.fixture
def receiver() -> Member:
    return Member(2, *((slot, 1) for slot in range(100, 105)))


def test_a_slot_moves_with_all_that_is_in_it(giver: Member, receiver: Member) -> None:
    giver.begin(1, (0, 1))
    written = giver.insert(1, [1, 2], 10)
    assert giver.put(written) == DONE
    assert giver.put(giver.insert(1, [7], 70, 1)) == DONE
    hand_over(giver, receiver, 50, 2)
    assert type(giver.put(giver.insert(1, [3], 30)).error) is Moved
    with pytest.raises(Moved):
        giver.points(1)
    with pytest.raises(Moved):
        giver.group.schema(SG, SLOT, 1)
    assert type(receiver.put(giver.insert(2, [3], 30)).error) is NotReady
    decide(giver, receiver, 50, 2)
    assert receiver.points(2) == {1: 10, 2: 10}
    assert receiver.points(2, 1) == {7: 70}
    again = bytearray(written)
    again[36:40] = (2).to_bytes(4, "big")
    assert receiver.put(receiver.insert(2, [1], 11)) == DONE
    assert receiver.put(bytes(again)) == DONE  # it was applied by the giver
    assert receiver.points(2) == {1: 11, 2: 10}
    assert giver.group.units() == {}
    assert giver.group.storage_groups() == []
    assert giver.group.store.units() == []
    assert giver.group.slots() == dict.fromkeys(range(SLOT + 1, SLOT + 5), 1)
    assert receiver.group.partitions(SG, SLOT, 2) == [0, 1]
    for member in (giver, receiver):
        digest = member.group.digest()
        member.restart()
        assert member.group.digest() == digest
        member.group.checkpoint_now()
        member.restart()
        assert member.group.digest() == digest
        assert not member.group.store.corrupt
    receiver.group.remove_stage(50)
    assert receiver.group.stages() == {}


def test_there_and_back(giver: Member, receiver: Member) -> None:
    giver.begin(1)
    giver.put(giver.insert(1, [1, 2, 3], 1))
    hand_over(giver, receiver, 50, 2)
    decide(giver, receiver, 50, 2)
    receiver.put(receiver.insert(2, [2, 4], 2))
    hand_over(receiver, giver, 60, 3)
    decide(receiver, giver, 60, 3)
    assert giver.points(3) == {1: 1, 2: 2, 3: 1, 4: 2}
    giver.put(giver.insert(3, [3], 3))
    giver.restart()
    assert giver.points(3) == {1: 1, 2: 2, 3: 3, 4: 2}
    giver.group.checkpoint_now()
    giver.restart()
    assert giver.points(3) == {1: 1, 2: 2, 3: 3, 4: 2}
    receiver.restart()
    assert receiver.group.units() == {}


def test_a_move_that_comes_to_nothing(giver: Member, receiver: Member) -> None:
    giver.begin(1)
    giver.put(giver.insert(1, [1], 1))
    hand_over(giver, receiver, 50, 2)
    assert giver.value(Own(runs_of([(SLOT, 3)]), 51)) == {"slots": 1}
    assert not giver.group.fenced(50)
    assert receiver.add(Discard(50)) == DONE
    assert receiver.add(Discard(50)) == DONE
    assert giver.put(giver.insert(3, [2], 2)) == DONE
    assert giver.points(3) == {1: 1, 2: 2}
    assert giver.refused(Fence(50, runs_of([(SLOT, 2)]), 50)) is Moved
    assert receiver.refused(Own(runs_of([(SLOT, 2)]), 51, 50)) is NotReady
    assert receiver.group.is_over(50, runs_of([(SLOT, 2)]), lambda _: 3)
    assert not receiver.group.is_over(50, runs_of([(SLOT, 2)]), lambda _: 2)
    receiver.group.remove_stage(50)


def test_what_is_not_in_its_order_is_refused(giver: Member, receiver: Member) -> None:
    giver.begin(1)
    runs = runs_of([(SLOT, 2)])
    assert giver.refused(DropSlots(runs, 51)) is NotReady
    with pytest.raises(NotReady):
        giver.group.export(50)
    assert receiver.refused(Fence(50, runs, 50)) is NotReady
    assert giver.add(Fence(50, runs, 50)) == DONE
    assert giver.add(Fence(50, runs, 50)) == DONE
    assert giver.refused(Fence(55, runs_of([(SLOT, 4)]), 55)) is NotReady
    assert receiver.refused(Ready(50, 1)) is NotReady
    assert receiver.add(Import(50, runs, 77, 1, 2, b"rest")) == DONE
    assert receiver.refused(Ready(50, 1)) is NotReady
    assert receiver.refused(Import(50, runs, 77, 1, 3, b"rest")) is CallerError
    (part,) = giver.group.export(50).parts()
    assert receiver.add(part) == DONE  # takes the place of the export that was begun
    assert list(receiver.group.imports()[50].found) == [0]
    assert receiver.refused(Own(runs, 51, 50)) is NotReady
    assert receiver.add(Ready(50, stage(giver, receiver, 50))) == DONE
    assert receiver.refused(Own(runs, 51)) is NotReady  # it comes with the move
    assert receiver.refused(Own(runs_of([(SLOT, 2), (SLOT + 1, 2)]), 51, 50)) is CallerError
    assert receiver.add(Import(50, runs, 78, 0, 1, b"another one")) == DONE  # too late
    assert receiver.group.imports()[50].export == part.export
    receiver.restart()
    decide(giver, receiver, 50, 2)
    assert receiver.value(Own(runs, 51, 50)) == {"slots": 0}
    assert giver.value(DropSlots(runs, 51)) == {"slots": 0}
    assert receiver.refused(part) is Moved


def test_only_an_empty_group_is_dissolved(giver: Member, receiver: Member) -> None:
    slots = range(SLOT, SLOT + 5)
    assert giver.refused(Dissolve(49)) is NotReady
    hand_over(giver, receiver, 50, 2, slots)
    assert giver.refused(Dissolve(49)) is NotReady
    assert receiver.refused(Dissolve(49)) is NotReady
    decide(giver, receiver, 50, 2, slots)
    assert giver.add(Dissolve(60)) == DONE
    assert giver.add(Dissolve(61)) == DONE
    assert giver.group.dissolved == 60
    assert giver.refused(Own(runs_of([(SLOT, 3)]), 61)) is CallerError
    assert giver.refused(Import(70, runs_of([(SLOT, 3)]), 1, 0, 1, b"")) is CallerError
    assert type(giver.put(giver.insert(1, [1], 1)).error) is Moved
    giver.group.checkpoint_now()
    giver.restart()
    assert giver.group.dissolved == 60


def test_a_storage_group_that_was_dropped_meanwhile_does_not_come_back(giver: Member, receiver: Member) -> None:
    giver.begin(1)
    giver.put(giver.insert(1, [1], 1))
    hand_over(giver, receiver, 50, 2)
    assert receiver.add(DropStorageGroup(55), Header(NO_REQUEST, SG)) == DONE
    decide(giver, receiver, 50, 2)
    assert receiver.group.units() == {}
    assert receiver.group.store.units() == []
    assert receiver.group.storage_groups() == []
    assert giver.add(DropStorageGroup(55), Header(NO_REQUEST, SG)) == DONE
    receiver.restart()


def test_a_drop_before_the_export_reaches_the_receiver(giver: Member, receiver: Member) -> None:
    giver.begin(1)
    giver.add(Fence(50, runs_of([(SLOT, 2)]), 50))
    assert giver.add(DropStorageGroup(55), Header(NO_REQUEST, SG)) == DONE
    hand_over(giver, receiver, 50, 2)
    decide(giver, receiver, 50, 2)
    assert receiver.group.is_dropped(SG)


def test_expiry_passes_fenced_slots_by(giver: Member) -> None:
    giver.begin(1)
    giver.put(giver.insert(1, [1, 5], 1))
    giver.add(Fence(50, runs_of([(SLOT, 2)]), 50))
    assert giver.add(Expire(3), giver.header(1)) == DONE
    giver.add(Own(runs_of([(SLOT, 3)]), 51))
    assert giver.points(3) == {1: 1, 5: 1}
    assert giver.add(Expire(3), giver.header(3)) == DONE
    assert giver.points(3) == {5: 1}


def test_open_deletes_move_with_their_schema(giver: Member, receiver: Member) -> None:
    giver.begin(1)
    giver.put(giver.insert(1, [1, 5], 1))
    delete = DeleteIntent(IntentKind.RANGE, (PathPattern.parse("root.sg.d"),), 0, 3)
    assert giver.value(delete, giver.header(1)) == {"intent": 1}
    assert list(due_actions(giver.group, DeleteProgress()))
    hand_over(giver, receiver, 50, 2)
    assert not list(due_actions(giver.group, DeleteProgress()))
    decide(giver, receiver, 50, 2)
    assert giver.group.intents(SG) == []
    assert [intent.number for intent in receiver.group.intents(SG)] == [1]


@pytest.mark.parametrize("what", ["no stage", "not whole", "another checksum", "a unit is gone"])
def test_a_unit_whose_files_are_not_here_is_absent(giver: Member, receiver: Member, what: str) -> None:
    giver.begin(1)
    giver.put(giver.insert(1, [1], 1))
    hand_over(giver, receiver, 50, 2)
    stage_ = receiver.group.stage(50)
    if what == "no stage":
        stage_.remove()
    elif what == "not whole":
        receiver.disk.remove(f"{stage_.directory}/whole")
    elif what == "another checksum":
        receiver.add(Ready(50, 5))
    else:
        receiver.disk.remove_tree(f"{stage_.directory}/{SG}.0.1")
    decide(giver, receiver, 50, 2)
    (unit,) = receiver.group.store.units()
    assert unit in receiver.group.store.corrupt
    assert receiver.put(receiver.insert(2, [2], 2)) == DONE
    receiver.restart()
    assert unit in receiver.group.store.corrupt
    receiver.group.store.mark_absent()
    receiver.group.checkpoint_now()  # absent units do not hold it up
    receiver.restart()
    assert unit in receiver.group.store.corrupt
    assert receiver.group.store.is_absent(unit) or not receiver.group.store.mark_absent()


def test_an_import_lies_in_checkpoints(giver: Member, receiver: Member) -> None:
    giver.begin(1)
    runs = runs_of([(SLOT, 2)])
    assert receiver.add(Import(50, runs, 77, 1, 2, b"second")) == DONE
    receiver.group.checkpoint_now()
    receiver.restart()
    assert receiver.add(Import(50, runs, 77, 0, 2, b"first")) == DONE
    receiver.restart()
    receiver.group.checkpoint_now()
    names = [name for name in receiver.disk.list(receiver.directory) if name.startswith("import-")]
    assert len(names) == 1
    receiver.add(Own(runs_of([(100, 2)]), 52))
    receiver.group.checkpoint_now()
    assert [name for name in receiver.disk.list(receiver.directory) if name.startswith("import-")] == names
    receiver.restart()
    assert receiver.group.imports()[50].content() == b"firstsecond"
    index, _, files = receiver.group.read_checkpoint()
    assert (index, [name for name, _ in files if name.startswith("import-")]) == (4, names)
    receiver.add(Discard(50))
    receiver.group.checkpoint_now()
    assert not [name for name in receiver.disk.list(receiver.directory) if name.startswith("import-")]


def test_a_large_export_is_cut(giver: Member, receiver: Member, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("iotdb_cluster.data.handoff.PART_BYTES", 50)
    giver.begin(1)
    giver.put(giver.insert(1, [1], 1))
    hand_over(giver, receiver, 50, 2)
    assert receiver.group.imports()[50].parts > 5
    (work,) = receiver.group.reading_ahead().values()
    work()
    assert not receiver.group.reading_ahead()  # it is read
    decide(giver, receiver, 50, 2)
    assert receiver.points(2) == {1: 1}
    dumped = receiver.group.dump_state()
    receiver.restart()
    assert receiver.group.dump_state() == dumped


def test_what_was_read_ahead_goes_with_its_move(giver: Member, receiver: Member) -> None:
    """Also where the worker ends behind the move, and where another export took the place of the one that was read."""
    giver.begin(1)
    giver.put(giver.insert(1, [1], 1))
    hand_over(giver, receiver, 50, 2)
    handoff = receiver.group._handoff
    (work,) = receiver.group.reading_ahead().values()
    receiver.group.imports()[50].export += 1
    (again,) = receiver.group.reading_ahead().values()
    again()
    receiver.add(Discard(50))
    assert not handoff._read_ahead
    work()
    assert handoff._read_ahead
    assert not receiver.group.reading_ahead()
    assert not handoff._read_ahead


def test_what_a_slot_holds(giver: Member) -> None:
    giver.begin(1, (0, 1))
    giver.put(giver.insert(1, [1], 1))
    held = giver.group.slots_held()
    assert list(held) == [SLOT]
    assert (held[SLOT].units, held[SLOT].series) == (2, 1)
    assert held[SLOT].bytes > 0
    assert len(giver.group.units_in([SLOT])) == 2
    assert giver.group.units_in([SLOT + 1]) == []


def test_a_state_of_the_version_before_is_read(giver: Member) -> None:
    giver.begin(1)
    giver.put(giver.insert(1, [1], 1))
    head, blobs = unpack(giver.group.dump_state())
    assert head["version"] == 3
    older = {**head, "version": 2}
    del older["imports"], older["dissolved"]
    other = DataGroup.open(1, SimulatedDisk(), "/data/other")
    other.load_state(pack(older, blobs))
    assert other.dump_state() == giver.group.dump_state()
    with pytest.raises(CorruptData, match="version 4"):
        other.load_state(pack({**head, "version": 4}, blobs))


def live(disk: SimulatedDisk, giver: Member, log: list[bytes]) -> DataGroup:
    """What a node of the receiver does, from its first start or after a power cut, until it has applied all."""
    group = DataGroup.open(2, disk.mount(), "/data/group-2-1-1")
    while group.applied < len(log):
        payload = log[group.applied]
        if payload[1] == Kind.READY and group.stage(50).whole() is None:
            copy_units(giver, giver.disk, group, disk, 50)
        group.apply(group.applied + 1, 1, payload)
        if group.applied in (4, len(log) - 1):
            group.checkpoint_now()
    group.remove_stage(50)
    group.checkpoint_now()
    return group


def test_power_may_go_at_any_call_of_a_receiver(giver: Member, receiver: Member) -> None:
    giver.begin(1, (0, 1))
    giver.put(giver.insert(1, [1, 2], 1))
    giver.flush()
    giver.put(giver.insert(1, [2, 3], 2))
    giver.put(giver.insert(1, [9], 9, 1))
    hand_over(giver, receiver, 50, 2)
    log = [*receiver.payloads]
    receiver.value(Own(runs_of([(SLOT, 2)]), 51, 50))
    receiver.put(receiver.insert(2, [3], 3))
    receiver.add(Own(runs_of([(100, 2)]), 52))
    expected = receiver.group.digest()
    assert len(log) == 3
    log = receiver.payloads
    whole = SimulatedDisk(random.Random(0), directories=("/data",))
    assert live(whole, giver, log).digest() == expected
    for call in range(1, whole.calls + 1):
        disk = SimulatedDisk(random.Random(call), directories=("/data",))
        disk.cut_at = call
        with contextlib.suppress(PowerCut):
            live(disk, giver, log)
        disk.cut_at = None
        disk.power_on()
        group = live(disk, giver, log)
        assert group.store.corrupt == {}, f"power cut at call {call}"
        assert group.digest() == expected, f"power cut at call {call}"
