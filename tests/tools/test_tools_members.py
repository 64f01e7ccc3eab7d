"""Joining, leaving and replacing as an operator does it, with processes: each outcome, its words, its code."""

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

from iotdb_cluster.tools.loopback import Member
from iotdb_cluster.tools.remove import main as remove_main

ROOT = Path(__file__).parents[2]
SETTLED_S_MAX = 180.0


class Operator:
    """A cluster of three nodes, and nodes that are started beside it by hand."""

    def __init__(self, cluster: Any, directory: Path) -> None:
        self.cluster = cluster
        self.directory = directory
        self.running: list[subprocess.Popen[bytes]] = []

    def write(self, number: int, **changes: Any) -> Member:
        """The conf directory of a node beside the cluster; the seeds are the cluster's three."""
        member = Member(number, self.directory / f"node{number}", self.cluster.loopback.offset)
        values = {
            "cluster_rpc_ip": "127.0.0.1",
            "internal_meta_port": member.meta_port,
            "internal_data_port": member.data_port,
            "cluster_rpc_port": member.client_port,
            "nodetool_port": member.nodetool_port,
            "web_port": member.web_port,
            "seed_nodes": ",".join(one.seed for one in self.cluster.members[:3]),
            "start_timeout_ms": 3_000,
            **self.cluster.loopback.keys,
            **changes,
        }
        conf = member.directory / "conf"
        conf.mkdir(parents=True, exist_ok=True)
        text = "".join(f"{key}={value}\n" for key, value in values.items())
        (conf / "iotdb-cluster.properties").write_text(text)
        return member

    def start(self, member: Member, script: str = "add-node.sh", *words: str) -> subprocess.Popen[bytes]:
        with self.console(member).open("ab") as console:
            process = subprocess.Popen(
                [str(ROOT / "sbin" / script), *words, "-c", str(member.directory / "conf")],
                stdout=console,
                stderr=console,
            )
        self.running.append(process)
        return process

    def console(self, member: Member) -> Path:
        return member.directory / "console.log"

    def fails(self, member: Member, script: str = "add-node.sh", *words: str) -> tuple[int, str]:
        """The exit code of a node that does not start, and what it said in this start."""
        for _ in range(5):
            before = self.console(member).stat().st_size if self.console(member).exists() else 0
            code = self.start(member, script, *words).wait(120)
            said = self.console(member).read_bytes()[before:].decode()
            if "address already in use" not in said.lower():  # by a connection of another test
                break
            time.sleep(1)
        assert "Traceback" not in said
        return code, said

    def until_said(self, member: Member, text: str) -> None:
        deadline = time.monotonic() + SETTLED_S_MAX
        while text not in self.console(member).read_text():
            assert time.monotonic() < deadline, self.console(member).read_text()
            time.sleep(0.05)

    def tool(self, *words: str, node: int = 1) -> Any:
        run = self.cluster.nodetool("--json", *words, node=node)
        assert run.returncode == 0, run.stderr
        return json.loads(run.stdout)

    def settled(self, node: int = 1) -> None:
        deadline = time.monotonic() + SETTLED_S_MAX
        while True:
            told = self.tool("migration", node=node)
            if told["change"] is None:
                return
            assert time.monotonic() < deadline, told
            time.sleep(0.1)

    def end(self, process: subprocess.Popen[bytes]) -> int:
        process.send_signal(signal.SIGTERM)
        return process.wait(30)

    def close(self) -> None:
        for process in self.running:
            if process.poll() is None:
                process.kill()
            process.wait()


@pytest.fixture
def operator(new_cluster: Any, tmp_path: Path) -> Iterator[Operator]:
    cluster = new_cluster(nodes=3)
    cluster.loopback.start()
    made = Operator(cluster, tmp_path / "beside")
    yield made
    made.close()


def remove(cluster: Any, *words: str) -> subprocess.CompletedProcess[str]:
    conf = cluster.member(2).directory / "conf"
    return subprocess.run(
        [str(ROOT / "sbin" / "remove-node.sh"), *words, "-c", str(conf)],
        capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip


# --- what needs no cluster --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "text"),
    [
        ([], "which node is to be removed?"),
        (["127.0.0.1", "many"], "which node is to be removed?"),
        (["4", "-x"], "-x is not an option"),
        (["4", "-t"], "-t needs a value"),
        (["4", "-t", "soon"], "-t soon: a number of seconds is wanted"),
        (["4", "-c", "/nowhere"], "holds neither"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_wrong_words_for_remove_node(words: list[str], text: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert remove_main(words) == 1
    assert text in capsys.readouterr().err


def test_nobody_answers_remove_node(processes: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    port = 9003 + processes.free_offset()
    assert remove_main(["4", "-seed_nodes", f"127.0.0.1:{port}:1:2"]) == 2
    assert f"no member of the cluster could begin it: 127.0.0.1:{port}" in capsys.readouterr().err


def test_a_joiner_needs_somebody_else_to_ask(tmp_path: Path) -> None:
    (tmp_path / "conf").mkdir()
    (tmp_path / "conf" / "iotdb-cluster.properties").write_text(
        "cluster_rpc_ip=127.0.0.1\ninternal_meta_port=9003\nseed_nodes=127.0.0.1:9003:40010:55560\n"
    )
    for words, text in ((["-a"], "seed_nodes names only this node"), (["--replace", "x"], "--replace needs")):
        run = subprocess.run(
            [str(ROOT / "sbin" / "start-node.sh"), *words, "-c", str(tmp_path / "conf")],
            capture_output=True, text=True, timeout=120, check=False,
        )  # fmt: skip
        assert (run.returncode, run.stdout) == (1, "")
        assert text in run.stderr
    assert os.listdir(tmp_path) == ["conf"]


# --- refusals ---------------------------------------------------------------------------------------------------------


def test_each_refusal_has_its_words_and_its_code(operator: Operator) -> None:
    cluster = operator.cluster
    first = cluster.member(1)

    other = operator.write(4, cluster_name="other", default_replica_num=2, partition_interval=1)
    code, said = operator.fails(other)
    assert code == 3
    name = f"127.0.0.1:{other.meta_port}"
    assert f"cluster_name is 'other' at {name} and 'default' in the cluster" in said
    assert f"default_replica_num is 2 at {name} and 3 in the cluster" in said
    assert f"partition_interval is 1 at {name} and 604800 in the cluster" in said

    code, said = operator.fails(operator.write(4, seed_nodes=f"{first.seed},127.0.0.1:1:2:3"))
    assert code == 3
    assert f"seed_nodes has ['127.0.0.1:1'] at {name}, and the cluster's members are [" in said

    code, said = operator.fails(operator.write(4, seed_nodes="127.0.0.1:1:2:3"))
    assert code == 2
    assert "no seed node has admitted this node within 3 s: 127.0.0.1:1: " in said

    code, said = operator.fails(operator.write(4), "start-node.sh")
    assert code == 3
    assert "to add a node to a running cluster start it with add-node.sh" in said

    for target, text in (
        (
            ["127.0.0.1", str(first.meta_port)],
            "cluster size is too small, no node can be removed: 3 nodes for 3",
        ),
        (["127.0.0.1", "1"], "node 127.0.0.1:1 is not found in the cluster"),
        (["77"], "node 77 is not found in the cluster"),
    ):
        run = remove(cluster, *target)
        assert (run.returncode, run.stdout) == (3, "")
        assert text in run.stderr

    for words, text in (
        (["set-replication", "0"], "it must be above 0"),
        (["pause"], "no membership change is under way"),
        (["resume"], "no membership change is under way"),
    ):
        run = cluster.nodetool(*words)
        assert run.returncode in (2, 3)
        assert text in run.stderr


def test_the_last_node_stays(new_cluster: Any) -> None:
    cluster = new_cluster(nodes=1)
    cluster.loopback.start()
    run = subprocess.run(
        [str(ROOT / "sbin" / "remove-node.sh"), "1", "-c", str(cluster.member(1).directory / "conf")],
        capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert run.returncode == 3
    assert "refused: node 1 is the last node of the cluster: stop it instead of removing it" in run.stderr


# --- joining, replacing, leaving --------------------------------------------------------------------------------------


def test_a_node_joins_restarts_waits_is_copied_and_leaves(operator: Operator, replay: ModuleType) -> None:
    cluster = operator.cluster
    peer = replay.Peer("127.0.0.1", cluster.ports[0], {})
    assert peer.answer("INSERT INTO root.member.d(timestamp, s) VALUES (1, 2.5)") == ["ok"]
    peer.close()

    fourth = operator.write(4)
    process = operator.start(fourth)
    operator.until_said(fourth, "serves clients on port")
    operator.settled()
    assert operator.tool("ring")["nodes"][3] == [4, fourth.seed, "normal"]
    assert sorted(count for _, count in operator.tool("slot")["groups"]) == [2_500] * 4
    for script in ("start-node.sh", "add-node.sh"):  # in nobody's seed list but its own members'
        assert operator.end(process) == 0
        said = len(operator.console(fourth).read_text())
        process = operator.start(fourth, script)
        operator.until_said(fourth, "serves clients on port")
        deadline = time.monotonic() + SETTLED_S_MAX
        while "serves clients on port" not in operator.console(fourth).read_text()[said:]:
            assert time.monotonic() < deadline
            time.sleep(0.05)
    peer = replay.Peer("127.0.0.1", fourth.client_port, {})
    assert peer.answer("SELECT s FROM root.member.d")[1:] == ["1 | 2.5"]
    peer.close()

    # A copy of its disks at another address.
    fifth = operator.write(5)
    shutil.copytree(fourth.directory / "data", fifth.directory / "data")
    code, said_by = operator.fails(fifth, "start-node.sh")
    assert code == 3
    assert f"these directories are a copy of those of node 4, which runs at 127.0.0.1:{fourth.meta_port}" in said_by
    shutil.rmtree(fifth.directory / "data")

    # The disks of another cluster.
    code, said_by = operator.fails(_founded_elsewhere(operator, fifth), "add-node.sh")
    assert code == 4
    assert "these directories are those of node 1 of another cluster" in said_by
    shutil.rmtree(fifth.directory / "data")

    # Another change is under way: it waits, and says for what.
    fifth = operator.write(5, start_timeout_ms=4_000, default_replica_num=2)
    run = cluster.nodetool("set-replication", "2")
    assert (run.returncode, "has begun" in run.stdout) == (0, True)
    paused = cluster.nodetool("pause")
    if paused.returncode == 0:  # else it was done in no time
        code, said_by = operator.fails(fifth)
        assert code == 3
        assert "the previous membership change has not finished (the replication number changes)" in said_by
        run = remove(cluster, "4")
        assert (run.returncode, "the previous membership change has not finished" in run.stderr) == (3, True)
        assert "Some slots are in the state of data migration" in cluster.nodetool("migration").stdout
        assert cluster.nodetool("resume").returncode == 0
    operator.settled()

    run = remove(cluster, f"127.0.0.1:{fourth.client_port}")
    assert run.returncode == 0, run.stderr
    assert run.stdout.splitlines()[0] == f"node 4 ({fourth.seed}) is to be removed; it hands over what it has first"
    assert f"node 4 ({fourth.seed}) is successfully removed (" in run.stdout.splitlines()[-1]
    assert process.wait(60) == 3
    assert "node 4 is removed: it is no member of the cluster any more" in operator.console(fourth).read_text()
    for script, wanted in (("start-node.sh", 3), ("add-node.sh", 4)):  # it comes back, and finds out
        code, said_by = operator.fails(fourth, script)
        assert code == wanted
        assert ("is not a member of the cluster" if wanted == 3 else "or of one that was removed") in said_by


def _founded_elsewhere(operator: Operator, member: Member) -> Member:
    """A member's directories hold the data of a cluster of its own; the conf names the operator's."""
    operator.write(member.number, seed_nodes=member.seed, default_replica_num=1)
    process = operator.start(member, "start-node.sh")
    operator.until_said(member, "serves clients on port")
    assert operator.end(process) == 0
    return operator.write(member.number, default_replica_num=1)


def test_a_machine_is_replaced_by_one_with_its_address(operator: Operator, replay: ModuleType) -> None:
    cluster = operator.cluster
    peer = replay.Peer("127.0.0.1", cluster.ports[0], {})
    assert peer.answer("INSERT INTO root.member.d(timestamp, s) VALUES (1, 2.5)") == ["ok"]
    peer.close()
    cluster.kill(3)
    third = operator.write(3)  # empty directories, the same address
    code, said = operator.fails(third, "start-node.sh")
    assert code == 3
    assert "add-node.sh --replace NODE" in said
    code, said = operator.fails(third)
    assert code == 3
    assert f"node 3 is at 127.0.0.1:{third.meta_port} already, with other data: to replace it by this one" in said

    process = operator.start(third, "add-node.sh", "--replace", "3")
    operator.until_said(third, "serves clients on port")
    operator.settled()
    assert [(node, state) for node, _, state in operator.tool("ring")["nodes"]] == [
        (1, "normal"),
        (2, "normal"),
        (4, "normal"),
    ]
    peer = replay.Peer("127.0.0.1", third.client_port, {})
    assert peer.answer("SELECT s FROM root.member.d")[1:] == ["1 | 2.5"]
    peer.close()
    assert all(row["equal"] and len(row["digests"]) == 3 for row in operator.tool("digest")["groups"])
    assert operator.end(process) == 0


def test_a_machine_with_the_only_copy_is_replaced_when_the_loss_is_accepted(
    new_cluster: Any, tmp_path: Path, replay: ModuleType
) -> None:
    cluster = new_cluster(nodes=3, replication=1)
    cluster.loopback.start()
    operator = Operator(cluster, tmp_path / "beside")
    peer = replay.Peer("127.0.0.1", cluster.ports[0], {})
    for number in range(9):
        assert peer.answer(f"INSERT INTO root.copy{number}.d(timestamp, s) VALUES (1, {number}.5)") == ["ok"]
    peer.close()
    try:
        _replace_with_loss(operator)
    finally:
        operator.close()
    assert cluster.complaints() == []


def _replace_with_loss(operator: Operator) -> None:
    cluster = operator.cluster
    code, said = operator.fails(
        operator.write(4, default_replica_num=1), "add-node.sh", "--replace", "2", "--accept-loss"
    )
    assert code == 3
    assert "node 2 answers: what it has is not given up; remove it (remove-node.sh)" in said

    cluster.kill(2)
    second = operator.write(2, default_replica_num=1)  # empty directories, the same address
    code, said = operator.fails(second, "add-node.sh", "--replace", "2")
    assert code == 3
    assert "node 2 holds the only copy of 3333 slots (3334-6666) of the group headed by node 2: " in said
    assert "bring it back; or say --accept-loss: then these slots begin anew, empty, and the storage groups" in said

    process = operator.start(second, "add-node.sh", "--replace", "2", "--accept-loss")
    operator.until_said(second, "serves clients on port")
    told = "3333 slots of which the dead node 2 had the only copy begin anew, empty, as was accepted"
    assert told in operator.console(second).read_text()
    operator.settled()
    assert [node for node, _, _ in operator.tool("ring")["nodes"]] == [1, 3, 4]
    shown = cluster.nodetool("migration").stdout
    assert "3333 slots of which dead node 2 had the only copy began anew, empty" in shown
    rows = operator.tool("digest")["groups"]
    assert rows
    assert all(row["equal"] for row in rows)
    assert operator.end(process) == 0
