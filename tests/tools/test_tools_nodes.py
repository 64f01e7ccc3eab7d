"""start-node.sh and stop-node.sh: exit codes, messages, and clusters formed by hand out of conf directories."""

import json
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from iotdb_cluster.tools.admin_client import AdminUnreachable, ask

ROOT = Path(__file__).parents[2]
SERVING_S_MAX = 30


class Nodes:
    """Nodes whose conf directories are written and whose processes are started one by one, as by hand."""

    def __init__(self, directory: Path, processes: ModuleType, host: str = "localhost") -> None:
        self.directory = directory
        self.offset = processes.free_offset()
        self.keys = processes.KEYS
        self.host = host
        self.running: dict[int, subprocess.Popen[bytes]] = {}

    def conf(self, number: int) -> Path:
        return self.directory / f"node{number}" / "conf"

    def ports(self, number: int) -> tuple[int, int, int, int]:
        """meta, data, client, nodetool."""
        step, off = number - 1, self.offset
        return 9003 + 2 * step + off, 40010 + 2 * step + off, 55560 + step + off, 31999 + step + off

    def write(self, number: int, seeds: int = 3, **changes: Any) -> Path:
        meta, data, client, nodetool = self.ports(number)
        values = {
            "cluster_rpc_ip": self.host,
            "internal_meta_port": meta,
            "internal_data_port": data,
            "cluster_rpc_port": client,
            "nodetool_port": nodetool,
            "web_port": 18_080 + self.offset + number,
            "seed_nodes": ",".join(
                ":".join(map(str, (self.host, *self.ports(seed)[:3]))) for seed in range(1, seeds + 1)
            ),
            **self.keys,
            **changes,
        }
        self.conf(number).mkdir(parents=True, exist_ok=True)
        text = "".join(f"{key}={value}\n" for key, value in values.items())
        (self.conf(number) / "iotdb-cluster.properties").write_text(text)
        return self.conf(number)

    def start(self, number: int, *words: str) -> subprocess.Popen[bytes]:
        with (self.directory / f"console{number}.log").open("ab") as console:
            process = subprocess.Popen(
                [str(ROOT / "sbin" / "start-node.sh"), "-c", str(self.conf(number)), *words],
                stdout=console,
                stderr=console,
            )
        self.running[number] = process
        return process

    def said(self, number: int) -> str:
        return (self.directory / f"console{number}.log").read_text()

    def serves(self, number: int) -> bool:
        try:
            return bool(ask("127.0.0.1", self.ports(number)[3], {"command": "health"}, 2).get("serving"))
        except AdminUnreachable:
            return False

    def wait(self, *numbers: int) -> None:
        deadline = time.monotonic() + SERVING_S_MAX
        while not all(self.serves(number) for number in numbers):
            for number in numbers:
                assert self.running[number].poll() is None, self.said(number)
            assert time.monotonic() < deadline, "\n".join(self.said(number)[-2000:] for number in numbers)
            time.sleep(0.05)

    def ended(self, number: int, within_s: float = 20) -> tuple[int, str]:
        """The exit code of a node, and all that it said."""
        return self.running[number].wait(within_s), self.said(number)

    def close(self) -> None:
        for process in self.running.values():
            if process.poll() is None:
                process.kill()
            process.wait()


@pytest.fixture
def nodes(tmp_path: Path, processes: ModuleType) -> Iterator[Nodes]:
    made = Nodes(tmp_path, processes)
    yield made
    made.close()


def script(name: str, *words: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [str(ROOT / "sbin" / name), *map(str, words)], capture_output=True, text=True, timeout=60, check=False
    )


# --- arguments and configuration: exit code 1 -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (["-nonsense"], "-nonsense is not an option"),
        (["-internal_meta_port"], "-internal_meta_port needs a value"),
        (["-cluster_rpc_port", "many"], "cluster_rpc_port=many: a whole number is wanted"),
        (["-internal_data_port", "70000"], "internal_data_port=70000: a port from 1 to 65535 is wanted"),
        (["-seed_nodes", "127.0.0.1"], "seed node '127.0.0.1': write host:meta_port:data_port:client_port"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_a_bad_word_on_the_command_line(nodes: Nodes, words: list[str], text: str) -> None:
    run = script("start-node.sh", "-c", nodes.write(1), *words)
    assert (run.returncode, run.stdout) == (1, "")
    assert text in run.stderr
    assert "Traceback" not in run.stderr


def test_a_bad_value_is_named_with_file_and_line(nodes: Nodes) -> None:
    conf = nodes.write(1, default_replica_num="three")
    lines = (conf / "iotdb-cluster.properties").read_text().splitlines()
    line = lines.index("default_replica_num=three") + 1
    run = script("start-node.sh", "-c", conf)
    assert run.returncode == 1
    assert f"iotdb-cluster.properties:{line}: default_replica_num=three" in run.stderr


def test_a_key_that_breaks_a_promise_is_refused(nodes: Nodes) -> None:
    run = script("start-node.sh", "-c", nodes.write(1, is_enable_raft_log_persistence="false"))
    assert run.returncode == 1
    assert "is_enable_raft_log_persistence=false is refused" in run.stderr


def test_a_conf_directory_that_is_not_there(tmp_path: Path) -> None:
    for directory in (tmp_path, tmp_path / "nowhere"):
        run = script("start-node.sh", "-c", directory)
        assert run.returncode == 1
        assert f"{directory} holds neither" in run.stderr
    assert list(tmp_path.iterdir()) == []


def test_a_node_that_is_no_seed_is_refused_with_3(nodes: Nodes) -> None:
    nodes.write(1, seed_nodes="localhost:1:2:3,localhost:4:5:6")
    nodes.start(1)
    code, said = nodes.ended(1)
    assert code == 3
    assert "is not among the seed nodes" in said


# --- one node ---------------------------------------------------------------------------------------------------------


def test_one_node_started_used_twice_and_stopped(nodes: Nodes) -> None:
    conf = nodes.write(1, seeds=1, default_replica_num=1)
    nodes.start(1)
    nodes.wait(1)
    first = nodes.running[1]
    assert int((conf.parent / "node.pid").read_text()) == first.pid

    nodes.start(1)  # the same directory again
    code, said = nodes.ended(1)
    assert code == 4
    assert f"is used by the node that runs with pid {first.pid}" in said
    nodes.running[1] = first
    assert nodes.serves(1)

    other = nodes.write(2, seeds=1, cluster_rpc_port=nodes.ports(1)[2], internal_meta_port=nodes.ports(1)[0])
    run = script("start-node.sh", "-c", other)  # its ports are taken
    assert run.returncode == 1
    assert "Traceback" not in run.stdout
    assert str(nodes.ports(1)[0]) in run.stdout

    stopped = script("stop-node.sh", conf)
    assert (stopped.returncode, stopped.stdout) == (0, f"the node (pid {first.pid}) has ended\n")
    assert first.wait(5) == 0
    assert not (conf.parent / "node.pid").exists()
    again = script("stop-node.sh", conf)
    assert (again.returncode, again.stdout) == (1, "No IoTDB server to stop\n")


def test_a_node_is_stopped_by_its_nodetool_port(nodes: Nodes) -> None:
    nodes.write(1, seeds=1)
    nodes.start(1, "-default_replica_num", "1")
    nodes.wait(1)
    stopped = script("stop-node.sh", "-p", nodes.ports(1)[3])
    assert (stopped.returncode, stopped.stderr) == (0, "")
    assert nodes.ended(1)[0] == 0
    assert script("stop-node.sh", "-p", nodes.ports(1)[3]).returncode == 1


def test_sigterm_ends_a_node_that_waits_for_its_seeds(nodes: Nodes) -> None:
    nodes.write(1)
    process = nodes.start(1)
    deadline = time.monotonic() + 20
    while "waiting for a quorum of the seed nodes (1 of 3 are here); missing:" not in nodes.said(1):
        assert time.monotonic() < deadline, nodes.said(1)
        time.sleep(0.05)
    process.terminate()
    assert process.wait(5) == 0
    assert "Traceback" not in nodes.said(1)


def test_a_pid_file_left_behind_is_nobody(nodes: Nodes) -> None:
    conf = nodes.write(1, seeds=1, default_replica_num=1)
    (conf.parent / "node.pid").write_text(f"{os.getpid()}\n")  # ours: a program that must not be ended
    assert script("stop-node.sh", conf).returncode == 1
    nodes.start(1)
    nodes.wait(1)
    assert int((conf.parent / "node.pid").read_text()) == nodes.running[1].pid


# --- three nodes, by hand ---------------------------------------------------------------------------------------------


def insert(replay: ModuleType, port: int, time_ms: int) -> list[str]:
    peer = replay.Peer("127.0.0.1", port, {})
    answer: list[str] = peer.answer(f"INSERT INTO root.hand.d1(timestamp, s1) VALUES ({time_ms}, {time_ms})")
    peer.close()
    return answer


def rows(replay: ModuleType, port: int) -> list[str]:
    peer = replay.Peer("127.0.0.1", port, {})
    answer: list[str] = peer.answer("SELECT s1 FROM root.hand.d1")
    peer.close()
    return answer[1:]


def test_a_quorum_forms_by_host_names_the_third_comes_later_and_an_empty_disk_is_refused(
    nodes: Nodes, replay: ModuleType
) -> None:
    for number in (1, 2, 3):
        nodes.write(number)
    nodes.start(3)
    time.sleep(1.5)  # alone it waits
    assert nodes.running[3].poll() is None
    assert not nodes.serves(3)
    nodes.start(1)
    nodes.wait(3, 1)
    assert insert(replay, nodes.ports(3)[2], 1) == ["ok"]

    nodes.start(2)
    nodes.wait(2)
    assert insert(replay, nodes.ports(2)[2], 2) == ["ok"]
    assert rows(replay, nodes.ports(2)[2]) == ["1 | 1.0", "2 | 2.0"]

    began = time.monotonic()
    nodes.running[2].send_signal(signal.SIGTERM)
    assert nodes.running[2].wait(5) == 0
    print(f"SIGTERM to the end: {time.monotonic() - began:.2f} s")
    shutil.rmtree(nodes.directory / "node2" / "data")
    nodes.start(2)
    code, said = nodes.ended(2)
    assert code == 3
    assert "knows this node as a member that had data; its disks are empty now" in said
    assert "Traceback" not in said
    assert insert(replay, nodes.ports(1)[2], 3) == ["ok"]  # the rest goes on


def test_seeds_that_disagree_name_the_key_with_both_values(nodes: Nodes) -> None:
    nodes.write(1, default_replica_num=2)
    nodes.write(2, default_replica_num=3)
    nodes.start(1)
    nodes.start(2)
    deadline = time.monotonic() + 20
    while all(process.poll() is None for process in nodes.running.values()) and time.monotonic() < deadline:
        time.sleep(0.05)
    ended = [number for number, process in nodes.running.items() if process.poll() is not None]
    assert ended, "whoever asks first is refused, the other waits for a quorum"
    for number in ended:
        code, said = nodes.ended(number)
        assert code == 3
        mine, theirs = (2, 3) if number == 1 else (3, 2)
        assert f"default_replica_num is {mine} here and {theirs} there" in said
        assert "Traceback" not in said


def test_another_cluster_name_is_refused(nodes: Nodes) -> None:
    nodes.write(1, cluster_name="one")
    nodes.write(2, cluster_name="two")
    nodes.start(1)
    nodes.start(2)
    deadline = time.monotonic() + 20
    while all(process.poll() is None for process in nodes.running.values()) and time.monotonic() < deadline:
        time.sleep(0.05)
    ended = [number for number, process in nodes.running.items() if process.poll() is not None]
    assert ended
    for number in ended:
        code, said = nodes.ended(number)
        assert code == 3
        assert "'one'" in said
        assert "'two'" in said


# --- a damaged log ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("flushed", "left"), [(False, 3), (True, 6)], ids=["in the log alone", "in files too"])
def test_a_damaged_log_is_refused_until_the_loss_is_accepted(
    nodes: Nodes, replay: ModuleType, flushed: bool, left: int
) -> None:
    nodes.write(1, seeds=1, default_replica_num=1)
    nodes.start(1)
    nodes.wait(1)
    peer = replay.Peer("127.0.0.1", nodes.ports(1)[2], {})
    for time_ms in range(1, 7):
        assert peer.answer(f"INSERT INTO root.loss.d(timestamp, s) VALUES ({time_ms}, {time_ms})") == ["ok"]
    if flushed:
        assert peer.answer("FLUSH") == ["ok"]
    peer.close()
    nodes.running[1].kill()
    nodes.running[1].wait()
    log = nodes.directory / "node1" / "data" / "wal"
    told = script("iotdb", "raft-log", "--json", "-d", log)
    facts = [json.loads(line) for line in told.stdout.splitlines()]
    inserts = [fact["index"] for fact in facts if fact["what"] == "entry" and "insert of" in fact["text"]]
    appends = {fact["first"]: fact["batch"] for fact in facts if fact["what"] == "record" and fact["kind"] == "append"}
    batch = next(f for f in facts if f["what"] == "batch" and f["sequence"] == appends[inserts[3]])
    with Path(batch["path"]).open("r+b") as segment:
        segment.seek(batch["offset"] + batch["bytes"] - 1)
        last = segment.read(1)[0]
        segment.seek(-1, 1)
        segment.write(bytes([last ^ 1]))
    assert script("iotdb", "raft-log", log).returncode == 4
    nodes.start(1)
    code, said = nodes.ended(1)
    assert code == 4
    assert f"{batch['path']} offset {batch['offset']}" in said
    assert "--accept-loss" in said
    for words in (["--accept-loss"], []):
        nodes.start(1, *words)
        nodes.wait(1)
        peer = replay.Peer("127.0.0.1", nodes.ports(1)[2], {})
        assert peer.answer("SELECT count(s) FROM root.loss.d")[1] == str(left)
        assert peer.answer(f"INSERT INTO root.loss.d(timestamp, s) VALUES ({left + 1}, 0)") == ["ok"]
        left += 1
        peer.close()
        nodes.running[1].kill()
        nodes.running[1].wait()
