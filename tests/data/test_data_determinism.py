"""Replicas that apply one log hold one content, whenever they flush, checkpoint, restart or lose power."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable

import numpy as np
import pytest

from iotdb_cluster.columns import Block, Column, DataType, Rows, Tablet, shape_of
from iotdb_cluster.data import (
    AlterSeries,
    DataGroup,
    DeleteIntent,
    DeleteProgress,
    DropStorageGroup,
    EnsureSeries,
    Expire,
    Header,
    IntentKind,
    Kind,
    ListPartition,
    Own,
    PinnedContent,
    due_actions,
    encode,
    encode_insert,
)
from iotdb_cluster.errors import CorruptData
from iotdb_cluster.requests import NO_REQUEST, RequestId
from iotdb_cluster.schema import Alter, PathPattern, SeriesSpec
from iotdb_cluster.simulation import PowerCut, SimulatedDisk

GROUPS = {5: "root.sg", 6: "root.other"}
KINDS = {"a": DataType.INT64, "b": DataType.DOUBLE, "c": DataType.TEXT, "d": DataType.BOOLEAN}
DIRECTORY = "/data/group1"


def random_block(random_: random.Random, path: str) -> Block:
    names = tuple(random_.sample(list(KINDS), random_.randrange(1, 4)))
    shape = shape_of(names, tuple(KINDS[name] for name in names))
    rows = random_.randrange(1, 6)
    times = np.array([random_.randrange(20) for _ in range(rows)], np.int64)
    device = f"{path}.d{random_.randrange(2)}"
    if not shape.has_text and random_.random() < 0.5:
        table = np.zeros(rows, shape.row_dtype)
        table["time"] = times
        raw = table.view(np.uint8).reshape(rows, -1)
        for at, kind in enumerate(shape.types):
            table[f"c{at}"] = [random_.randrange(2) for _ in range(rows)]
            raw[:, shape.row_dtype.fields[f"c{at}"][1] - 1] = int(kind)
        return Rows(device, shape, table.tobytes())
    cells = {DataType.TEXT: lambda: f"x{random_.randrange(9)}", DataType.BOOLEAN: lambda: random_.random() < 0.5}
    columns = []
    for kind in shape.types:
        cell: Callable[[], object] = cells.get(kind, lambda: random_.randrange(99))
        columns.append(Column.of(kind, [None if random_.random() < 0.2 else cell() for _ in range(rows)]))
    return Tablet(device, shape, times, columns)


def random_log(seed: int, length: int, taken: Counter[Kind] | None = None) -> list[bytes]:
    """Entries of every kind; the deletes are driven by a group that applies the log as it grows."""
    random_ = random.Random(seed)
    log = [encode(Header(NO_REQUEST), Own(((100, 109, 1), (200, 209, 1)), 1))]
    guide = DataGroup.open(1, SimulatedDisk(), DIRECTORY)
    guide.apply(1, 1, log[0])
    epochs = dict.fromkeys([*range(100, 110), *range(200, 210)], 1)
    meta_index, dropped = 1, False
    listed: set[tuple[int, int]] = set()

    def header(group: int, partition: int) -> Header:
        slot = (100 if group == 5 else 200) + partition
        request = RequestId(random_.randrange(1, 3), 1, len(log) + 1 - random_.randrange(2), max(1, len(log) - 50))
        known = guide.intents(group)
        return Header(request, group, slot, epochs[slot], (len(known) and known[-1].number) or 9, partition)

    while len(log) < length:
        group = random_.choice([5, 5, 6])
        path, partition = GROUPS[group], random_.randrange(3)
        what = random_.random()
        if what < 0.45:
            blocks = [random_block(random_, path) for _ in range(random_.randrange(1, 4))]
            payload = encode_insert(header(group, partition), blocks)
        elif what < 0.55:
            specs = tuple(
                SeriesSpec.default(f"{path}.d{i}.{name}", kind) for i in (0, 1) for name, kind in KINDS.items()
            )
            payload = encode(header(group, 0), EnsureSeries(path, specs))
        elif what < 0.65:
            payload = encode(
                header(group, 0)._replace(partition=partition), ListPartition((group - 4) * 100 + partition)
            )
            if (group, partition) in listed and not guide.is_dropped(group) and random_.random() < 0.7:
                opening = guide.listed(group, partition)[1]
                payload = encode(header(group, partition), opening)
        elif what < 0.7:
            pattern = PathPattern.parse(f"{path}.d{random_.randrange(2)}.{random_.choice('abcd*')}")
            kind = random_.choice(list(IntentKind))
            low = random_.randrange(20) if kind is IntentKind.RANGE else -(2**63)
            payload = encode(header(group, 0), DeleteIntent(kind, (pattern,), low))
        elif what < 0.88:
            progress = DeleteProgress()
            if random_.random() < 0.5:
                progress.done = {(one, n): {0, 1, 2} for one in GROUPS for n in range(length)}
            actions = list(due_actions(guide, progress))
            if not actions:
                continue
            action = random_.choice(actions)
            payload = encode(action.header._replace(slot_epoch=epochs[action.header.slot]), action.body)
        elif what < 0.93:
            payload = encode(header(group, 0), Expire(random_.randrange(8)))
        elif what < 0.96:
            change = Alter.upsert(tags={"k": str(random_.randrange(5))})
            payload = encode(header(group, 0), AlterSeries(f"{path}.d0.a", change))
        elif what < 0.98:
            meta_index += 1
            slot = random_.choice(list(epochs))
            epochs[slot] += 1
            payload = encode(Header(NO_REQUEST), Own(((slot, slot, epochs[slot]),), meta_index))
        elif what < 0.985 and not dropped and len(log) > length // 2:
            dropped = True
            payload = encode(Header(NO_REQUEST, 6), DropStorageGroup(meta_index))
        else:
            payload = b""
        log.append(payload)
        result = guide.apply(len(log), 1, payload)
        kind_of = Kind(payload[1]) if payload else None
        if kind_of is Kind.LIST_PARTITION and result.error is None:
            listed.add((group, partition))
        if taken is not None and kind_of is not None:
            taken[kind_of] += result.error is None
    return log


def flush_one(group: DataGroup, random_: random.Random) -> None:
    units = group.store.units()
    for job in group.store.seal(random_.sample(units, 1) if units else []):
        job.run()
        job.finish()


@pytest.mark.parametrize("seed", range(8))
def test_a_digest_is_of_the_moment_at_which_it_was_asked_for(seed: int) -> None:
    """It is walked and computed while the group goes on, and while a checkpoint is made."""
    log = random_log(seed, 160, Counter())
    random_ = random.Random(seed)
    group = DataGroup.open(1, SimulatedDisk(), DIRECTORY)
    group.apply_many(1, [1] * 80, log[:80])
    expected = group.digest()
    with PinnedContent(group) as content:
        while content.step():
            pass
        contents = content.digests()
    with group.digester() as digest, PinnedContent(group) as content:
        checkpoint = group.freeze()
        for index in range(81, 161):
            group.apply(index, 1, log[index - 1])
            if random_.random() < 0.2:
                digest.step()
            if random_.random() < 0.2:
                content.step()
        while checkpoint.step() or digest.step() or content.step():
            pass
        assert digest.compute() == expected
        assert content.digests() == contents
    assert group.digest() != expected


def test_equal_logs_give_equal_contents() -> None:
    taken: Counter[Kind] = Counter()
    for seed in range(12):
        log = random_log(seed, 200, taken)
        random_ = random.Random(seed)
        plain = DataGroup.open(1, SimulatedDisk(), DIRECTORY)
        plain.apply_many(1, [1] * len(log), log)
        disk = SimulatedDisk()
        group = DataGroup.open(1, disk, DIRECTORY)
        index = 0
        while index < len(log):
            step = random_.randrange(1, 20)
            results = group.apply_many(index + 1, [1] * len(log[index : index + step]), log[index : index + step])
            index += len(results)
            what = random_.random()
            if what < 0.3:
                group.checkpoint_now()
            elif what < 0.6:
                flush_one(group, random_)
            elif what < 0.8:
                group = DataGroup.open(1, disk, DIRECTORY)
                index = group.applied
        assert group.digest() == plain.digest()
        assert group.dump_state() == plain.dump_state()
        reopened = DataGroup.open(1, disk, DIRECTORY)
        reopened.apply_many(reopened.applied + 1, [1] * (len(log) - reopened.applied), log[reopened.applied :])
        assert reopened.digest() == plain.digest()
    elsewhere = (Kind.CREATE_SERIES, Kind.DROP_STORAGE_GROUP, *(kind for kind in Kind if kind >= Kind.FENCE))
    assert min(taken[kind] for kind in Kind if kind not in elsewhere) > 10


def test_state_travels_alone() -> None:
    log = random_log(3, 150)
    group = DataGroup.open(1, SimulatedDisk(), DIRECTORY)
    group.apply_many(1, [1] * len(log), log)
    other = DataGroup.open(1, SimulatedDisk(), "/other/group1")
    other.load_state(group.dump_state())
    assert other.dump_state() == group.dump_state()
    assert (other.applied, other.applied_term) == (group.applied, 1)
    with pytest.raises(CorruptData):
        other.load_state(group.dump_state()[:-20])
    with pytest.raises(CorruptData):
        other.load_state(b"\x01\x00\x00\x00\x02{}")


def live(disk: SimulatedDisk, log: list[bytes], seed: int) -> None:
    """What a node does: apply, flush now and then, checkpoint; the power may go at any call."""
    random_ = random.Random(seed)
    group = DataGroup.open(1, disk.mount(), DIRECTORY)
    while group.applied < len(log):
        at = group.applied
        part = log[at : at + 12]
        group.apply_many(at + 1, [1] * len(part), part)
        if random_.random() < 0.4:
            flush_one(group, random_)
        if random_.random() < 0.4:
            group.checkpoint_now()
    group.checkpoint_now()


def test_power_may_go_at_any_call() -> None:
    log = random_log(8, 90)
    plain = DataGroup.open(1, SimulatedDisk(), DIRECTORY)
    plain.apply_many(1, [1] * len(log), log)
    expected = plain.digest()
    whole = SimulatedDisk(random.Random(0))
    live(whole, log, 1)
    cuts = 0
    for call in range(1, whole.calls, 3):
        disk = SimulatedDisk(random.Random(call))
        disk.cut_at = call
        try:
            live(disk, log, 1)
        except PowerCut:
            cuts += 1
        disk.cut_at = None
        disk.power_on()
        group = DataGroup.open(1, disk.mount(), DIRECTORY)
        group.apply_many(group.applied + 1, [1] * (len(log) - group.applied), log[group.applied :])
        assert group.store.corrupt == {}
        assert group.digest() == expected, f"power cut at call {call}"
    assert cuts > 20


def test_a_damaged_checkpoint_is_named() -> None:
    disk = SimulatedDisk()
    group = DataGroup.open(1, disk, DIRECTORY)
    group.apply_many(1, [1] * 60, random_log(1, 60))
    group.checkpoint_now()
    for name in [name for name in disk.list(DIRECTORY) if name.endswith(".ckpt")]:
        disk.flip(f"{DIRECTORY}/{name}", 30)
        with pytest.raises(CorruptData, match=name):
            DataGroup.open(1, disk, DIRECTORY)
        disk.flip(f"{DIRECTORY}/{name}", 30)
    assert DataGroup.open(1, disk, DIRECTORY).applied == 60


def test_schema_is_written_only_where_it_changed() -> None:
    disk = SimulatedDisk()
    log = random_log(2, 120)
    group = DataGroup.open(1, disk, DIRECTORY)
    group.apply_many(1, [1] * 120, log)
    group.checkpoint_now()
    before = [name for name in disk.list(DIRECTORY) if name.startswith("schema-")]
    assert before
    for _ in range(2):
        group.apply(group.applied + 1, 1, encode(Header(NO_REQUEST), Own(((7, 7, 1),), 999)))
        assert all(blob.tree is None for blob in group.freeze().schemas)
        group.checkpoint_now()
        group = DataGroup.open(1, disk, DIRECTORY)
    assert [name for name in disk.list(DIRECTORY) if name.startswith("schema-")] == before
    assert len([name for name in disk.list(DIRECTORY) if name.startswith("state-")]) == 1
