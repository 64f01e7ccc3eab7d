"""Chunk files and manifests as bytes; large tables; statistics against numpy; units that come and go."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import pytest

from iotdb_cluster.columns import Column, DataType, Tablet, TextColumn, shape_of
from iotdb_cluster.errors import CorruptData, InvariantViolation, SystemFault
from iotdb_cluster.simulation.disk import SimulatedDisk
from iotdb_cluster.storage import Store, StoreOptions, UnitId, add_sums, round_values
from iotdb_cluster.storage.manifest import MARK, RECORD, Manifest, ManifestState, manifest_bytes

U, V = UnitId(1, 0), UnitId(1, 1)
D = DataType.DOUBLE
DEVICE = "root.sg.d0"
MIN, MAX = -(1 << 63), (1 << 63) - 1
PLAIN = shape_of(("a", "b"), (DataType.DOUBLE, DataType.INT32))


def tablet(times: Any, seed: int = 0, device: str = DEVICE) -> Tablet:
    generator = np.random.default_rng(seed)
    times = np.asarray(times, np.int64)
    doubles = generator.normal(size=len(times)).round(2)
    ints = generator.integers(-100, 100, len(times)).astype(np.int32)
    return Tablet(
        device, PLAIN, times, [Column(D, doubles), Column(DataType.INT32, ints, generator.random(len(times)) < 0.7)]
    )


def points(store: Store, unit: UnitId, name: str, kind: DataType, device: str = DEVICE) -> tuple[Any, Any]:
    with store.reader(unit) as reader:
        batches = list(reader.read(device, name, kind, MIN, MAX))
    if not batches:
        return np.empty(0, np.int64), np.empty(0)
    return np.concatenate([times for times, _ in batches]), np.concatenate([values for _, values in batches])


def check_windows(store: Store, unit: UnitId, name: str, kind: DataType, starts: Any, ends: Any, **how: Any) -> None:
    times, values = points(store, unit, name, kind)
    with store.reader(unit) as reader:
        got = reader.window_statistics(DEVICE, name, kind, starts, ends, **how)
    if how.get("decimals") is not None:
        values = round_values(values, how["decimals"])
    for at, (low, high) in enumerate(zip(starts.tolist(), ends.tolist(), strict=True)):
        inside = slice(np.searchsorted(times, low), np.searchsorted(times, high, "right"))
        mine, when = values[inside], times[inside]
        assert got.count[at] == len(mine)
        if len(mine):
            assert (got.first_times[at], got.last_times[at]) == (when[0], when[-1])
            assert np.isclose(got.first_values[at], mine[0])
            assert np.isclose(got.last_values[at], mine[-1])
            assert np.isclose(got.min_values[at], mine.min())
            assert np.isclose(got.max_values[at], mine.max())
            assert np.isclose(got.sum_hi[at] + got.sum_lo[at], mine.astype(np.float64).sum(), atol=1e-6)


def test_statistics_of_large_series_equal_numpy(tools: Any) -> None:
    disk = SimulatedDisk(random.Random(1))
    store = Store.open(disk, "/s")
    store.open_unit(U, (1, 0))
    generator = np.random.default_rng(5)
    for index, low in enumerate((0, 40_000, 35_000, 90_000), 1):  # the third overlaps, the last stays in memory
        store.write(U, 1, index, [tablet(generator.permutation(np.arange(low, low + 30_000)), index)])
        if low < 90_000:
            tools.flush(store)
    store.delete(U, 1, 8, r"root\.sg\.d0\.a", 20_000, 20_100)
    store.delete(U, 1, 9, r"root\.sg\.d0\.a", 12_000, 12_100)
    for name, kind in PLAIN_SERIES:  # blocks answer by themselves, but for those that a delete or another file touches
        check_windows(store, U, name, kind, np.array([0, 50_000]), np.array([49_999, 200_000]))
    store.write(U, 1, 10, [tablet([5, 50_000, 12_050], 10)])
    for step, width in ((1000, 1000), (50_000, 50_000), (4096, 3000), (77, 60), (200_000, 200_000)):
        starts = np.arange(-100, 130_000, step)
        for name, kind in PLAIN_SERIES:
            check_windows(store, U, name, kind, starts, starts + width - 1)
            check_windows(store, U, name, kind, starts, starts + width - 1, decimals=1 if kind is D else None)
    with store.reader(U) as reader:
        whole = reader.window_statistics(DEVICE, "a", D, np.array([MIN]), np.array([MAX]))
        parts = reader.window_statistics(DEVICE, "a", D, np.arange(0, 130_000, 13), np.arange(12, 130_012, 13))
    again = np.array([whole.sum_hi[0]])
    total_hi, total_lo = np.zeros(1), np.zeros(1)
    assert parts.sum_hi is not None
    assert parts.sum_lo is not None
    for hi, lo in zip(parts.sum_hi, parts.sum_lo, strict=True):
        total_hi, total_lo = add_sums(total_hi, total_lo, np.array([hi]), np.array([lo]))
    assert total_hi == again  # to the last bit, however it was grouped
    digest = store.digest(U)
    tools.flush(store)
    while tools.compact(store):
        pass
    assert store.digest(U) == digest
    store.close()


PLAIN_SERIES = (("a", D), ("b", DataType.INT32))


def test_aggregation_decodes_edges_only(tools: Any) -> None:
    disk = SimulatedDisk(random.Random(1))
    store = Store.open(disk, "/s")
    store.open_unit(U, (1, 0))
    store.write(U, 1, 1, [tablet(np.arange(200_000))])
    tools.flush(store)
    with store.reader(U) as reader:
        reader.window_statistics(DEVICE, "a", D, np.array([0]), np.array([5]))
        before = disk.reads
        got = reader.window_statistics(DEVICE, "a", D, np.array([MIN]), np.array([MAX]))
        assert disk.reads == before
        assert got.count[0] == 200_000
        reader.window_statistics(DEVICE, "a", D, np.array([10]), np.array([199_990]))
        assert disk.reads <= before + 4  # time and value page at both ends


def test_a_million_rows_and_five_thousand_columns(tools: Any) -> None:
    disk = SimulatedDisk(random.Random(1))
    store = Store.open(disk, "/s")
    store.open_unit(U, (1, 0))
    times = np.arange(1_000_000) * 1000 + MIN
    one = shape_of(("x",), (DataType.INT64,))
    store.write(U, 1, 1, [Tablet("root.sg.long", one, times, [Column(DataType.INT64, np.arange(1_000_000))])])
    names = tuple(f"m{at}" for at in range(5000))
    wide = shape_of(names, (DataType.FLOAT,) * 5000)
    columns = [Column(DataType.FLOAT, np.full(3, at, np.float32)) for at in range(5000)]
    store.write(U, 1, 2, [Tablet("root.sg.wide", wide, np.array([MAX, 0, MIN]), columns)])
    for _ in range(2):
        with store.reader(U) as reader:
            assert len(reader.series()) == 5001
            got = np.concatenate([v for _, v in reader.read("root.sg.long", "x", DataType.INT64, MIN, MAX)])
            assert (got == np.arange(1_000_000)).all()
            ((when, values),) = list(reader.read("root.sg.wide", "m4999", DataType.FLOAT, MIN, MAX))
            assert when.tolist() == [MIN, 0, MAX]
            assert values.tolist() == [4999.0] * 3
            (batch,) = reader.read_device("root.sg.wide", [(name, DataType.FLOAT) for name in names], 0, MAX)
            assert len(batch.columns) == 5000
        tools.flush(store)


def test_large_texts(tools: Any) -> None:
    store = Store.open(SimulatedDisk(random.Random(1)), "/s")
    store.open_unit(U, (1, 0))
    shape = shape_of(("t",), (DataType.TEXT,))
    texts = [b"", b"x" * (1 << 20), "ü€𝄞".encode(), b""]
    store.write(U, 1, 1, [Tablet(DEVICE, shape, np.arange(4), [Column(DataType.TEXT, TextColumn.of(texts))])])
    for _ in range(2):
        with store.reader(U) as reader:
            ((_, values),) = list(reader.read(DEVICE, "t", DataType.TEXT, MIN, MAX))
            assert values.tolist() == texts
            got = reader.window_statistics(DEVICE, "t", DataType.TEXT, np.array([0, 2, 9]), np.array([1, 3, 9]))
            assert got.count.tolist() == [2, 2, 0]
            assert isinstance(got.last_values, TextColumn)
            assert got.last_values.tolist() == [texts[1], texts[3], b""]
        tools.flush(store)


def _damaged_store(tools: Any, disk: SimulatedDisk) -> tuple[int, str]:
    """Two units; returns the digest of U and the path of its directory."""
    with tools.tiny_pages():
        store = Store.open(disk, "/s")
        shape = shape_of(("a", "t", "f"), (D, DataType.TEXT, DataType.BOOLEAN))
        for unit in (U, V):
            store.open_unit(unit, (1, 0))
            rows = 40
            columns = [
                Column(D, np.arange(rows) * 1.5),
                Column.of(DataType.TEXT, [None if at % 3 else f"text {at}" for at in range(rows)]),
                Column(DataType.BOOLEAN, np.arange(rows) % 2 == 0),
            ]
            store.write(unit, 1, 1, [Tablet(DEVICE, shape, np.arange(rows), columns)])
            store.delete(unit, 1, 2, r".*\.a", 3, 5)
        tools.flush(store)
        store.delete(U, 1, 3, r".*\.a", 7, 9)
        tools.flush(store)
        digest = store.digest(U)
        store.close()
    return digest, "/s/1.0.1"


@pytest.mark.parametrize("name", ["000001.chunk", "manifest"])
def test_every_flipped_bit_is_noticed(tools: Any, name: str) -> None:
    disk = SimulatedDisk(random.Random(1))
    digest, directory = _damaged_store(tools, disk)
    path = f"{directory}/{name}"
    size = disk.open(path).size()
    whole = disk.open(path).read(0, size)
    rng = random.Random(4)
    spots = range(size) if size < 700 else sorted(rng.sample(range(size), 700))
    missed = []
    with tools.tiny_pages():
        for offset in spots:
            disk.flip(path, offset, offset % 8)
            store = Store.open(disk, "/s")
            try:
                same = store.digest(U) == digest
                # only in the empty record that closes a manifest may a bit go unnoticed
                if not (same and name == "manifest" and offset >= size - 40):
                    missed.append(offset)
            except CorruptData:
                assert U in store.corrupt
                with pytest.raises(SystemFault):
                    store.reader(U)
            store.digest(V)  # the other unit serves
            store.close()
            file = disk.open(path)
            file.truncate(0)
            file.write(0, whole)
    assert missed == []


def test_a_missing_cut_or_strange_file_is_noticed(tools: Any) -> None:
    for harm in ("remove", "cut", "version", "no manifest header"):
        disk = SimulatedDisk(random.Random(1))
        _, directory = _damaged_store(tools, disk)
        path = f"{directory}/000001.chunk"
        if harm == "remove":
            disk.remove(path)
        elif harm == "cut":
            disk.open(path).truncate(100)
        elif harm == "version":
            disk.open(path).write(8, b"\x63")
        else:
            disk.open(f"{directory}/manifest").write(8, b"\x63")
        store = Store.open(disk, "/s")
        with pytest.raises(CorruptData):
            store.digest(U)
        assert list(store.corrupt) == [U]
        store.write(U, 1, 9, [tablet([1])])  # it goes on applying, and is not flushed over the damage
        assert store.seal() == [] or all(job.unit != U for job in store.seal())
        store.drop_unit(U)
        assert store.units() == [V]
        assert store.corrupt == {}
        assert Store.open(disk, "/s").units() == [U, V]  # as far as is durable
        store.settle()
        assert Store.open(disk, "/s").units() == [V]


def test_drop_keeps_readers_alive_and_a_replayed_drop_spares_what_came_back(tools: Any) -> None:
    disk = SimulatedDisk(random.Random(1))
    store = Store.open(disk, "/s")
    store.open_unit(U, (1, 1), {"floor": 3})
    store.write(U, 1, 2, [tablet(range(100))])
    tools.flush(store)
    store.write(U, 1, 3, [tablet(range(100, 200))])
    reader = store.reader(U)
    digest = reader.digest()
    running = store.seal()
    store.drop_unit(U, (1, 4))
    for job in running:
        job.run()
        job.finish()
    assert store.units() == []
    assert Store.open(disk.mount(), "/other").units() == []
    store.open_unit(U, (1, 5))
    store.write(U, 1, 6, [tablet([7])])
    tools.flush(store)
    store.collect()
    assert reader.digest() == digest
    assert store.memory_bytes() == store.pinned_bytes() > 0  # by the reader
    reader.close()
    assert store.pinned_bytes() == 0
    assert store.memory_bytes() == 0
    store.collect()
    assert disk.list("/s") == ["1.0.2"]
    store = Store.open(disk, "/s")
    store.open_unit(U, (1, 1))
    store.drop_unit(U, (1, 4))
    assert store.units() == [U]
    assert points(store, U, "a", D)[0].tolist() == [7]
    with pytest.raises(InvariantViolation):
        reader.series()


def test_meta_is_kept_and_a_new_unit_becomes_durable_without_writes(tools: Any) -> None:
    disk = SimulatedDisk(random.Random(1))
    store = Store.open(disk, "/s")
    store.open_unit(U, (1, 1), {"floor": 3})
    assert len(store.seal([U])) == 1
    for job in store.seal([U]):
        job.run()
    tools.flush(store)
    store.set_meta(U, {"floor": 4})
    for job in store.seal([U]):
        job.run()
        job.finish()
    assert store.seal() == []
    disk.power_cut()
    store = Store.open(disk, "/s")
    assert store.meta(U) == {"floor": 4}
    assert store.flushed(U) == (1, 1)


def test_compaction_folds_tombstones_and_joins_files(tools: Any) -> None:
    disk = SimulatedDisk(random.Random(1))
    store = Store.open(disk, "/s", StoreOptions(compaction_files_min=3, tombstones_max=1))
    store.open_unit(U, (1, 0))
    for index in range(1, 4):
        store.write(U, 1, index, [tablet(range(index * 50, index * 50 + 100), index)])
        tools.flush(store)
    store.delete(U, 1, 5, r".*\.a", 0, 90)
    store.expire(U, 1, 6, 60)
    tools.flush(store)
    digest = store.digest(U)
    assert len(store.tombstones_of(U)) == 2
    while tools.compact(store):
        pass
    assert len(store.files_of(U)) == 1
    assert store.tombstones_of(U) == []
    assert store.digest(U) == digest
    store = Store.open(disk, "/s")
    assert store.tombstones_of(U) == []
    assert store.digest(U) == digest
    store.expire(U, 1, 7, MAX)
    store.delete(U, 1, 8, ".*", MAX, MAX)
    tools.flush(store)
    store = Store.open(disk, "/s", StoreOptions(tombstones_max=1))
    while tools.compact(store):
        pass
    assert store.files_of(U) == []
    with store.reader(U) as reader:
        assert reader.series() == []


def test_positions_must_not_go_back() -> None:
    store = Store.open(SimulatedDisk(random.Random(1)), "/s")
    store.open_unit(U, (1, 4))
    store.write(U, 1, 4, [tablet([1])])  # at or below the opening: passed over
    assert store.oldest_unflushed(U) is None
    store.write(U, 1, 9, [tablet([1])])
    assert store.oldest_unflushed(U) == 9
    with pytest.raises(InvariantViolation):
        store.write(U, 1, 8, [tablet([1])])
    with pytest.raises(InvariantViolation):
        store.write(V, 1, 9, [tablet([1])])


def test_deletions_are_folded_in_when_the_unit_rests(tools: Any) -> None:
    """A few deletions do not make a file be rewritten at once; a unit that is left alone gives the space back."""
    store = Store.open(SimulatedDisk(random.Random(1)), "/s")
    store.open_unit(U, (1, 0))
    store.write(U, 1, 1, [tablet(range(5_000))])
    tools.flush(store)
    before = sum(info.bytes for info in store.files_of(U))
    store.delete(U, 1, 2, r".*", 100, MAX)
    assert store.pick(0.0) is None
    tools.flush(store)
    assert store.pick(1_000.0) is None
    assert store.pick(50_000.0) is None  # the rest began with the look before
    store.delete(U, 1, 3, r".*", 0, 5)
    tools.flush(store)
    assert store.pick(62_000.0) is None
    job = store.pick(62_000.0 + 61_000.0)
    assert job is not None
    job.run()
    job.finish()
    store.collect()
    assert store.tombstones_of(U) == []
    assert sum(info.bytes for info in store.files_of(U)) < before / 10
    assert points(store, U, "a", D)[0].tolist() == list(range(6, 100))
    assert store.pick(1e9) is None


def test_files_that_have_expired_go_without_being_read(tools: Any) -> None:
    disk = SimulatedDisk(random.Random(1))
    store = Store.open(disk, "/s")
    store.open_unit(U, (1, 0))
    for index in range(3):
        store.write(U, 1, index + 1, [tablet(range(index * 100, index * 100 + 100))])
        tools.flush(store)
    assert not store.expiry_pays(U, 30)
    assert store.expiry_pays(U, 51)
    assert store.expiry_pays(U, 110)
    store.expire(U, 1, 10, 110)
    store.expire(U, 1, 11, 120)  # reaches further: the one before is not needed any more
    assert not store.expiry_pays(U, 120)
    tools.flush(store)
    reads = disk.reads
    job = store.pick()
    assert job is not None
    job.run()
    job.finish()
    assert disk.reads == reads
    assert len(store.files_of(U)) == 2
    assert [stone.high for stone in store.tombstones_of(U)] == [119]
    assert points(store, U, "a", D)[0].tolist() == list(range(120, 300))
    store = Store.open(disk, "/s")
    assert points(store, U, "a", D)[0].tolist() == list(range(120, 300))
    store.expire(U, 1, 12, 50)  # hides nothing: the unit stays clean
    assert store.oldest_unflushed(U) is None


def test_storage_groups_take_turns(tools: Any) -> None:
    store = Store.open(SimulatedDisk(random.Random(1)), "/s", StoreOptions(compaction_files_min=2))
    units = [UnitId(1, 0), UnitId(1, 1), UnitId(1, 2), UnitId(2, 0), UnitId(3, 5)]
    for unit in units:
        store.open_unit(unit, (1, 0))
        for index in (1, 2):
            store.write(unit, 1, index, [tablet(range(index))])
            tools.flush(store)
    served = []
    while (job := store.pick()) is not None:
        served.append(job.unit)
        job.run()
        job.finish()
    assert served == [UnitId(1, 0), UnitId(2, 0), UnitId(3, 5), UnitId(1, 1), UnitId(1, 2)]


def test_a_job_that_is_given_up_between_two_steps_leaves_the_unit_as_it_was(tools: Any) -> None:
    disk = SimulatedDisk(random.Random(1))
    with tools.tiny_pages():
        store = Store.open(disk, "/s", StoreOptions(compaction_files_min=2))
        store.open_unit(U, (1, 0))
        for index in (1, 2):
            store.write(U, 1, index, [tablet(range(index * 50, index * 50 + 90), index)])
            tools.flush(store)
        digest, files = store.digest(U), store.files_of(U)
        job = store.pick()
        assert job is not None
        assert not job.step(1)
        assert store.pick() is None  # never two on the same files
        job.finish()
        assert (store.digest(U), store.files_of(U)) == (digest, files)
        store.collect()
        assert sorted(disk.list("/s/1.0.1")) == ["000001.chunk", "000002.chunk", "manifest"]
        job = store.pick()
        assert job is not None
        steps = 1
        while not job.step(1):
            steps += 1
        job.finish()
        assert steps > 5
        assert store.digest(U) == digest


@pytest.mark.parametrize("length", range(1, 12))
def test_a_record_that_was_torn_to_its_mark_and_zeros_is_the_end(length: int) -> None:
    whole = manifest_bytes(ManifestState())
    torn = (RECORD.pack(MARK, 300, 12345)[:4] + bytes(400))[: 4 + 30 * length]
    assert Manifest.read("/unit", whole + torn).to_json() == Manifest.read("/unit", whole).to_json()
