"""A real disk that fills: three processes on a small tmpfs. Nothing acknowledged is lost; with room writes go on."""

import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

SIZE_MIB = 440
RESERVE_MIB = 64
ROWS, SENSORS, DOUBLE = 1_000, 10, 4
DEVICES = 6
FILL_S_MAX = 120.0
RECOVERED_S_MAX = 30.0


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A tmpfs for the first cluster of `new_cluster`; skipped where this user may not mount one."""
    path = tmp_path / "cluster0"
    path.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=2g", "tmpfs", path], capture_output=True, text=True, check=False
    )
    if mounted.returncode:
        pytest.skip(f"no tmpfs can be mounted: {mounted.stderr.strip()}")
    yield path
    subprocess.run(["umount", "-l", path], check=True)


def resize(disk: Path, mib: int) -> None:
    subprocess.run(["mount", "-o", f"remount,size={mib}m", disk], check=True)


class Tablets:
    """Tablets of full-precision values through each port, and how many rows of each device were acknowledged."""

    def __init__(self, cluster: Any, replay: ModuleType) -> None:
        self._peers = [replay.Peer("127.0.0.1", port, {}) for port in cluster.ports]
        self.rows: dict[str, int] = {}
        self._written = 0

    def write(self) -> str:
        """One tablet; "" or what refused it."""
        self._written += 1
        device = f"root.t{self._written % DEVICES}.d"
        start = self.rows.get(device, 0)
        peer = self._peers[self._written % len(self._peers)]
        values = np.random.default_rng(self._written).normal(size=(SENSORS, ROWS)).astype(">f8").tobytes()
        times = (np.arange(ROWS) + start).astype(">i8").tobytes()
        names = [f"s{i}" for i in range(SENSORS)]
        status = peer.client.insertTablet(
            peer.types.TSInsertTabletReq(peer.session, device, names, values, times, [DOUBLE] * SENSORS, ROWS)
        )
        if status.code != 200:
            return f"{status.code}: {status.message}"
        self.rows[device] = start + ROWS
        return ""

    def write_until_refused(self) -> str:
        """What refused a tablet in the end; "" where nothing did for a long time."""
        began = time.monotonic()
        refused = ""
        while not refused and time.monotonic() < began + FILL_S_MAX:
            refused = self.write()
        return refused

    def write_until_taken(self) -> None:
        """Writes until one tablet of each device in a row was taken: every leader learns of the room by itself."""
        began = time.monotonic()
        taken = 0
        while taken < DEVICES:
            taken = 0 if self.write() else taken + 1
            assert time.monotonic() < began + RECOVERED_S_MAX, "there is room again"
            time.sleep(0.1)

    def counts(self, node: int) -> dict[str, int]:
        """What the node says that there is."""
        peer = self._peers[node - 1]
        return {device: int(peer.answer(f"SELECT count(s0) FROM {device}")[1].split("|")[0]) for device in self.rows}

    def execute(self, sql: str) -> None:
        assert self._peers[0].answer(sql) == ["ok"]

    def close(self) -> None:
        for peer in self._peers:
            peer.close()


def test_a_small_disk_fills_and_is_freed(small_disk: Path, new_cluster: Callable[..., Any], replay: ModuleType) -> None:
    keys = {"log_bytes_max": 33_554_432, "disk_free_min_bytes": RESERVE_MIB << 20}
    with new_cluster(nodes=3, replication=3, **keys) as cluster:
        resize(small_disk, SIZE_MIB)
        tablets = Tablets(cluster, replay)
        tablets.execute("CREATE TIMESERIES root.t0.spare.s WITH DATATYPE=DOUBLE, ENCODING=GORILLA")
        refused = tablets.write_until_refused()
        assert refused.startswith("413: "), refused
        assert "kept in reserve" in refused
        pids = [cluster.pid(node) for node in (1, 2, 3)]
        time.sleep(6)  # for flushes and checkpoints: they may take what is left
        tablets.execute("DELETE TIMESERIES root.t0.spare.s")
        for node in (1, 2, 3):
            assert tablets.counts(node) == tablets.rows
        assert [cluster.pid(node) for node in (1, 2, 3)] == pids, "every node goes on"
        assert tablets.write_until_refused().startswith("413: ")  # checkpoints may have freed room of the log
        resize(small_disk, 3 * SIZE_MIB)
        tablets.write_until_taken()
        for _ in range(60):
            assert tablets.write() == ""
        tablets.close()
        for node in (1, 2, 3):
            cluster.kill(node)
        cluster.launch(1, 2, 3)
        cluster.wait()
        tablets = _again(cluster, replay, tablets)
        for node in (1, 2, 3):
            assert tablets.counts(node) == tablets.rows
        assert cluster.nodetool("digest").returncode == 0
        tablets.close()


def _again(cluster: Any, replay: ModuleType, before: Tablets) -> Tablets:
    """New connections, the same rows."""
    tablets = Tablets(cluster, replay)
    tablets.rows = before.rows
    return tablets
