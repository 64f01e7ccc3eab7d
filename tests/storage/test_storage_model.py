"""The store against a dict: any sequence of writes, deletions, flushes, compactions, restarts and power cuts."""

from __future__ import annotations

import random
import re
from typing import Any

import pytest
from crc32c import crc32c
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from iotdb_cluster.errors import CorruptData, SystemFault
from iotdb_cluster.simulation.disk import PowerCut, SimulatedDisk
from iotdb_cluster.storage import PinnedUnit, Store, StoreOptions, UnitId

U = UnitId(7, -2)
OPTIONS = StoreOptions(compaction_files_min=2, tombstones_max=0, cache_bytes_max=10_000)
OPS = ["write"] * 6 + ["delete", "delete", "expire", "flush", "flush", "compact", "restart", "check", "half", "copy"]
OPS += ["damage"]
STEPS_MAX = 25
steps = st.lists(st.tuples(st.sampled_from(OPS), st.integers(0, 1 << 32)), min_size=1, max_size=STEPS_MAX)


class Log:
    """The log of a group: what was applied, to be applied again after a restart."""

    def __init__(self, tools: Any) -> None:
        self.tools = tools
        self.entries: list[tuple[int, int, str, Any]] = [(1, 1, "open", None)]
        self.epoch, self.index = 1, 1

    def add(self, kind: str, content: Any, rng: random.Random) -> tuple[int, int, str, Any]:
        if rng.random() < 0.1:  # the slot came back: epochs only grow, indexes start anew
            self.epoch, self.index = self.epoch + 1, 0
        self.index += 1
        entry = (self.epoch, self.index, kind, content)
        self.entries.append(entry)
        return entry


def apply(target: Store, entry: tuple[int, int, str, Any]) -> None:
    epoch, index, kind, content = entry
    if kind == "open":
        target.open_unit(U, (epoch, index))
    elif kind == "write":
        target.write(U, epoch, index, content)
    elif kind == "delete":
        target.delete(U, epoch, index, *content)
    elif kind == "expire":
        target.expire(U, epoch, index, content)


def apply_to_model(model: Any, entry: tuple[int, int, str, Any]) -> None:
    _, _, kind, content = entry
    if kind == "write":
        model.write(content)
    elif kind == "delete":
        model.delete(*content)
    elif kind == "expire":
        model.delete(None, -(1 << 63), content - 1)


def copied_digest(disk: SimulatedDisk, copied: PinnedUnit, directory: str, log: Log) -> int:
    """Copy a pinned unit into another store and apply the whole log there."""
    disk.make_directories(f"{directory}/{copied.name}")
    contents = {"manifest": copied.manifest}
    for info in copied.files:
        contents[info.name] = disk.open(info.path).read(0, info.bytes)
        assert crc32c(contents[info.name]) == info.crc32c
    for name, data in contents.items():
        disk.open(f"{directory}/{copied.name}/{name}", create=True).write(0, data)
    copied.release()
    other = Store.open(disk, directory, OPTIONS)
    assert not other.corrupt
    assert other.flushed(U) == copied.flushed
    for entry in log.entries:
        apply(other, entry)
    return other.digest(U)


def mirrored(tools: Any, disk: SimulatedDisk, store: Store, log: Log, model: Any, rng: random.Random) -> Store:
    """A file of the unit is damaged: the unit is made anew from another replica, which may be ahead; the store goes on.

    What is written while it is away stays; in half of the cases the store was restarted before, or is cut in between.
    """
    store.note_damage(U, "planted")
    store.mark_absent()
    if rng.random() < 0.5:
        store.close()
        store = Store.open(disk, "/data/store", OPTIONS)
        if disk.exists("/data/store/7.-2.1"):  # else nothing was in files, and the whole log makes the unit
            assert U in store.corrupt or U not in store.units() or not store.files_of(U)
        for entry in log.entries:
            apply(store, entry)
    if U not in store.corrupt:
        return store

    def write() -> None:
        entry = make_entry(tools, log, rng.choice(["write", "delete", "expire"]), rng)
        apply(store, entry)
        apply_to_model(model, entry)

    write()
    directory = store.begin_mirror(U)
    write()
    other = Store.open(disk, "/data/other", OPTIONS)
    for entry in log.entries[: len(log.entries) - rng.randrange(2)]:  # at least all that was frozen
        apply(other, entry)
    if rng.random() < 0.5:
        write()
    ahead: list[tuple[int, int, str, Any]] = []  # what the other replica has applied, and this one not yet
    if rng.random() < 0.5:
        applied = other.position(U)
        for _ in range(rng.randint(1, 3)):
            ahead.append(make_entry(tools, log, rng.choice(["write", "delete", "expire"]), rng))
            apply_to_model(model, ahead[-1])
        for entry in log.entries:
            if (entry[0], entry[1]) > applied:
                apply(other, entry)
    tools.flush(other)
    pinned = other.pin_files(U)
    disk.make_directories(directory)
    for info in pinned.files:
        disk.open(f"{directory}/{info.name}", create=True).write(0, disk.open(info.path).read(0, info.bytes))
        disk.open(f"{directory}/{info.name}").sync()
    found = store.open_mirror(U, directory, pinned.manifest)
    pinned.release()
    other.close()
    disk.remove_tree("/data/other")
    if rng.random() < 0.3:  # the process ends before it knows
        store.close()
        store = Store.open(disk, "/data/store", OPTIONS)
        assert not store.corrupt
        for entry in log.entries:
            apply(store, entry)
        return store
    store.finish_mirror(found)
    assert not store.corrupt
    for entry in ahead:
        apply(store, entry)
    return store


def make_entry(tools: Any, log: Log, op: str, rng: random.Random) -> tuple[int, int, str, Any]:
    if op == "write":
        return log.add("write", tools.random_blocks(rng, 60), rng)
    if op == "expire":
        return log.add("expire", rng.choice([rng.randrange(40), tools.MIN, tools.MIN + 1]), rng)
    low, high = sorted((rng.randrange(-5, 70), rng.randrange(-5, 70)))
    if rng.random() < 0.3:
        low, high = tools.MIN, tools.MAX
    pattern = rng.choice([re.escape(f"root.sg.d0.{rng.choice('abcdef')}"), r"root\.sg\.d1\..*", r".*\.[ace]", "none"])
    return log.add("delete", (pattern, low, high), rng)


def run_history(tools: Any, script: list[tuple[str, int]], seed: int) -> None:
    """Carry out a script on a store and on a dict, and compare them wherever the script says so."""
    disk = SimulatedDisk(random.Random(seed))
    log = Log(tools)
    model = tools.Model()
    with tools.tiny_pages():
        store = Store.open(disk, "/data/store", OPTIONS)
        apply(store, log.entries[0])
        old: list[tuple[Any, Any, int]] = []
        copies: list[PinnedUnit] = []
        for op, argument in script:
            rng = random.Random(argument)
            if op in ("write", "delete", "expire"):
                entry = make_entry(tools, log, op, rng)
                apply(store, entry)
                apply_to_model(model, entry)
            elif op == "flush":
                tools.flush(store)
                assert old or store.memory_bytes() == 0
            elif op == "half":  # sealed, run but not finished: a snapshot is taken in between
                jobs = store.seal()
                with store.reader(U) as reader:
                    tools.check_reader(reader, model, rng)
                for job in reversed(jobs) if argument % 2 else jobs:
                    job.run()
                with store.reader(U) as reader:
                    tools.check_reader(reader, model, rng)
                for job in jobs:
                    job.finish()
            elif op == "compact":
                before = store.digest(U)
                tools.compact(store)
                assert store.digest(U) == before
            elif op == "restart":
                store.close()
                old.clear()
                copies.clear()
                store = Store.open(disk, "/data/store", OPTIONS)
                assert not store.corrupt
                for entry in log.entries:
                    apply(store, entry)
            elif op == "damage":
                for pinned, _, _ in old:
                    pinned.close()
                old.clear()
                for copied in copies:
                    copied.release()
                copies.clear()
                store = mirrored(tools, disk, store, log, model, rng)
            elif op == "copy":
                copies.append(store.pin_files(U))
            else:
                with store.reader(U) as reader:
                    tools.check_reader(reader, model, rng)
                pinned = store.reader(U)
                old.append((pinned, pinned.digest(), argument))
        for pinned, digest, _ in old:  # what was read once reads the same, whatever was written and removed since
            assert pinned.digest() == digest
            pinned.close()
        with store.reader(U) as reader:
            tools.check_reader(reader, model, random.Random(seed))
        digest = store.digest(U)
        tools.flush(store)
        assert store.memory_bytes() == 0
        assert store.oldest_unflushed(U) is None
        assert store.digest(U) == digest
        for number, copied in enumerate(copies):  # its files stayed, and with the log behind them make the same unit
            assert copied_digest(disk, copied, f"/data/copy{number}", log) == digest
        assert store.idle
        store.collect()
        named = {info.name for info in store.files_of(U)}
        (directory,) = [name for name in disk.list("/data/store") if name.startswith("7.-2.")]
        on_disk = {name for name in disk.list(f"/data/store/{directory}") if name.endswith(".chunk")}
        assert on_disk == named


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(steps, st.integers(0, 1 << 32))
def test_store_equals_dict(tools: Any, script: list[tuple[str, int]], seed: int) -> None:
    run_history(tools, script, seed)


def random_script(rng: random.Random) -> list[tuple[str, int]]:
    """Longer than what hypothesis likes to draw."""
    return [(rng.choice(OPS), rng.getrandbits(32)) for _ in range(rng.randint(1, STEPS_MAX))]


@pytest.mark.parametrize("seed", range(80))
def test_random_history_equals_dict(tools: Any, seed: int) -> None:
    rng = random.Random(seed)
    run_history(tools, random_script(rng), rng.getrandbits(32))


def _run_until_cut(tools: Any, disk: SimulatedDisk, log: Log, rng: random.Random, model: Any) -> None:
    """Work until the power goes; the log has every entry that was applied."""
    store = Store.open(disk, "/data/store", OPTIONS)
    assert not store.corrupt
    for entry in log.entries:
        apply(store, entry)
    with store.reader(U) as reader:
        tools.check_reader(reader, model, rng)
    for _ in range(12):
        op = rng.choice(["write", "write", "delete", "expire", "flush", "flush", "compact"])
        if op == "flush":
            tools.flush(store)
        elif op == "compact":
            tools.compact(store)
        else:
            entry = make_entry(tools, log, op, rng)
            apply_to_model(model, entry)
            apply(store, entry)


def run_power_cuts(tools: Any, seed: int) -> None:
    """Cut the power again and again, at any call of the disk: what the log holds makes the content that it must be."""
    rng = random.Random(seed)
    disk = SimulatedDisk(random.Random(seed))
    log = Log(tools)
    model = tools.Model()
    with tools.tiny_pages():
        for _ in range(6):
            disk.cut_at = disk.calls + rng.randrange(1, 60)
            try:
                _run_until_cut(tools, disk, log, rng, model)
            except PowerCut:
                disk.power_on()
        disk.cut_at = None
        _run_until_cut(tools, disk, log, rng, model)


@pytest.mark.parametrize("seed", range(60))
def test_power_cut_loses_nothing_flushed(tools: Any, seed: int) -> None:
    run_power_cuts(tools, seed)


@pytest.mark.parametrize("seed", range(40))
def test_failing_disk_is_loud_and_mends(tools: Any, seed: int) -> None:
    """A call that fails gives SystemFault; the job is given up, and the next one brings the same content."""
    rng = random.Random(seed)
    disk = SimulatedDisk(random.Random(seed))
    log = Log(tools)
    model = tools.Model()
    with tools.tiny_pages():
        store = Store.open(disk, "/data/store", OPTIONS)
        apply(store, log.entries[0])
        for round_ in range(10):
            for _ in range(3):
                entry = make_entry(tools, log, rng.choice(["write", "write", "delete"]), rng)
                apply_to_model(model, entry)
                apply(store, entry)
            operation = rng.choice(["write", "sync", "open", "rename", "sync_directory"])
            disk.inject(operation, skip=rng.randrange(3))
            job: Any
            for job in [*store.seal(), *filter(None, [store.pick()])]:
                try:
                    job.run()
                except SystemFault:
                    pass
                finally:
                    job.finish()
            disk.rules.clear()
            with store.reader(U) as reader:
                tools.check_reader(reader, model, rng)
            if round_ % 3 == 2:
                disk.power_cut()
                store = Store.open(disk, "/data/store", OPTIONS)
                assert not store.corrupt
                for entry in log.entries:
                    apply(store, entry)
        tools.flush(store)
        with store.reader(U) as reader:
            tools.check_reader(reader, model, rng)


def test_what_expires_while_a_unit_is_made_anew_stays_expired(tools: Any) -> None:
    """Nothing of the unit is here that the expiry could hide; the copy that is on its way has it."""
    disk = SimulatedDisk(random.Random(1))
    log = Log(tools)
    rng = random.Random(1)
    written = log.add("write", tools.random_blocks(rng, 60), rng)
    stores = {name: Store.open(disk, f"/data/{name}", OPTIONS) for name in ("store", "other")}
    for store in stores.values():
        for entry in (log.entries[0], written):
            apply(store, entry)
        tools.flush(store)
    stores["store"].note_damage(U, "planted")
    stores["store"].mark_absent()
    stores["store"].close()
    store = Store.open(disk, "/data/store", OPTIONS)
    directory = store.begin_mirror(U)
    pinned = stores["other"].pin_files(U)
    expired = log.add("expire", tools.MAX, rng)
    for one in (store, stores["other"]):
        apply(one, expired)
    disk.make_directories(directory)
    for info in pinned.files:
        disk.open(f"{directory}/{info.name}", create=True).write(0, disk.open(info.path).read(0, info.bytes))
    store.finish_mirror(store.open_mirror(U, directory, pinned.manifest))
    pinned.release()
    assert store.digest(U) == stores["other"].digest(U)


def test_a_copy_of_a_dropped_unit_is_refused_and_old_readers_do_not_damage_a_new_one(tools: Any) -> None:
    disk = SimulatedDisk(random.Random(1))
    store = Store.open(disk, "/data/store", OPTIONS)
    store.open_unit(U, (1, 1))
    store.write(U, 1, 2, tools.random_blocks(random.Random(1), 60))
    tools.flush(store)
    pinned, reader = store.pin_files(U), store.reader(U)
    store.note_damage(U, "planted")
    directory = store.begin_mirror(U)
    store.drop_unit(U)
    with pytest.raises(CorruptData, match="dropped"):
        store.open_mirror(U, directory, pinned.manifest)
    store.open_unit(U, (1, 3))
    with pytest.raises(CorruptData, match="damaged"), reader._guard():
        raise CorruptData("a damaged page")
    assert not store.corrupt
    reader.close()
    pinned.release()


@pytest.mark.parametrize("when", ["before it is opened", "before it takes its place"])
def test_a_copy_does_not_take_the_place_of_a_unit_that_came_since(tools: Any, when: str) -> None:
    """The slot moved away and back while the unit was fetched: what was written since is not in the copy."""
    disk = SimulatedDisk(random.Random(1))
    store, other = (Store.open(disk, f"/data/{name}", OPTIONS) for name in ("store", "other"))
    for one in (store, other):
        one.open_unit(U, (1, 1))
        one.write(U, 1, 2, tools.random_blocks(random.Random(1), 60))
        tools.flush(one)
    pinned = other.pin_files(U)
    store.note_damage(U, "planted")
    directory = store.begin_mirror(U)
    disk.make_directories(directory)
    for info in pinned.files:
        disk.open(f"{directory}/{info.name}", create=True).write(0, disk.open(info.path).read(0, info.bytes))

    def away_and_back() -> str:
        store.drop_unit(U, (2, 5))
        store.adopt_unit(U, 3, 7, None, "its files are not here")
        store.write(U, 3, 8, tools.random_blocks(random.Random(2), 60))
        return str(store.corrupt[U])

    if when == "before it is opened":
        reason = away_and_back()
        with pytest.raises(CorruptData, match="dropped"):
            store.open_mirror(U, directory, pinned.manifest)
    else:
        mirrored = store.open_mirror(U, directory, pinned.manifest)
        reason = away_and_back()
        store.finish_mirror(mirrored)
    store.end_mirror(U)
    assert store.corrupt == {U: reason}
    assert store.oldest_unflushed(U) == 7
    pinned.release()
    store.settle()
    store.collect()
    reopened = Store.open(disk, "/data/store", OPTIONS)
    assert reopened.units() == []  # neither the old one nor its copy: the log makes the new one again
