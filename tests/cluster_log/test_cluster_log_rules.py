"""The rules of the durable log, one by one."""

from __future__ import annotations

import asyncio
import errno
import random
import struct
from typing import Any

import pytest
from crc32c import crc32c

from iotdb_cluster.cluster.log import (
    Append,
    Compact,
    Configuration,
    DurableLog,
    Install,
    LogFault,
    LogOptions,
    Remove,
    State,
    describe,
)
from iotdb_cluster.errors import CorruptData, InvariantViolation
from iotdb_cluster.raft import (
    Compacted,
    ConfState,
    Entries,
    HardState,
    NotInMemory,
    Snapshot,
    SnapshotNotReady,
    Unavailable,
)
from iotdb_cluster.simulation import PowerCut, SimulatedDisk
from tests.cluster.shell import watch_reads


def append(replica: int, first: int, *payloads: bytes, term: int = 1) -> Append:
    """Long payloads are replaced by noise of their length, which is not compressed."""
    data = [one[:1] + random.Random(1).randbytes(len(one) - 1) if len(one) > 1_000 else one for one in payloads]
    return Append(replica, Entries(first, [term] * len(payloads), [0] * len(payloads), data))


def segments(bench: Any, kit: Any) -> list[str]:
    return [f"{kit.DIRECTORY}/{name}" for name in bench.disk.list(kit.DIRECTORY) if name.startswith("segment")]


def batches(bench: Any, kit: Any) -> dict[int, tuple[str, int]]:
    """Path and offset of each whole batch, by sequence."""
    found = {}
    for line in describe(bench.disk, kit.DIRECTORY):
        words = line.split()
        if words[0] == "batch":
            found[int(words[1])] = (words[3], int(words[5].rstrip(":")))
    return found


def test_an_empty_log(make_bench: Any, kit: Any) -> None:
    bench = make_bench()
    log = bench.open()
    view = log.view(1)
    assert view.initial_state() == (HardState(), ConfState())
    assert (view.first_index(), view.last_index(), view.term(0)) == (1, 0, 0)
    with pytest.raises(Unavailable):
        view.term(1)
    with pytest.raises(SnapshotNotReady):
        view.snapshot()
    view.snapshot_source = lambda: Snapshot(7)
    assert view.snapshot().index == 7
    assert len(segments(bench, kit)) == 3
    with pytest.raises(BlockingIOError):
        bench.open()
    log.abandon()


def test_the_view(make_bench: Any) -> None:
    bench = make_bench()
    log = bench.open()
    first = append(1, 1, b"a", b"bb", b"ccc")
    second = Append(1, Entries(4, [2, 2, 3], [0, 1, 2], [b"d" * 100, b"", b"f"]))
    answered = bench.write(
        log, [[first, State(1, HardState(3, 2, 3))], [second, Configuration(1, ConfState((1, 2)))], []]
    )
    assert answered == [0, 1, 2]
    for cached in (True, False):
        if not cached:
            bench.disk.power_cut()
            log = bench.open()
        view = log.view(1)
        assert log.replicas() == [1]
        assert view.initial_state() == (HardState(3, 2, 3), ConfState((1, 2)))
        assert [view.term(index) for index in range(7)] == [0, 1, 1, 1, 2, 2, 3]
        assert view.entries(1, 7, 1 << 30) == first.entries.concat(second.entries)
        assert view.entries(2, 4, 1 << 30) == first.entries.slice(2, 4)
        assert view.entries(3, 7, 0) == first.entries.slice(3, 4)
        assert view.entries(3, 7, 19 + 16 + 99).last == 3
        assert view.entries(3, 7, 19 + 16 + 100).last == 4
        with pytest.raises(Unavailable):
            view.entries(3, 8, 1)


def test_what_cancels_what(make_bench: Any) -> None:
    bench = make_bench()
    log = bench.open()
    bench.write(
        log,
        [
            [append(1, 1, b"1", b"2", b"3", b"4")],
            [append(2, 1, b"x")],
            [append(1, 3, b"3'", term=2)],  # cancels 3 and 4
            [State(1, HardState(5, 1, 2)), Configuration(1, ConfState((1,)))],
            [Compact(1, 1, 1)],
            [append(1, 4, b"4'", term=2)],
            [append(2, 2, b"y")],
            [Install(2, 9, 4, ConfState((3,)))],  # cancels all of replica 2
            [append(2, 10, b"z", term=4)],
            [append(3, 1, b"gone")],
            [Remove(3)],
        ],
    )
    found = bench.reopened()
    assert {index: entry[2] for index, entry in found[1].entries.items()} == {2: b"2", 3: b"3'", 4: b"4'"}
    assert found[1].mark == (1, 1)
    assert found[1].hard_state == HardState(5, 1, 2)
    assert found[2].mark == (9, 4)
    assert found[2].conf_state == ConfState((3,))
    assert {index: entry[2] for index, entry in found[2].entries.items()} == {10: b"z"}
    assert sorted(found) == [1, 2]
    log = bench.open()
    with pytest.raises(Compacted):
        log.view(1).entries(1, 3, 100)
    with pytest.raises(Compacted):
        log.view(2).term(8)
    assert log.view(2).term(9) == 4
    for wrong in (append(1, 6, b""), append(4, 2, b"")):
        with pytest.raises(InvariantViolation):
            log.submit([wrong], lambda: None)
    log.abandon()


def test_a_ready_is_not_split_and_its_hard_state_comes_first(make_bench: Any, kit: Any) -> None:
    bench = make_bench()
    log = bench.open()
    ready = [append(1, 1, b"a" * 9_000), append(2, 1, b"b" * 9_000), State(1, HardState(1, 1, 0))]
    bench.write(log, [[append(3, 1, b"c" * 9_000)], ready, [append(3, 2, b"d" * 9_000)]])
    lines = list(describe(bench.disk, kit.DIRECTORY))
    at = next(number for number, line in enumerate(lines) if "state term" in line)
    assert "append" in lines[at + 1]
    assert "append" in lines[at + 2]
    assert sum(line.startswith("batch") for line in lines) == 4  # the last one closes the log


def test_one_batch_at_a_time_and_answers_in_order(make_bench: Any) -> None:
    bench = make_bench()
    log = bench.open()
    order: list[int] = []

    async def main() -> None:
        writer = asyncio.ensure_future(log.run())
        log.submit([append(1, 1, b"a")], lambda: order.append(1))
        await asyncio.sleep(0)
        log.submit([append(1, 2, b"b")], lambda: order.append(2))
        log.submit([], lambda: order.append(3))
        assert log.view(1).last_index() == 0  # nothing shows before it is durable
        while len(order) < 3:  # noqa: ASYNC110
            await asyncio.sleep(0.0001)
        assert log.batches_written == 2
        await asyncio.sleep(1)
        assert log.batches_written == 3  # the empty one that closes an idle log
        await asyncio.sleep(1)
        assert log.batches_written == 3
        log.submit([], lambda: order.append(4))
        await asyncio.sleep(1)
        await log.close()
        assert log.batches_written == 3
        await writer

    bench.run(main())
    assert order == [1, 2, 3, 4]


def test_corruption_before_the_end_refuses_the_start_and_names_the_place(make_bench: Any, kit: Any) -> None:
    bench = make_bench()
    log = bench.open()
    for replica in (1, 2):
        bench.write(log, [[append(replica, 1, b"a" * 100, b"b" * 100), State(replica, HardState(4, 1, 2))]])
        log = bench.open()
    bench.write(log, [[append(1, 3, b"c")], [append(2, 3, b"d"), State(2, HardState(5, 1, 3))]])
    log = bench.open()
    bench.write(log, [[append(1, 4, b"e")]])
    places = batches(bench, kit)
    path, offset = places[3]  # replica 2's first; 2 and 4 are the empty ones of the stops
    bench.disk.flip(path, offset + 150, 3)
    with pytest.raises(CorruptData, match=rf"{path} offset {offset}: batch 3 of the log"):
        bench.open()
    found = bench.reopened(accept_loss=True)
    # The rest counts, as far as entries follow on each other; nothing is taken for committed that is not there.
    assert sorted(found[1].entries) == [1, 2, 3, 4]
    assert found[1].hard_state == HardState(4, 1, 2)
    assert sorted(found[2].entries) == []
    assert found[2].hard_state == HardState(5, 1, 0)
    assert bench.reopened() == found  # the acceptance is remembered
    log = bench.open()
    bench.write(log, [[append(2, log.view(2).last_index() + 1, b"new")]])
    assert bench.reopened()[2].entries[max(bench.reopened()[2].entries)][2] == b"new"
    path, offset = places[5]
    bench.disk.flip(path, offset + 60, 3)
    with pytest.raises(CorruptData, match="offset"):  # other damage is not covered by it
        bench.open()


def test_a_lost_record_of_a_term_does_not_take_the_term_along(make_bench: Any, kit: Any) -> None:
    """An accepted loss hits the hard state alone: the entries behind it say the term."""
    bench = make_bench()
    for records in ([append(1, 1, b"a"), State(1, HardState(1, 2, 1))], [State(1, HardState(7, 3, 1))]):
        bench.write(bench.open(), [records])
    bench.write(bench.open(), [[Append(1, Entries(2, [7], [0], [b"b"]))]])
    places = batches(bench, kit)
    path, offset = places[3]  # 2, 4 and 6 are the empty ones of the stops
    bench.disk.flip(path, offset + 60, 3)
    found = bench.reopened(accept_loss=True)[1]
    assert sorted(found.entries) == [1, 2]
    assert found.hard_state == HardState(7, 0, 1)


def test_a_begun_batch_behind_a_damaged_one_is_corruption(make_bench: Any, kit: Any) -> None:
    bench = make_bench(idle_ms=1e9, batch_bytes_max=3 * kit.BLOCK)
    log = bench.open()
    bench.write(log, [[append(1, 1, b"a" * 5_000)]], close=False)
    bench.disk.process_crash()
    log = bench.open()
    bench.write(log, [[append(1, 2, b"b" * 5_000)], [append(1, 3, b"c" * 9_000)]], close=False)
    bench.disk.process_crash()
    places = batches(bench, kit)
    for sequence in list(places)[-2:]:
        path, offset = places[sequence]
        bench.disk.flip(path, offset + 300)
    with pytest.raises(CorruptData, match="was begun"):
        bench.open()
    assert bench.reopened(accept_loss=True)[1].last in (0, 1)


def test_a_torn_last_batch_is_no_corruption_and_its_place_is_zeroed(make_bench: Any, kit: Any) -> None:
    bench = make_bench(idle_ms=1e9)
    log = bench.open()
    bench.write(log, [[append(1, 1, b"a" * 100)]], close=False)
    log.abandon()
    log = bench.open()
    bench.write(log, [[append(1, 2, b"b" * 9_000)]], close=False)
    log.abandon()
    path, offset = batches(bench, kit)[2]
    bench.disk.flip(path, offset + 5_000)
    assert sorted(bench.reopened()[1].entries) == [1]
    bench.disk.power_cut()
    assert bench.disk.open(path).read(offset, 4096) == bytes(4096)
    assert sorted(bench.reopened()[1].entries) == [1]


def test_segments_are_released_in_order_and_used_again(make_bench: Any, kit: Any) -> None:
    bench = make_bench(segment_bytes=8 * kit.BLOCK, batch_bytes_max=4 * kit.BLOCK)
    log = bench.open()
    submissions: list[list[Any]] = [[State(9, HardState(7, 3, 0)), Configuration(9, ConfState((9, 8)))]]
    for index in range(1, 200):
        submissions.append([append(1, index, b"a" * 5_000)])
        if index % 10 == 0:
            submissions.append([Compact(1, index - 3, 1)])
    bench.write(log, submissions)
    assert len(segments(bench, kit)) < 12
    found = bench.reopened()
    assert found[9].hard_state == HardState(7, 3, 0)  # an idle group does not forget its vote
    assert found[9].conf_state == ConfState((9, 8))
    assert sorted(found[1].entries) == list(range(188, 200))
    log = bench.open()
    assert log.bytes_pinned() <= 10 * 8 * kit.BLOCK
    (pin,) = log.pins()
    assert (pin.replica, pin.first_needed) == (1, 188)
    assert 12 * 5_000 < pin.bytes_behind <= log.bytes_pinned()
    # What an idle replica pins shows first.
    bench.write(log, [[append(1, 200, b"x")], [append(2, 1, b"y")], [Compact(1, 199, 1)]])
    log = bench.open()
    assert [pin.replica for pin in log.pins()] == [1, 2]
    log.abandon()


def test_a_segment_is_not_used_again_before_its_release_is_synced(make_bench: Any, kit: Any) -> None:
    for seed in range(10):
        bench = make_bench(seed, segment_bytes=8 * kit.BLOCK, batch_bytes_max=7 * kit.BLOCK, spare_segments=0)
        log = bench.open()

        async def main(log: DurableLog = log, bench: Any = bench) -> None:
            writer = asyncio.ensure_future(log.run())
            log.submit([append(1, 1, b"a" * 9_000)], lambda: None)
            await asyncio.sleep(0.02)
            log.submit([append(1, 2, b"b" * 9_000)], lambda: None)
            await asyncio.sleep(0.02)
            log.submit([append(1, 3, b"c" * 20_000)], lambda: None)
            await asyncio.sleep(0.02)

            def compacted() -> None:
                # Goes with the release of the first segment, and does not fit into the second.
                log.submit([append(1, 4, b"d" * 20_000)], lambda: None)
                bench.disk.cut_at = bench.disk.calls + 1

            log.submit([Compact(1, 3, 1)], compacted)
            await writer

        with pytest.raises(PowerCut):
            bench.run(main())
        # Making another segment came first: go on until the batch itself is hit.
        bench.disk.power_on()
        assert bench.reopened()[1].mark == (3, 1)


@pytest.mark.parametrize("operation", ["write", "sync"])
@pytest.mark.parametrize("error", [errno.EIO, errno.ENOSPC])
def test_a_failed_write_or_sync_is_the_end(make_bench: Any, operation: Any, error: int) -> None:
    bench = make_bench()
    log = bench.open()
    bench.write(log, [[append(1, 1, b"a")]], close=False)
    log.abandon()
    log = bench.open()
    bench.disk.inject(operation, "segment", error)
    assert bench.write(log, [[append(1, 2, b"b")], [append(1, 3, b"c")]]) == []
    assert [fault.errno for fault in bench.faults] == [error]
    log.submit([append(1, 4, b"d")], lambda: None)
    bench.run(log.run())
    bench.disk.power_cut()
    assert set(bench.reopened()[1].entries) <= {1, 2, 3}


def test_a_full_disk(make_bench: Any, kit: Any) -> None:
    bench = make_bench(segment_bytes=8 * kit.BLOCK)
    bench.disk.capacity = 2 * 8 * kit.BLOCK  # one in use and one spare, not the second
    log = bench.open()
    assert len(segments(bench, kit)) == 2
    writes = [[append(1, index, b"a" * 5_000)] for index in range(1, 20)]
    assert len(bench.write(log, writes)) < 19
    assert bench.faults[0].errno == errno.ENOSPC  # type: ignore[attr-defined]
    assert not [name for name in bench.disk.list(kit.DIRECTORY) if name.endswith(".tmp")]
    other = make_bench(segment_bytes=8 * kit.BLOCK)
    other.disk.capacity = 7 * kit.BLOCK
    with pytest.raises(LogFault, match="no room"):
        other.open()


def test_unknown_versions_are_refused(make_bench: Any, kit: Any) -> None:
    bench = make_bench()
    bench.write(bench.open(), [[append(1, 1, b"a")]])
    path, offset = batches(bench, kit)[1]

    def patch(at: int, begin: int, end: int) -> bytes:
        """Set the version byte at `at` to 2, and make the CRC behind [begin, end) right."""
        file = bench.disk.open(path)
        old = file.read(begin, end + 4 - begin)
        head = bytearray(old[:-4])
        head[at - begin] = 2
        file.write(begin, bytes(head) + struct.pack(">I", crc32c(head)))
        return old

    for at, begin, end in ((4, 0, 24), (offset + 4, offset, offset + 44)):
        old = patch(at, begin, end)
        with pytest.raises(CorruptData, match=r"offset.*version 2"):
            bench.open()
        bench.disk.open(path).write(begin, old)
    assert sorted(bench.reopened()[1].entries) == [1]


def test_damaged_and_missing_segments_are_refused(make_bench: Any, kit: Any) -> None:
    bench = make_bench(segment_bytes=8 * kit.BLOCK)
    bench.write(bench.open(), [[append(1, index, b"a" * 5_000)] for index in range(1, 20)])
    paths = segments(bench, kit)
    bench.disk.flip(paths[1], 9)
    with pytest.raises(CorruptData, match=f"{paths[1]} offset 0"):
        bench.open()
    bench.disk.flip(paths[1], 9)
    bench.disk.open(paths[1]).truncate(5_000)
    with pytest.raises(CorruptData, match=f"{paths[1]} offset 5000"):
        bench.open()
    bench.disk.remove(paths[1])
    with pytest.raises(CorruptData, match=f"{paths[1]}: this log segment is missing"):
        bench.open()
    found = bench.reopened(accept_loss=True)
    assert found[1].last < 19
    assert bench.reopened() == found


def test_rot_is_found_when_entries_are_read_back(make_bench: Any, kit: Any) -> None:
    bench = make_bench(cache_bytes_max=0)
    log = bench.open()
    bench.write(log, [[append(1, 1, b"a" * 5_000)]], close=False)
    path, offset = batches(bench, kit)[1]
    bench.disk.flip(path, offset + 2_000)
    with pytest.raises(CorruptData, match="offset"):
        log.view(1).entries(1, 2, 100)
    log.abandon()


def test_the_cache_is_bounded_and_forgets_what_is_gone(make_bench: Any) -> None:
    bench = make_bench(cache_bytes_max=10_000)
    log = bench.open()
    bench.write(log, [[append(1, index, b"a" * 1_000)] for index in range(1, 30)], close=False)
    cache = log._cache
    assert 9_000 <= cache.bytes_held <= 10_000
    reads = bench.disk.reads
    assert log.view(1).entries(25, 30, 1 << 20).data == [b"a" * 1_000] * 5
    assert bench.disk.reads == reads
    assert log.view(1).entries(1, 4, 1 << 20).data == [b"a" * 1_000] * 3
    assert bench.disk.reads > reads
    log.abandon()
    log = bench.open()
    bench.write(log, [[Compact(1, 29, 1)]], close=False)
    assert log._cache.bytes_held == 0
    assert log.view(1).runs == 0
    log.abandon()


def test_a_submission_larger_than_a_segment_is_refused(make_bench: Any, kit: Any) -> None:
    bench = make_bench()
    log = bench.open()
    bench.write(log, [[append(1, 1, b"a" * (14 * kit.BLOCK))]])  # over the batch bound, yet it fits
    log = bench.open()
    with pytest.raises(InvariantViolation):
        log.submit([append(1, 2, b"a" * (15 * kit.BLOCK))], lambda: None)
    log.abandon()


def test_leftovers_and_another_logs_batches_are_not_taken(make_bench: Any, kit: Any) -> None:
    bench = make_bench()
    bench.write(bench.open(), [[append(1, 1, b"a")], [append(1, 2, b"b")]])
    path, offset = batches(bench, kit)[1]
    stranger = SimulatedDisk(random.Random(99), directories=("/node",))
    other = DurableLog.open(stranger, kit.DIRECTORY, random.Random(98), LogOptions(segment_bytes=16 * kit.BLOCK))
    other.submit([append(1, index, b"no") for index in range(1, 9)], lambda: None)
    bench.run(other.close())
    alien = stranger.open(f"{kit.DIRECTORY}/segment-00000001.log").read(4096, 4096)
    bench.disk.open(path).write(10 * kit.BLOCK, alien)
    bench.disk.open(path).write(12 * kit.BLOCK, bench.disk.open(path).read(offset, 100)[:40])
    assert sorted(bench.reopened()[1].entries) == [1, 2]


def test_describe_tells_all_and_changes_nothing(make_bench: Any, kit: Any) -> None:
    bench = make_bench()
    records = [
        State(1, HardState(2, 3, 0)),
        append(1, 1, b"a", b"b"),
        Configuration(1, ConfState((1, 2), (3,))),
        Compact(1, 1, 1),
        Install(2, 5, 2, ConfState((2,))),
    ]
    bench.write(bench.open(), [records, [Remove(3)]])
    calls = bench.disk.calls
    text = "\n".join(describe(bench.disk, kit.DIRECTORY))
    assert bench.disk.calls == calls
    for word in ("state term 2, vote 3", "append 1..2", "compact to 1", "install 5, term 2", "remove", "voters=(1, 2)"):
        assert word in text
    path, offset = batches(bench, kit)[1]
    assert "the log ends behind batch 2, at" in text
    detailed = [line.split() for line in describe(bench.disk, path, lambda data: data.decode().upper())]
    assert [words[0:1] + words[-1:] for words in detailed if words[1] == "term"] == [["1", "A"], ["2", "B"]]
    assert detailed[-1][:5] == ["the", "file", "ends", "behind", "batch"]
    with pytest.raises(FileNotFoundError):
        list(describe(bench.disk, "/node"))
    bench.disk.flip(path, offset + 100)
    text = "\n".join(describe(bench.disk, kit.DIRECTORY))
    assert "corrupt: " in text
    assert "torn or damaged" in text


def test_without_workers_and_on_the_real_files(tmp_path: Any) -> None:
    from iotdb_cluster.world import RealFileSystem

    files = RealFileSystem()
    options = LogOptions(segment_bytes=1 << 20)
    directory = str(tmp_path / "deep" / "log")

    async def main() -> None:
        log = DurableLog.open(files, directory, random.Random(1), options)
        done: list[int] = []
        for index in range(1, 50):
            log.submit([append(1, index, bytes([index]) * 50_000)], lambda: done.append(1))
        await log.close()
        assert len(done) == 49

    asyncio.run(main())
    log = DurableLog.open(files, directory, random.Random(2), options)
    view = log.view(1)
    assert view.last_index() == 49
    assert [view.entries(index, index + 1, 1).data[0][0] for index in range(1, 50)] == list(range(1, 50))
    log.abandon()


def test_who_reads_old_entries_finds_the_next_ones_in_memory(make_bench: Any) -> None:
    """A follower that lags reads from the beginning; after the first read the disk is asked by workers alone."""
    count, size = 60, 3_000
    bench = make_bench(cache_bytes_max=40_000, segment_bytes=1 << 20)
    log = bench.open()
    bench.write(log, [[append(1, index, bytes([index]) * size)] for index in range(1, count + 1)])
    log = bench.open()
    view = log.view(1)
    on_the_loop: list[int] = []
    read = log._reads.read

    def seen(run: Any) -> Any:
        if asyncio.current_task() is reader[0]:
            on_the_loop.append(run.first)
        return read(run)

    reader: list[Any] = []

    async def main() -> None:
        reader.append(asyncio.current_task())
        writer = asyncio.ensure_future(log.run())
        log._reads.read = seen  # type: ignore[method-assign]
        for index in range(1, count + 1):
            entries = view.entries(index, index + 1, 1)
            assert entries.data[0][0] == index
            assert log._cache.bytes_held <= 40_000
            await asyncio.sleep(0.05)
        await log.close()
        await writer

    bench.run(main())
    assert on_the_loop[0] == 1
    assert len(on_the_loop) < count // 3


@pytest.mark.parametrize("cache_bytes", [1, 5_000, 40_000])
def test_an_owner_that_can_wait_never_reads_on_the_loop(make_bench: Any, cache_bytes: int) -> None:
    """It is told when it may ask again, and always gets on, however small the cache is; two readers at once too."""
    count, size = 60, 3_000
    bench = make_bench(cache_bytes_max=cache_bytes, segment_bytes=1 << 20)
    log = bench.open()
    bench.write(log, [[append(1, index, bytes([index]) * size)] for index in range(1, count + 1)])
    log = bench.open()
    view = log.view(1)
    readers = {1: 1, 2: count // 2}  # the index that each needs next
    refused = 0
    on_the_loop: list[int] = []

    def go_on() -> None:
        nonlocal refused
        for reader, index in list(readers.items()):
            try:
                entries = view.entries(index, count + 1, 2 * size)
            except NotInMemory:
                refused += 1
                continue
            assert [data[0] for data in entries.data] == list(range(index, entries.last + 1))
            readers[reader] = entries.last + 1
            if entries.last == count:
                del readers[reader]
            asyncio.get_running_loop().call_soon(go_on)

    async def main() -> None:
        writer = asyncio.ensure_future(log.run())
        await asyncio.sleep(0)
        watch_reads(log, on_the_loop)
        view.entries_read = go_on
        go_on()
        async with asyncio.timeout(60):
            while readers:  # noqa: ASYNC110
                await asyncio.sleep(0.01)
        await log.close()
        await writer

    bench.run(main())
    assert refused
    assert not on_the_loop


def test_who_waits_for_damaged_entries_is_told_of_the_damage(make_bench: Any, kit: Any) -> None:
    bench = make_bench(cache_bytes_max=1, segment_bytes=1 << 20)
    log = bench.open()
    bench.write(log, [[append(1, index, bytes([index]) * 3_000)] for index in (1, 2, 3)])
    log = bench.open()
    view = log.view(1)
    bench.disk.flip(segments(bench, kit)[0], (view._positions[1] & 0xFFFFFFFF) + 1_000)
    told: list[int] = []
    view.entries_read = lambda: told.append(1)

    async def main() -> None:
        writer = asyncio.ensure_future(log.run())
        await asyncio.sleep(0)
        with pytest.raises(NotInMemory):
            view.entries(2, 4, 1 << 20)
        async with asyncio.timeout(60):
            while not told:  # noqa: ASYNC110
                await asyncio.sleep(0.01)
        with pytest.raises(CorruptData, match="checksum"):
            view.entries(2, 4, 1 << 20)
        await log.close()
        await writer

    bench.run(main())


def test_a_long_slice_of_old_entries_looks_ahead_once(make_bench: Any) -> None:
    """A node that starts again reads thousands of small entries at once: each may cost a look at itself, no more."""
    count = 400
    bench = make_bench(cache_bytes_max=4_000, segment_bytes=1 << 20)
    log = bench.open()
    bench.write(log, [[append(1, index, b"%04d" % index)] for index in range(1, count + 1)])
    log = bench.open()
    view = log.view(1)
    looks = 0
    get = log._cache.get

    def counted(position: int) -> Any:
        nonlocal looks
        looks += 1
        return get(position)

    async def main() -> None:
        nonlocal looks
        writer = asyncio.ensure_future(log.run())
        await asyncio.sleep(0)
        log._cache.get = counted  # type: ignore[method-assign]
        entries = view.entries(1, count + 1, 1 << 20)
        assert [int(data) for data in entries.data] == list(range(1, count + 1))
        assert looks < 3 * count
        await log.close()
        await writer

    bench.run(main())
