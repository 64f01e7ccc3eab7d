"""The simulated disk against a naive model: what is synced survives, and nothing appears that was never written."""

from __future__ import annotations

import errno
import random

import pytest

from iotdb_cluster.simulation import PowerCut, SimulatedDisk


def content(disk: SimulatedDisk, path: str) -> bytes:
    file = disk.open(path)
    return file.read(0, file.size())


def make(disk: SimulatedDisk, path: str, data: bytes) -> None:
    file = disk.open(path, create=True)
    file.write(0, data)
    file.sync()
    file.close()


def test_synced_data_survives_and_unsynced_may_be_lost_torn_or_kept() -> None:
    outcomes = set()
    for seed in range(200):
        disk = SimulatedDisk(random.Random(seed), directories=("/d",))
        file = disk.open("/d/f", create=True)
        file.write(0, b"a" * 10_000)
        file.sync()
        disk.sync_directory("/d")
        file.write(5_000, b"b" * 10_000)
        disk.power_cut()
        after = content(disk, "/d/f")
        assert after[:5_000] == b"a" * 5_000
        assert set(after[5_000:]) <= {ord("a"), ord("b"), 0}
        assert len(after) >= 10_000
        assert not set(after[5_000:10_000]) & {0}
        outcomes.add(after)
        with pytest.raises(PowerCut):
            file.read(0, 1)
    assert len(outcomes) > 20


def test_names_survive_once_their_directory_is_synced() -> None:
    seen = set()
    for seed in range(60):
        disk = SimulatedDisk(random.Random(seed))
        disk.make_directories("/a/b")
        disk.sync_directory("/")
        disk.sync_directory("/a")
        make(disk, "/a/b/one", b"1")
        disk.sync_directory("/a/b")
        make(disk, "/a/b/two.tmp", b"2")
        disk.rename("/a/b/two.tmp", "/a/b/two")
        disk.remove("/a/b/one")
        disk.power_cut()
        names = tuple(disk.list("/a/b"))
        assert set(names) <= {"one", "two", "two.tmp"}
        if "two" in names:
            assert "two.tmp" not in names
        seen.add(names)
    assert {("one",), ("two",), ("one", "two")} <= seen


def test_a_directory_that_is_not_synced_in_its_parent_goes_with_all_in_it() -> None:
    lost = 0
    for seed in range(20):
        disk = SimulatedDisk(random.Random(seed))
        disk.make_directories("/a")
        make(disk, "/a/f", b"1")
        disk.sync_directory("/a")
        disk.power_cut()
        lost += not disk.exists("/a")
        assert disk.exists("/a/f") == disk.exists("/a")
    assert 0 < lost < 20


@pytest.mark.parametrize("seed", range(60))
def test_replacing_a_file_is_atomic_at_every_call(seed: int) -> None:
    rng = random.Random(seed)
    disk = SimulatedDisk(rng, directories=("/d",))
    make(disk, "/d/f", b"old")
    disk.sync_directory("/d")
    disk.cut_at = disk.calls + rng.randint(1, 7)
    done = False
    try:
        make(disk, "/d/f.tmp", b"new")
        disk.rename("/d/f.tmp", "/d/f")
        disk.sync_directory("/d")
        done = True
        disk.make_directories("/x/y/z")
        disk.power_cut()
    except PowerCut:
        with pytest.raises(PowerCut):
            disk.list("/")
        disk.power_on()
    assert content(disk, "/d/f") in ((b"new",) if done else (b"old", b"new"))


def test_injected_errors_and_reads_after_a_failed_sync() -> None:
    reverted = 0
    for seed in range(20):
        disk = SimulatedDisk(random.Random(seed), directories=("/d",))
        make(disk, "/d/f", b"old")
        disk.sync_directory("/d")
        file = disk.open("/d/f")
        file.write(0, b"new")
        disk.inject("sync", "/d/f")
        with pytest.raises(OSError) as raised:
            file.sync()
        assert raised.value.errno == errno.EIO
        assert file.read(0, 3) == b"new"
        file.sync()  # the pages count as clean: this proves nothing
        disk.power_cut()
        assert content(disk, "/d/f") in (b"old", b"new")
        reverted += content(disk, "/d/f") == b"old"
    assert reverted


def test_capacity() -> None:
    disk = SimulatedDisk(capacity=10 * 4096)
    file = disk.open("/f", create=True)
    file.write(0, bytes(8 * 4096))
    assert disk.free_bytes("/") == 2 * 4096
    with pytest.raises(OSError) as raised:
        file.write(8 * 4096, bytes(3 * 4096))
    assert raised.value.errno == errno.ENOSPC
    file.write(0, b"x" * 4096)  # what is allocated can be overwritten
    file.truncate(0)
    file.write(0, bytes(10 * 4096))
    disk.remove("/f")
    assert disk.free_bytes("/") == 10 * 4096


def test_locks_and_the_usual_errors() -> None:
    disk = SimulatedDisk(directories=("/d",))
    held = disk.lock("/d/lock")
    with pytest.raises(BlockingIOError):
        disk.lock("/d/lock")
    held.close()
    disk.lock("/d/lock")
    disk.process_crash()
    disk.lock("/d/lock")
    for call in (lambda: disk.open("/d/none"), lambda: disk.remove("/d/none"), lambda: disk.open("/e/f", create=True)):
        with pytest.raises(FileNotFoundError):
            call()
    with pytest.raises(IsADirectoryError):
        disk.open("/d")
    make(disk, "/d/f", b"1")
    with pytest.raises(FileExistsError):
        disk.make_directories("/d/f")
    disk.remove_tree("/d")
    assert disk.list("/") == []


def test_mount_ends_with_its_run() -> None:
    disk = SimulatedDisk(directories=("/d",))
    mount = disk.mount()
    make(disk, "/d/f", b"1")
    assert mount.list("/d") == ["f"]
    disk.process_crash()
    with pytest.raises(PowerCut):
        mount.list("/d")
    assert content(disk, "/d/f") == b"1"


@pytest.mark.parametrize("seed", range(30))
def test_reads_equal_a_naive_model(seed: int) -> None:
    rng = random.Random(seed)
    disk = SimulatedDisk(rng)
    file = disk.open("/f", create=True)
    model = bytearray()
    synced = b""
    disk.sync_directory("/")
    for _ in range(120):
        action = rng.random()
        if action < 0.6:
            offset, data = rng.randint(0, 20_000), rng.randbytes(rng.choice((1, 50, 4096, 9_000)))
            file.write(offset, data)
            model.extend(bytes(max(0, offset + len(data) - len(model))))
            model[offset : offset + len(data)] = data
        elif action < 0.7:
            size = rng.randint(0, 25_000)
            file.truncate(size)
            model = model[:size] + bytes(max(0, size - len(model)))
        elif action < 0.8:
            file.sync()
            synced = bytes(model)
        elif action < 0.85:
            file.sync()
            disk.power_cut()
            file = disk.open("/f")
            synced = bytes(model)
        offset, length = rng.randint(0, 30_000), rng.randint(0, 10_000)
        assert file.size() == len(model)
        assert file.read(offset, length) == bytes(model[offset : offset + length])
    file.sync()
    synced = bytes(model)
    disk.power_cut()
    assert content(disk, "/f") == synced


def test_equal_seeds_lose_alike() -> None:
    def run() -> bytes:
        disk = SimulatedDisk(random.Random(5), directories=("/d",))
        file = disk.open("/d/f", create=True)
        disk.sync_directory("/d")
        for at in range(30):
            file.write(at * 3_000, bytes([at + 1]) * 3_000)
        disk.power_cut(random.Random(9))
        return content(disk, "/d/f")

    assert run() == run()
