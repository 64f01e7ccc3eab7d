"""Snapshots of data groups: a member that fell behind the log comes back, whatever crashes on the way."""

from __future__ import annotations

import dataclasses
import itertools
import random
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from iotdb_cluster.cluster import snapshots, staging
from iotdb_cluster.cluster.log import make_durable_directories, replace_file
from iotdb_cluster.cluster.meta_group import MetaMachine
from iotdb_cluster.cluster.node import Node
from iotdb_cluster.cluster.settings import Settings
from iotdb_cluster.cluster.staging import Stage, Wanted, live_directory
from iotdb_cluster.data import DataGroup
from iotdb_cluster.errors import CorruptData
from iotdb_cluster.limits import KIB
from iotdb_cluster.raft import Snapshot
from iotdb_cluster.simulation import SimulatedDisk, SimulatedWorkers, smoke
from iotdb_cluster.simulation.client import SimulatedClient
from iotdb_cluster.simulation.disk import PowerCut
from iotdb_cluster.simulation.world import Simulation
from iotdb_cluster.world import FileSystem, World

LOG_BYTES_MAX = 512 * KIB
LOG_SEGMENT_BYTES = 128 * KIB
NAMES = [smoke._name(number) for number in range(1, smoke.NODES + 1)]


def settings(number: int) -> Settings:
    return dataclasses.replace(
        smoke._settings(number), log_segment_bytes=LOG_SEGMENT_BYTES, log_bytes_max=LOG_BYTES_MAX
    )


class Trial:
    """Three nodes with small logs; points of two storage groups, each acknowledged one remembered."""

    def __init__(self, seed: int) -> None:
        self.simulation = Simulation(seed, debug=False)
        self.nodes: dict[int, Node] = {}
        self.history = smoke._History()
        self.random = random.Random(f"snapshots:{seed}")
        self.count = 0
        for number in range(1, smoke.NODES + 1):
            self.simulation.add_node(smoke._name(number), self._main(number))
        self.world = self.simulation.world("client")
        self.simulation.run(smoke._serving(self.world), smoke.SERVES_AGAIN_MS)

    def __enter__(self) -> Trial:
        return self

    def __exit__(self, *_: object) -> None:
        self.simulation.close()

    def _main(self, number: int) -> Any:
        async def main(world: World) -> None:
            node = self.nodes[number] = Node(world, settings(number))
            await node.run()

        return main

    async def _write(self, node: int, count: int) -> None:
        session = SimulatedClient(self.world, smoke._name(node), smoke.CLIENT_PORT)
        for _ in range(count):
            self.count += 1
            device = f"root.snap{self.count % 2}.d{self.count % 3}"
            time, value = self.count * 7, float(self.count)
            await session.insert(device, "s1", time, value)
            self.history.acknowledged.setdefault(f"{device}.s1", {})[time] = value
        session.drop()

    def write(self, count: int, nodes: tuple[int, ...] = (1, 2)) -> None:
        for _ in range(count // 50):
            batches = [self.simulation.spawn(self._write(node, 50 // len(nodes))) for node in nodes]
            self.simulation.run_until(lambda batches=batches: all(one.done() for one in batches), 60_000)

    def fall_behind(self, away: int, meanwhile: Callable[[], None] = lambda: None) -> None:
        """Take a node away and write until no log holds what it lacks; the others' logs do not grow beyond bounds."""
        self.simulation.crash(smoke._name(away))
        here = tuple(number for number in range(1, smoke.NODES + 1) if number != away)
        before = {group.id: group.raw.last_index for group in self.nodes[away]._driver.groups.values()}
        self.simulation.run_until(4_000)
        meanwhile()
        for _ in range(60):
            self.write(50, here)
            self.simulation.run_until(500)
            if self._forgot(here, before):
                break
        else:
            raise AssertionError("the logs keep what the node lacks")
        self.simulation.run_until(7_000)  # a checkpoint for the log's sake is made every 5 s at most
        for number in here:
            assert self.nodes[number]._log.bytes_pinned() <= LOG_BYTES_MAX + 2 * LOG_SEGMENT_BYTES

    def _forgot(self, here: tuple[int, ...], before: dict[int, int]) -> bool:
        """Whether in every data group the leader's log begins behind what the node had."""
        for number, index in before.items():
            groups = [self.nodes[node]._driver.groups[number] for node in here]
            if number and not any(group.leads and group.log.first_index() > index + 1 for group in groups):
                return False
        return True

    def installed(self, number: int) -> list[int]:
        """The data groups of a node whose directory is a received snapshot's."""
        machines = self.nodes[number]._machines
        return sorted(group for group, machine in machines.items() if machine.data.directory[-20:].isdigit())

    def verify(self) -> None:
        self.simulation.run(smoke._serving(self.world), smoke.SERVES_AGAIN_MS)
        self.simulation.run(smoke._verify(self.world, self.history), smoke.SERVES_AGAIN_MS)


def test_a_node_that_fell_behind_catches_up_by_snapshots() -> None:
    with Trial(1) as trial:
        trial.write(100)
        trial.fall_behind(3)
        trial.simulation.restart("node3")
        trial.write(50)
        trial.verify()
        assert trial.installed(3) == [1, 2, 3]
        # What replaced its directories survives, and can itself give snapshots.
        trial.simulation.crash("node3")
        trial.simulation.restart("node3")
        trial.verify()
        trial.fall_behind(1)
        trial.simulation.restart("node1")
        trial.verify()
        assert trial.installed(1) == [1, 2, 3]


@pytest.fixture
def small_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(snapshots, "SNAPSHOT_PIECE_BYTES", 512)
    monkeypatch.setattr(staging, "SNAPSHOT_PIECE_BYTES", 512)


@pytest.mark.usefixtures("small_pieces")
@pytest.mark.parametrize("seed", [2, 3])
def test_the_receiver_loses_power_again_and_again(seed: int) -> None:
    with Trial(seed) as trial:
        trial.write(50)
        simulation = trial.simulation
        disk = simulation.nodes["node3"].disk
        for _ in range(4):
            trial.fall_behind(3)
            for _cut in range(3):
                disk.cut_at = disk.calls + trial.random.randrange(30, 400)
                simulation.restart("node3")
                simulation.run_until(8_000)
                if simulation.is_running("node3"):
                    break
                disk.cut_at = None
            disk.cut_at = None
            if not simulation.is_running("node3"):
                simulation.restart("node3")
            trial.write(50)
            trial.verify()
            assert trial.installed(3) == [1, 2, 3]


@pytest.mark.usefixtures("small_pieces")
def test_the_sender_crashes_in_the_midst() -> None:
    with Trial(4) as trial:
        trial.write(50)
        simulation = trial.simulation
        for _ in range(3):
            trial.fall_behind(3)
            simulation.restart("node3")

            def receiving() -> bool:
                node = trial.nodes[3]
                if "_receiver" not in vars(getattr(node, "_replicas", object)):
                    return False
                receiver = node._replicas._receiver
                return receiver is not None and any(one.stage._whole for one in receiver._incoming.values())

            simulation.run_until(receiving, 30_000)
            for name in ("node1", "node2"):
                simulation.crash(name)
                simulation.run_until(trial.random.uniform(0, 1_500))
                simulation.restart(name)
            trial.verify()
            assert trial.installed(3)  # of other groups the other node may have had the log


def test_a_link_that_breaks_does_not_begin_anew() -> None:
    with Trial(5) as trial:
        trial.write(50)
        trial.fall_behind(3)
        trial.simulation.restart("node3")
        for _ in range(20):
            trial.simulation.run_until(trial.random.uniform(5, 300))
            trial.simulation.network.drop_connections("node3")
        trial.verify()
        assert trial.installed(3) == [1, 2, 3]


def test_deletes_and_drops_reach_a_member_by_its_snapshot() -> None:
    statements = (
        "DELETE FROM root.snap0.d1.s1 WHERE time <= 400",
        "DELETE TIMESERIES root.snap1.d2.s1",
        "DELETE STORAGE GROUP root.gone",
        "CREATE TIMESERIES root.snap0.d9.s2 WITH DATATYPE=INT32, ENCODING=RLE",
    )
    with Trial(8) as trial:

        async def change() -> None:
            session = SimulatedClient(trial.world, "node1", smoke.CLIENT_PORT, timeout_ms=30_000)
            for statement in statements:
                answer = await session.call("executeStatement", statement=statement, statementId=session._statement)
                assert answer.status.code == 200, (statement, answer.status)
            session.drop()
            points = trial.history.acknowledged
            points["root.snap0.d1.s1"] = {t: value for t, value in points["root.snap0.d1.s1"].items() if t > 400}
            del points["root.snap1.d2.s1"]  # what is written from here on is a new series

        async def doomed() -> None:
            session = SimulatedClient(trial.world, "node2", smoke.CLIENT_PORT)
            for time in range(0, 20_000, 1_000):
                await session.insert("root.gone.d", "s1", time, 1.0)
            session.drop()

        trial.write(200)
        trial.simulation.run(doomed())
        trial.write(100)
        trial.fall_behind(3, lambda: trial.simulation.run(change()))
        trial.simulation.restart("node3")
        trial.verify()
        assert trial.installed(3) == [1, 2, 3]


def watch_meta_writes(patch: pytest.MonkeyPatch) -> list[tuple[int, bool]]:
    """The index of each checkpoint of meta that is written, and whether a worker does it."""
    run, write = SimulatedWorkers.run, MetaMachine._write
    found: list[tuple[int, bool]] = []
    working = False

    async def run_noted(self: SimulatedWorkers, work: Callable[..., Any], *args: Any) -> Any:
        def at_work() -> Any:
            nonlocal working
            working = True
            try:
                return work(*args)
            finally:
                working = False

        return await run(self, at_work)

    def write_noted(self: MetaMachine, snapshot: Snapshot) -> None:
        found.append((snapshot.index, working))
        write(self, snapshot)

    patch.setattr(SimulatedWorkers, "run", run_noted)
    patch.setattr(MetaMachine, "_write", write_noted)
    return found


def test_a_meta_member_behind_the_log_gets_the_state_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    """And the file that it is staged in is written by a worker, as those of its own checkpoints are."""
    written = watch_meta_writes(monkeypatch)
    with Trial(6) as trial:
        trial.write(50)
        trial.simulation.crash("node3")
        before = trial.nodes[3]._meta_machine.index
        session = SimulatedClient(trial.world, "node1", smoke.CLIENT_PORT)

        async def more_groups() -> None:
            for number in range(5):
                await session.insert(f"root.more{number}.d", "s1", 7, 1.0)
                trial.history.acknowledged.setdefault(f"root.more{number}.d.s1", {})[7] = 1.0

        trial.simulation.run(more_groups())
        leader = next(node for node in (1, 2) if trial.nodes[node]._driver.groups[0].leads)
        for _ in range(40):
            trial.write(100)
            trial.simulation.run_until(1_000)
            if trial.nodes[leader]._driver.groups[0].log.first_index() > before + 1:
                break
        meta = trial.nodes[leader]._driver.groups[0]
        assert meta.log.first_index() > before + 1, "the meta log is compacted beyond what node 3 has"
        trial.simulation.restart("node3")
        trial.verify()
        state = trial.nodes[3]._meta_machine.state
        assert {group.path for group in state.storage_groups()} >= {f"root.more{number}" for number in range(5)}
        received = trial.nodes[3]._driver.groups[0].log.compacted[0]
        assert received > before
        assert (received, True) in written
        assert all(at_work for _, at_work in written)


# --- the disk loses power at every single call ------------------------------------------------------------------------

BASE = "/data/group-1-1-7"
MARK = "/data/mark"
PIECE_BYTES = 64  # so that every file has some


class Source:
    """The files of a snapshot of a group that has points, and a digest of the group at its index."""

    def __init__(self) -> None:
        with Trial(7) as trial:
            trial.write(300)
            trial.simulation.run_until(1_000)
            machine = trial.nodes[1]._machines[1]
            machine.data.checkpoint_now()
            checkpoint = machine.data.read_checkpoint()
            copy = machine.data.copy(checkpoint)
            files = trial.simulation.nodes["node1"].disk.mount()
            self.index, self.term = copy.index, copy.term
            self.digest = machine.data.digest()
            self.files = [(Wanted(f.path, f.size, f.crc32c), f.read(files, 0, f.size)) for f in copy.files]
            copy.release()
        assert any(one.path.endswith(".chunk") for one, _ in self.files)

    def pieces(self, have: list[int]) -> Iterator[tuple[int, int, bytes]]:
        for number, ((one, data), here) in enumerate(zip(self.files, have, strict=True)):
            for offset in range(here, one.size, PIECE_BYTES):
                yield number, offset, data[offset : offset + PIECE_BYTES]


def receive(files: FileSystem, source: Source) -> int:
    """What a node does from the offer to the installation; the bytes that had to be sent."""
    stage = Stage(files, BASE)
    sent = 0
    for number, offset, data in source.pieces(stage.begin([one for one, _ in source.files])):
        stage.write(number, offset, data)
        sent += len(data)
    directory = stage.finish(source.index)
    received = DataGroup.open(1, files, directory)
    assert not received.store.corrupt
    replace_file(files, MARK, b"%d" % source.index)  # stands for the log's Install record
    assert received.digest() == source.digest
    received.close()
    files.remove_tree(BASE)
    files.sync_directory("/data")
    return sent


def recovered(files: FileSystem) -> tuple[int, DataGroup]:
    mark = 5
    if files.exists(MARK):
        file = files.open(MARK)
        mark = int(file.read(0, 100))
        file.close()
    return mark, DataGroup.open(1, files, live_directory(files, BASE, mark))


@pytest.fixture(scope="module")
def source() -> Source:
    return Source()


def test_the_mark_alone_decides_at_every_power_cut(source: Source) -> None:
    whole = sum(one.size for one, _ in source.files)
    saved, old = 0, ""
    for cut in itertools.count(1):
        disk = SimulatedDisk(random.Random(cut))
        make_durable_directories(disk, "/data")
        before = DataGroup.open(1, disk, BASE)
        before.apply(5, 1, b"")
        before.checkpoint_now()
        old = before.digest()
        before.close()
        disk.cut_at = disk.calls + cut
        try:
            receive(disk.mount(), source)
        except PowerCut:
            disk.power_on()
        else:
            break
        disk.cut_at = None
        mark, data = recovered(disk.mount())
        assert data.digest() == (source.digest if mark > 5 else old)
        data.close()
        if mark == 5:
            sent = receive(disk.mount(), source)
            saved += whole - sent
            data = recovered(disk.mount())[1]
            assert data.digest() == source.digest
            data.close()
    assert cut > 50
    assert saved > 0, "what was verified and synced is not sent again"


def write_damaged(stage: Stage, pieces: list[tuple[int, int, bytes]]) -> None:
    for number, offset, data in pieces:
        stage.write(number, offset, bytes([data[0] ^ 1]) + data[1:])


def test_what_is_damaged_on_the_way_is_not_taken(source: Source) -> None:
    disk = SimulatedDisk(random.Random(1))
    make_durable_directories(disk, "/data")
    stage = Stage(disk, BASE)
    wanted = [one for one, _ in source.files]
    pieces = list(source.pieces(stage.begin(wanted)))
    number, offset, data = pieces[0]
    with pytest.raises(CorruptData, match="bytes are here"):
        stage.write(number, offset + PIECE_BYTES, data)
    with pytest.raises(CorruptData, match="missing"):
        stage.finish(source.index)
    for at, (one, _) in enumerate(source.files):
        mine = [piece for piece in pieces if piece[0] == at]
        with pytest.raises(CorruptData, match="checksum"):
            write_damaged(stage, mine)
        assert stage.begin(wanted)[at] == 0
        for number, offset, data in mine[: len(mine) // 2]:
            stage.write(number, offset, data)
        have = stage.begin(wanted)
        assert have[at] == sum(len(piece[2]) for piece in mine[: len(mine) // 2]), "the same process goes on in a file"
        for number, offset, data in mine[len(mine) // 2 :]:
            stage.write(number, offset, data)
        assert stage.begin(wanted)[at] == one.size
    for bad in ("../x", "/etc/x", "units/../x", "units/1.1.1/a/b", ""):
        with pytest.raises(CorruptData, match="names the file"):
            stage.begin([Wanted(bad, 1, 1)])


@pytest.mark.parametrize(
    ("mark", "checkpoints", "live", "staged"),
    [
        (1, {}, "", False),
        (40, {"": 50, ".30": 30}, "", False),  # overtaken by the log, never installed
        (30, {"": 20, ".30": 30}, ".30", False),  # just installed
        (45, {"": 20, ".30": 50}, ".30", False),  # installed a while ago
        (10, {"": 20, ".30": 30}, "", True),  # staged, not installed
        (33, {".30": 35, ".60": 60}, ".30", True),
        (60, {".30": 35, ".60": 60}, ".60", False),
    ],
)
def test_which_directory_counts(mark: int, checkpoints: dict[str, int], live: str, staged: bool) -> None:
    def path(suffix: str) -> str:
        return staging.snapshot_directory(BASE, int(suffix[1:])) if suffix else BASE

    disk = SimulatedDisk(random.Random(1))
    disk.make_directories("/data/group-1-1-71")  # another one, whatever its name begins with
    for suffix, index in checkpoints.items():
        disk.make_directories(path(suffix))
        disk.open(f"{path(suffix)}/state-{index:020d}.ckpt", create=True)
    assert live_directory(disk, BASE, mark) == path(live)
    left = {"group-1-1-71", *([path(live)[6:]] if checkpoints else []), *(["group-1-1-7.stage"] if staged else [])}
    assert set(disk.list("/data")) == left
    assert live_directory(disk, BASE, mark) == path(live)
