"""start-cluster.sh and stop-cluster.sh: what they refuse, what they say, and that nothing is left behind."""

import shutil
import socket
import subprocess
import time
from collections import namedtuple
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

from iotdb_cluster.tools import loopback
from iotdb_cluster.tools.loopback import CannotStart, Loopback, run

ROOT = Path(__file__).parents[2]


def script(name: str, *words: object, timeout_s: float = 90) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [str(ROOT / "sbin" / name), *map(str, words)], capture_output=True, text=True, timeout=timeout_s, check=False
    )


@pytest.fixture
def taken(processes: ModuleType) -> Iterator[socket.socket]:
    """A socket that listens on the client port of node 2 at some free distance; `getsockname` says which."""
    with socket.create_server(("127.0.0.1", 55_561 + processes.free_offset())) as listening:
        yield listening


def test_a_cluster_from_start_to_stop_with_the_scripts(tmp_path: Path, processes: ModuleType) -> None:
    offset = processes.free_offset()
    data = tmp_path / "data"
    try:
        began = time.monotonic()
        made = script("start-cluster.sh", 2, "--replication", 2, "--data", data, "--port-offset", offset)
        assert (made.returncode, made.stderr) == (0, "")
        assert "2 of 2 nodes started in" in made.stdout
        assert f"port {55_560 + offset}, {55_561 + offset}" in made.stdout
        assert f"sbin/stop-cluster.sh --data {data}" in made.stdout
        print(f"two nodes in {time.monotonic() - began:.1f} s")

        again = script("start-cluster.sh", "--data", data)
        assert (again.returncode, "all 2 nodes are running" in again.stdout) == (0, True)

        for words, text in (
            ([3], "nodes = 2, not 3"),
            (["--replication", 1], "replicas = 2, not 1"),
            (["--port-offset", offset + 20], f"port offset = {offset}, not {offset + 20}"),
        ):
            refused = script("start-cluster.sh", *words, "--data", data)
            assert refused.returncode == 1
            assert refused.stderr.startswith("start-cluster: ")
            assert text in refused.stderr

        other = script("start-cluster.sh", 2, "--data", tmp_path / "other", "--port-offset", offset)
        assert other.returncode == 1
        assert "taken ports on 127.0.0.1: " in other.stderr
        assert "Another cluster may be running" in other.stderr
        assert [member.pid for member in Loopback(tmp_path / "other").members] == []
    finally:
        ended = script("stop-cluster.sh", "--data", data)
    assert (ended.returncode, ended.stderr) == (0, "")
    assert "2 nodes stopped" in ended.stdout
    assert [member.pid for member in Loopback(data).members] == [None, None]
    nothing = script("stop-cluster.sh", "--data", data)
    assert (nothing.returncode, nothing.stdout) == (0, "nothing runs there\n")


def test_stopping_where_nothing_was_ever_is_no_failure(tmp_path: Path) -> None:
    assert run(["stop", "--data", str(tmp_path / "nowhere")]) == 0
    assert not (tmp_path / "nowhere").exists()


@pytest.mark.parametrize(
    "words",
    [["abc"], ["0"], ["65"], ["-1"],
     ["--replication", "0"], ["--replicas", "2"], ["1", "2"], ["--port-offset", "10000"]],
    ids=" ".join,
)  # fmt: skip
def test_what_cannot_be_meant_is_refused_with_1(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], words: list[str]
) -> None:
    assert run(["start", *words, "--data", str(tmp_path / "data")]) == 1
    assert capsys.readouterr().err
    assert not (tmp_path / "data").exists()


def test_a_taken_port_is_named_and_nothing_is_started(tmp_path: Path, taken: socket.socket) -> None:
    port = taken.getsockname()[1]
    cluster = Loopback(tmp_path / "data")
    cluster.settle(3, None, port - 55_561)
    with pytest.raises(CannotStart, match=rf"taken ports on 127\.0\.0\.1: {port} \(node 2\)") as refused:
        cluster.start()
    assert refused.value.code == 1
    assert not any(member.directory.exists() for member in cluster.members)


def test_a_taken_nodetool_port_is_a_warning(
    tmp_path: Path, processes: ModuleType, capsys: pytest.CaptureFixture[str]
) -> None:
    cluster = Loopback(tmp_path / "data", processes.KEYS)
    cluster.settle(1, None, processes.free_offset())
    (member,) = cluster.members
    with socket.create_server(("127.0.0.1", member.nodetool_port)):
        try:
            cluster.start()
            assert f"port {member.nodetool_port} is taken: node 1 runs without nodetool" in capsys.readouterr().err
            assert member.pid is not None
        finally:
            cluster.stop(cluster.members, quietly=True)
    assert member.pid is None


def test_no_room_on_disk_is_said_before_anything_is_started(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(1 << 40, 0, 1 << 20))
    cluster = Loopback(tmp_path / "data")
    cluster.settle(3, None, 8_000)
    with pytest.raises(CannotStart, match="1 MiB free; 512 MiB a node are needed") as refused:
        cluster.start()
    assert refused.value.code == 4
    assert not any(member.directory.exists() for member in cluster.members)


def test_a_directory_that_cannot_be_made_is_unusable(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    cluster = Loopback(tmp_path / "file" / "data")
    cluster.settle(1, None, 8_000)
    with pytest.raises(CannotStart, match="cannot be made") as refused:
        cluster.start()
    assert refused.value.code == 4


def test_a_damaged_memory_of_the_cluster_is_unusable(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for text in ("{", "[]", '{"nodes": 3}'):
        (tmp_path / "cluster.json").write_text(text)
        assert run(["stop", "--data", str(tmp_path)]) == 4
        assert "cluster.json cannot be read" in capsys.readouterr().err


def test_half_started_leaves_no_process_behind(tmp_path: Path, processes: ModuleType) -> None:
    cluster = Loopback(tmp_path / "data", processes.KEYS)
    cluster.settle(3, None, processes.free_offset())
    bad = cluster.members[1].directory / "conf" / loopback.CLUSTER_FILE
    bad.parent.mkdir(parents=True)
    bad.write_text("internal_meta_port=none\n")
    with pytest.raises(CannotStart, match=r"node 2 ended: .*internal_meta_port=none") as refused:
        cluster.start()
    assert refused.value.code == 1
    assert [cluster.pid(member) for member in cluster.members] == [None, None, None]
    assert not [port for member in cluster.members for port in member.needed_ports if loopback._taken(port)]


@pytest.mark.parametrize("node", [1, 2, 3])
def test_a_start_that_is_ended_by_a_signal_ends_its_nodes(tmp_path: Path, processes: ModuleType, node: int) -> None:
    data = tmp_path / "data"
    start = subprocess.Popen(
        [str(ROOT / "sbin" / "start-cluster.sh"), "--data", str(data), "--port-offset", str(processes.free_offset())],
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    deadline = time.monotonic() + 20
    while not (data / f"node{node}" / "logs" / "console.log").exists() and time.monotonic() < deadline:
        pass  # at once: in the midst of the launch
    start.terminate()
    assert start.wait(20) == 143
    assert [command for command in commands() if str(data) in command] == []


def commands() -> list[str]:
    """The command line of every process."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            found.append(path.read_bytes().replace(b"\0", b" ").decode(errors="replace"))
        except OSError:
            continue  # it has ended
    return found
