"""What a group answers to each kind of entry, and how it refuses."""

from __future__ import annotations

import contextlib
import json
import random
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from iotdb_cluster.columns import Column, DataType, Encoding, Rows, Tablet, shape_of
from iotdb_cluster.data import (
    DONE,
    AlterSeries,
    Body,
    CreateSeries,
    DataGroup,
    DeleteIntent,
    DeleteProgress,
    DeleteRetire,
    DeleteUnit,
    DropStorageGroup,
    EnsureSeries,
    Expire,
    Header,
    IntentKind,
    ListPartition,
    NotReady,
    OpenUnit,
    Own,
    Result,
    Retiring,
    StaleRequest,
    due_actions,
    encode,
    encode_insert,
)
from iotdb_cluster.data.state import GroupState, SlotState
from iotdb_cluster.errors import CallerError, CorruptData, InvariantViolation, Moved, StaleSchema, Status
from iotdb_cluster.limits import INT64_MAX, INT64_MIN
from iotdb_cluster.requests import NO_REQUEST, RequestId
from iotdb_cluster.schema import Alter, PathPattern, SeriesSpec
from iotdb_cluster.simulation import PowerCut, SimulatedDisk

SG = 5
SLOT = 40


class Log:
    """A group and the numbers that its entries need."""

    def __init__(self) -> None:
        self.files = SimulatedDisk()
        self.group = DataGroup.open(1, self.files, "/data/group1")
        self.payloads: list[bytes] = []
        self.sequence = 0
        self.epoch = 1
        self.add(Own(((SLOT, SLOT + 9, 1),), 3))

    def request(self) -> RequestId:
        self.sequence += 1
        return RequestId(1, 1, self.sequence, 1)

    def header(self, partition: int = 0, schema_epoch: int = 0, slot: int = SLOT) -> Header:
        return Header(self.request(), SG, slot, self.epoch, schema_epoch, partition)

    def put(self, payload: bytes) -> Result:
        self.payloads.append(payload)
        return self.group.apply(len(self.payloads), 1, payload)

    def add(self, body: Body, **header: Any) -> Result:
        return self.put(encode(self.header(**header), body))

    def value(self, body: Body, **header: Any) -> Any:
        result = self.add(body, **header)
        assert result.error is None, result
        return result.value

    def error(self, body: Body, **header: Any) -> CallerError:
        payload = encode(self.header(**header), body)
        with pytest.raises(CallerError) as refused:
            self.group.validate(payload)
        result = self.put(payload)
        assert type(result.error) is type(refused.value)
        assert result.error is not None
        return result.error

    def create(self, *names: str, kind: DataType = DataType.INT64) -> Any:
        return self.value(
            EnsureSeries("root.sg", tuple(SeriesSpec.default(f"root.sg.d.{name}", kind) for name in names))
        )

    def open(self, partition: int = 0) -> None:
        answer = self.value(ListPartition(SLOT), partition=partition)
        assert self.add(OpenUnit(**answer), partition=partition) == DONE

    def insert(self, times: Sequence[int], values: Sequence[int], **header: Any) -> bytes:
        shape = shape_of(("s",), (DataType.INT64,))
        column = Column.of(DataType.INT64, values)
        return encode_insert(self.header(**header), [Tablet("root.sg.d", shape, np.array(times, np.int64), [column])])

    def points(self, partition: int = 0, schema_epoch: int = 1_000) -> dict[int, int]:
        found: dict[int, int] = {}
        with self.group.reader(SG, partition, SLOT, self.epoch, schema_epoch) as reader:
            for times, values in reader.read("root.sg.d", "s", DataType.INT64, INT64_MIN, INT64_MAX):
                found.update(zip(times.tolist(), values.tolist(), strict=True))
        return found

    def replayed(self) -> DataGroup:
        """The group as a restart makes it."""
        group = DataGroup.open(1, self.files, "/data/group1")
        rest = self.payloads[group.applied :]
        group.apply_many(group.applied + 1, [1] * len(rest), rest)
        return group


@pytest.fixture
def log() -> Log:
    return Log()


def range_delete(low: int, high: int) -> DeleteIntent:
    return DeleteIntent(IntentKind.RANGE, (PathPattern.parse("root.sg.d"),), low, high)


SERIES = DeleteIntent(IntentKind.TIMESERIES, (PathPattern.exact("root.sg.d.s"),))


def test_ensured_series_and_their_points(log: Log) -> None:
    assert log.create("s", "t") == {"epoch": 0, "series": [2, 2], "measurements": {}}
    log.open()
    assert log.put(log.insert([3, 1, 2], [30, 10, 20])) == DONE
    assert log.put(log.insert([1], [11])) == DONE
    assert log.points() == {1: 11, 2: 20, 3: 30}
    assert log.create("s", kind=DataType.TEXT)["series"] == [2]  # the loser sees what exists
    assert log.group.partitions(SG, SLOT, 1) == [0]


def test_each_created_series_has_an_outcome(log: Log) -> None:
    specs = (
        SeriesSpec("root.sg.d.s", DataType.FLOAT, Encoding.RLE, alias="a"),
        SeriesSpec("root.sg.d.s", DataType.FLOAT, Encoding.RLE),
        SeriesSpec("root.sg.d.x", DataType.TEXT, Encoding.GORILLA),
        SeriesSpec("root.sg..x", DataType.TEXT, Encoding.PLAIN),
        SeriesSpec("root.other.d.x", DataType.TEXT, Encoding.PLAIN),
    )
    answer = log.value(CreateSeries("root.sg", specs))
    assert [one and one[0] for one in answer["series"]] == [None, 300, 303, 400, 315]
    assert log.create("a") == {"epoch": 0, "series": [3], "measurements": {"0": "s"}}
    assert log.add(AlterSeries("root.sg.d.s", Alter.add_tags({"k": "v"}))) == DONE
    assert log.error(AlterSeries("root.sg.d.none", Alter.add_tags({"k": "v"})), slot=SLOT + 1).code == 500
    assert log.add(AlterSeries("root.sg.d.none", Alter.drop("k"))).error is not None


def test_a_request_takes_effect_once(log: Log) -> None:
    log.create("s")
    log.open()
    first, second = log.insert([1], [1]), log.insert([1], [2])
    assert log.put(first) == log.put(second) == DONE
    assert log.put(first) == DONE
    assert log.points() == {1: 2}
    later = Header(RequestId(1, 2, 9, 9), SG, SLOT, 1)
    assert log.put(encode(later, Expire(INT64_MIN))) == DONE
    assert isinstance(log.put(log.insert([1], [3])).error, StaleRequest)
    assert isinstance(log.put(encode(later._replace(request=RequestId(1, 2, 5, 5)), Expire(9))).error, StaleRequest)
    assert log.points() == {1: 2}


def test_refused_whole(log: Log) -> None:
    log.create("s")
    closed = log.put(log.insert([1], [1])).error
    assert isinstance(closed, NotReady)
    assert closed.unit_closed
    log.open()
    bad = log.insert([1], [1])
    for payload in (bad[:-3], bad + b"x", encode_insert(Header(NO_REQUEST, SG, SLOT, 1), [])):
        with pytest.raises(CallerError):
            log.group.validate(payload)
        assert log.put(payload).error is not None
    log.epoch = 2
    early = log.put(log.insert([1], [1])).error
    assert isinstance(early, NotReady)
    assert not early.unit_closed
    log.add(Own(((SLOT, SLOT, 2),), 4))
    log.epoch = 1
    assert isinstance(log.put(log.insert([1], [1])).error, Moved)
    log.epoch = 2
    assert log.points() == {}
    assert log.put(log.insert([1], [7])) == DONE
    assert log.value(Own(((SLOT, SLOT, 3),), 3)) == {"slots": 0}  # older than what is known
    assert log.value(Own(((SLOT, SLOT, 2),), 9)) == {"slots": 0}
    with pytest.raises(CorruptData):
        log.group.apply(10_000, 1, b"\x02" + bad[1:])


def test_why_a_closed_unit_keeps_the_request_id(log: Log) -> None:
    """A copy of a request that met a closed unit may come after newer writes: under its own id it changes nothing."""
    log.create("s")
    waiting = log.insert([1], [1])
    assert isinstance(log.put(waiting).error, NotReady)
    log.open()
    assert log.put(waiting) == DONE
    assert log.put(log.insert([1], [2])) == DONE
    assert log.put(waiting) == DONE
    assert log.points() == {1: 2}


def test_deletes_of_points(log: Log) -> None:
    log.create("s")
    log.open()
    log.put(log.insert([1, 2, 3], [1, 2, 3]))
    answer = log.value(range_delete(2, 3))
    assert answer == {"intent": 1}
    progress = DeleteProgress()
    [action] = due_actions(log.group, progress)
    assert action.body == DeleteUnit(1, 0, range_delete(2, 3), OpenUnit(0, 0))
    assert log.put(encode(action.header._replace(slot_epoch=1), action.body)) == DONE
    progress.finished(action)
    assert log.points(schema_epoch=0) == {1: 1}
    log.put(log.insert([2], [20]))
    assert log.put(encode(action.header._replace(slot_epoch=1), action.body)) == DONE  # late, and again
    assert log.points() == {1: 1, 2: 20}
    [retire] = due_actions(log.group, progress)
    assert not log.group.is_retired(SG, 1)
    assert log.put(encode(retire.header, retire.body)).value == {"series": 0}
    assert log.group.is_retired(SG, 1)
    assert list(due_actions(log.group, progress)) == []


def test_deletes_of_series(log: Log) -> None:
    log.create("s")
    log.open()
    log.open(7)
    log.put(log.insert([1], [1]))
    assert log.value(SERIES) == {"intent": 1}
    with pytest.raises(Retiring):
        log.group.resolve(SG, SLOT, 1, {"root.sg.d": ["s"]})
    assert log.group.resolve(SG, SLOT, 1, {"root.sg.d": ["t"], "root.sg.x": ["t", "u"]}) == (
        1,
        {"root.sg.d": [None], "root.sg.x": [None, None]},
    )
    assert [one.path for one in log.group.match(SG, SLOT, 1, PathPattern.parse("root"))[1]] == ["root.sg.d.s"]
    with pytest.raises(Retiring, match="being deleted") as waits:
        raise log.error(EnsureSeries("root.sg", (SeriesSpec.default("root.sg.d.s", DataType.TEXT),)))
    assert (waits.value.number, waits.value.partitions) == (1, (0, 7))
    assert log.create("other")["epoch"] == 1
    assert log.points(schema_epoch=0) == {1: 1}
    progress = DeleteProgress()
    actions = list(due_actions(log.group, progress))
    assert [action.header.partition for action in actions] == [0, 7]
    for action in actions:
        progress.started(action)
    assert list(due_actions(log.group, progress)) == []
    for action in actions:
        assert log.put(encode(action.header._replace(slot_epoch=1), action.body)) == DONE
        progress.finished(action)
    assert isinstance(log.put(log.insert([1], [5], schema_epoch=0)).error, StaleSchema)
    with pytest.raises(StaleSchema):
        log.points(schema_epoch=0)
    assert log.points(schema_epoch=1) == {}
    assert log.value(DeleteRetire(1)) == {"series": 1}
    assert log.value(DeleteRetire(1)) == {"series": 0}
    assert log.error(SERIES).code == Status.TIMESERIES_NOT_EXIST
    assert log.create("s") == {"epoch": 1, "series": [2], "measurements": {}}
    assert log.put(log.insert([9], [9], schema_epoch=1)) == DONE
    assert log.points() == {9: 9}
    log.open(8)
    assert log.group.units()[SG, 8].floor == 1


def test_a_delete_by_alias_takes_the_points(log: Log) -> None:
    log.value(CreateSeries("root.sg", (SeriesSpec("root.sg.d.s", DataType.INT64, Encoding.RLE, alias="a"),)))
    log.open()
    log.put(log.insert([1], [1]))
    log.value(DeleteIntent(IntentKind.TIMESERIES, (PathPattern.exact("root.sg.d.a"),)))
    with pytest.raises(Retiring):
        raise log.error(EnsureSeries("root.sg", (SeriesSpec.default("root.sg.d.s", DataType.TEXT),)))
    [action] = due_actions(log.group, DeleteProgress())
    log.put(encode(action.header._replace(slot_epoch=1), action.body))
    assert log.points() == {}
    assert log.value(DeleteRetire(1)) == {"series": 1}


def test_intents_come_in_order_and_only_where_they_concern(log: Log) -> None:
    log.create("s")
    log.open(0)
    log.open(3)
    log.value(DeleteIntent(IntentKind.RANGE, SERIES.patterns, 0, 9, 0, 0))
    log.value(DeleteIntent(IntentKind.RANGE, SERIES.patterns, 0, 9, 3, 3))
    log.value(DeleteIntent(IntentKind.RANGE, SERIES.patterns, 0, 9, -5, 5))
    first, second, third = log.group.intents(SG)
    assert [one.partitions for one in (first, second, third)] == [{0: 0}, {3: 0}, {0: 1, 3: 2}]
    progress = DeleteProgress()
    assert [action.key for action in due_actions(log.group, progress)] == [(SG, 1, 0), (SG, 2, 3)]
    early = log.add(DeleteUnit(3, 1, third.delete, OpenUnit(0, 0))).error
    assert isinstance(early, NotReady)


def test_a_unit_of_which_all_copies_were_lost_is_opened_again_and_takes_deletes(log: Log) -> None:
    log.create("s", "t")
    log.open(2)
    progress = DeleteProgress()
    for _ in range(2):
        log.value(DeleteIntent(IntentKind.TIMESERIES, (PathPattern.exact("root.sg.d.s"),)))
        [action] = due_actions(log.group, progress)
        assert log.put(encode(action.header._replace(slot_epoch=1), action.body)) == DONE
        progress.finished(action)
        [retire] = due_actions(log.group, progress)
        log.put(encode(retire.header, retire.body))
        log.create("s")
    del log.group._state.units[SG, 2]  # as in a group where its slot has begun anew
    opening = log.value(ListPartition(SLOT), partition=2)
    assert opening["floor"] == 2  # nothing that was resolved before the deletes
    log.value(range_delete(0, 9))
    [action] = due_actions(log.group, progress)
    assert log.put(encode(action.header._replace(slot_epoch=1), action.body)) == DONE


def test_what_meta_has_decided_since_is_moved_for_reads_and_not_for_the_log(log: Log) -> None:
    log.create("s")
    log.open()
    insert = log.insert([1], [2])
    log.group.validate(insert)
    log.group.decided = {SLOT: 2}.__getitem__
    for read in (
        lambda: log.group.resolve(SG, SLOT, 1, {"root.sg.d": ["s"]}),
        lambda: log.group.reader(SG, 0, SLOT, 1, 0),
    ):
        with pytest.raises(Moved):
            read()
    assert log.put(insert) == DONE


def test_a_write_is_moved_for_good_only_where_the_log_says_so(log: Log) -> None:
    """Whoever hears "moved" writes anew under another id: an earlier attempt, in the log and not applied yet, must not
    take effect beside that."""
    log.create("s")
    log.open()
    insert = log.insert([1], [2])
    deletion = encode(log.header(), range_delete(0, 9))
    log.group.decided = {SLOT: 3}.__getitem__
    for entry in (insert, deletion):
        with pytest.raises(NotReady, match="is being told"):
            log.group.validate(entry)
    assert log.put(insert) == DONE
    log.group.validate(insert)  # it is known now what became of it
    log.value(Own(((SLOT, SLOT, 3),), 50))
    log.group.validate(insert)
    for entry in (log.insert([1], [2]), deletion):
        with pytest.raises(Moved):
            log.group.validate(entry)


def test_a_delete_opens_a_listed_unit(log: Log) -> None:
    log.create("s")
    opening = log.value(ListPartition(SLOT), partition=2)
    log.value(SERIES)
    [action] = due_actions(log.group, DeleteProgress())
    assert log.put(encode(action.header._replace(slot_epoch=1), action.body)) == DONE
    unit = log.group.units()[SG, 2]
    assert (unit.floor, unit.last_intent) == (1, 1)
    assert log.value(ListPartition(SLOT), partition=2) == {**opening, "floor": 1}
    assert log.add(OpenUnit(**opening), partition=2) == DONE
    assert (unit.floor, unit.last_intent) == (1, 1)


def test_repeated_schema_entries(log: Log) -> None:
    body = EnsureSeries("root.sg", (SeriesSpec.default("root.sg.d.s", DataType.INT64),))
    first = encode(log.header(), body)
    assert log.put(first).value == log.put(first).value
    created = encode(log.header(), CreateSeries("root.sg", (SeriesSpec.default("root.sg.d.t", DataType.TEXT),)))
    assert log.put(created).value == log.put(created).value == {"epoch": 0, "series": [None]}
    log.open()
    intent = encode(log.header(), SERIES)
    assert log.put(intent).value == log.put(intent).value == {"intent": 1}
    waits = log.put(first)  # it would name the old series under the new epoch
    assert isinstance(waits.error, Retiring)
    log.value(DeleteRetire(1))
    assert log.put(intent).value == {"intent": 0}
    assert [one[0] for one in log.put(first).value["series"]] == [Status.TIMESERIES_NOT_EXIST]
    assert log.group.schema(SG, SLOT, 1).tree.get("root.sg.d.s") is None  # type: ignore[union-attr]


def test_a_dropped_storage_group_is_gone_for_good(log: Log) -> None:
    log.create("s")
    log.open()
    log.put(log.insert([1], [1]))
    assert log.add(DropStorageGroup(77)) == log.add(DropStorageGroup(78)) == DONE
    assert log.group.units() == {}
    assert log.group.storage_groups() == []
    late = (
        ListPartition(SLOT),
        OpenUnit(0, 0),
        SERIES,
        DeleteUnit(1, 0, SERIES, OpenUnit(0, 0)),
        Expire(5),
        EnsureSeries("root.sg", ()),
    )
    for body in late:
        assert log.error(body).code == Status.STORAGE_GROUP_NOT_EXIST
    with pytest.raises(CallerError):
        log.points()
    assert log.replayed().digest() == log.group.digest()


def test_expiry_hides_what_stands_before_it(log: Log) -> None:
    log.create("s")
    log.open()
    log.put(log.insert([1, 5, 9], [1, 5, 9]))
    assert log.add(Expire(6)) == DONE
    log.put(log.insert([2], [2]))
    assert log.points() == {2: 2, 9: 9}


def test_partitions_and_intents_are_bounded(log: Log, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("iotdb_cluster.data.schema_slot.PARTITIONS_PER_STORAGE_GROUP_MAX", 2)
    monkeypatch.setattr("iotdb_cluster.data.schema_slot.OPEN_INTENTS_MAX", 1)
    log.create("s")
    for partition in (0, 1, 0):
        log.value(ListPartition(SLOT), partition=partition)
    refused = log.add(ListPartition(SLOT), partition=2).error
    assert refused is not None
    assert refused.code == Status.WRITE_PROCESS_REJECT
    log.value(SERIES)
    assert log.error(SERIES).code == Status.WRITE_PROCESS_REJECT


def test_packed_rows_and_configuration_entries(log: Log) -> None:
    log.create("s")
    log.open()
    shape = shape_of(("s",), (DataType.INT64,))
    table = np.zeros(2, shape.row_dtype)
    table["time"], table["c0"] = [4, 5], [40, 50]
    table.view(np.uint8).reshape(2, -1)[:, 8] = int(DataType.INT64)
    payload = encode_insert(log.header(), [Rows("root.sg.d", shape, table.tobytes())])
    log.group.validate(payload)
    results = log.group.apply_many(len(log.payloads) + 1, [2, 2, 3], [b"", payload, b""])
    assert results == [DONE, DONE, DONE]
    assert (log.group.applied, log.group.applied_term) == (len(log.payloads) + 3, 3)
    assert log.points() == {4: 40, 5: 50}


def test_a_checkpoint_waits_for_the_points_up_to_it(log: Log) -> None:
    log.create("s")
    log.open()
    log.put(log.insert([1], [1]))
    checkpoint = log.group.freeze()
    with pytest.raises(InvariantViolation, match=r"has index 5 in memory and is to be checkpointed at 5"):
        log.group.publisher(checkpoint)
    for job in checkpoint.jobs:
        job.run()
        job.finish()
    log.group.publisher(checkpoint)()
    assert log.replayed().applied == log.group.published == 5


def test_power_may_go_at_any_call_of_a_checkpoint() -> None:
    calls, finished = 0, False
    while not finished:
        calls += 1
        log = Log()
        log.create("s")
        log.open()
        log.put(log.insert([3, 1], [30, 10]))
        log.group.checkpoint_now()
        log.put(log.insert([1, 2], [11, 20]))
        log.files.cut_at = log.files.calls + calls
        try:
            log.group.checkpoint_now()
            finished = True
        except PowerCut:
            log.files.cut_at = None
            log.files.power_on()
            log.group = log.replayed()
            assert log.points() == {1: 11, 2: 20, 3: 30}, f"power cut at call {calls}"
    assert calls > 5


def test_bad_bytes_never_break_a_group(log: Log, insert_payloads: list[bytes]) -> None:
    """Whatever is in an entry: a value, a CallerError, or CorruptData for a version or kind not known."""
    log.create("s")
    log.open()
    bodies: list[Body] = [
        EnsureSeries("root.sg", (SeriesSpec.default("root.sg.d.x", DataType.TEXT),)),
        SERIES,
        range_delete(1, 2),
        AlterSeries("root.sg.d.s", Alter.upsert(alias="b", tags={"k": "v"})),
        DeleteUnit(1, 0, SERIES, OpenUnit(0, 0)),
        Expire(3),
        ListPartition(SLOT),
        DeleteRetire(1),
        Own(((1, 2, 3),), 4),
    ]
    random_ = random.Random(11)
    index, taken = len(log.payloads), 0
    for _ in range(3_000):
        if random_.random() < 0.5:
            payload = bytearray(random_.choice(insert_payloads))
        else:
            payload = bytearray(encode(log.header(), random_.choice(bodies)))
        for _ in range(random_.randrange(4)):
            payload[random_.randrange(56 if random_.random() < 0.7 else 0, len(payload))] = random_.randrange(256)
        data = bytes(payload[: random_.randrange(1, len(payload))]) if random_.random() < 0.1 else bytes(payload)
        index += 1
        with contextlib.suppress(CallerError):
            log.group.validate(data)
        try:
            taken += log.group.apply(index, 1, data).error is None
        except CorruptData:
            index -= 1
    assert taken > 40
    assert isinstance(log.group.digest(), str)


@pytest.mark.parametrize("seed", range(20))
def test_slots_come_back_from_their_runs(seed: int) -> None:
    rng = random.Random(seed)
    state = GroupState()
    for slot in rng.sample(range(60), rng.randint(0, 60)):
        state.slots[slot] = SlotState(rng.choice((1, 1, 1, 2)), rng.choice((7, 7, 9)))
    found = GroupState.from_json(json.loads(json.dumps(state.to_json())), [], [])
    assert found.slots == state.slots
    assert len(state.to_json()["slots"]) <= len(state.slots)


def test_a_whole_range_of_slots_is_one_run() -> None:
    state = GroupState()
    state.slots.update(dict.fromkeys(range(10, 5_000), SlotState(1, 7)))
    assert state.to_json()["slots"] == [[10, 4_999, 1, 7]]
