"""What a new user does first: the examples, and a look at the cluster with nodetool, against real processes."""

import json
import re
import subprocess
import sys
import time
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
NODE = r"127\.0\.0\.1:\d+:\d+:\d+"


def example(name: str, *words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(ROOT / "examples" / name), *words],
        capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip


def lines(run: subprocess.CompletedProcess[str]) -> list[str]:
    assert (run.returncode, run.stderr) == (0, "")
    return run.stdout.splitlines()


def node_texts(cluster: Any) -> list[str]:
    return [f"127.0.0.1:{m.meta_port}:{m.data_port}:{m.client_port}" for m in cluster.members]


@pytest.fixture(scope="module")
def peer(cluster: Any, replay: ModuleType) -> Any:
    """A session with the storage group root.tool in the cluster."""
    made = replay.Peer("127.0.0.1", cluster.ports[0], {})
    assert made.answer("SET STORAGE GROUP TO root.tool") == ["ok"]
    assert made.answer("INSERT INTO root.tool.d1(timestamp, s1) VALUES (1, 2.5)") == ["ok"]
    yield made
    made.close()


# --- the examples -----------------------------------------------------------------------------------------------------


def test_the_quickstart_runs_to_its_end_through_every_node_and_again(cluster: Any) -> None:
    for port in [*cluster.ports, cluster.ports[0]]:
        run = example("quickstart.py", "--port", str(port))
        assert run.returncode == 0, run.stderr
        assert "Traceback" not in run.stderr
        assert run.stdout.count("ok: ") == 7
        assert "sixth" in run.stdout


def test_the_demo_client_runs_to_its_end(cluster: Any, replay: ModuleType) -> None:
    peer = replay.Peer("127.0.0.1", cluster.ports[0], {})
    peer.answer("DELETE STORAGE GROUP root.quickstart")  # the demo asks for the average of all that is there
    peer.close()
    run = example("client_main.py", "-ip", str(cluster.ports[0]), "-qp", ",".join(map(str, cluster.ports)))
    assert run.returncode == 0, run.stderr
    assert "Failed queries" not in run.stdout
    sections = run.stdout.split("--- queries through port ")[1:]
    answers = [section.split("\n", 1)[1].split("delete the four series")[0] for section in sections]
    assert len(answers) == 3
    assert len(set(answers)) == 1, "the same queries have the same answers through every node"
    assert "root.batch1,\nroot.batch2,\nroot.batch3,\nroot.batch4,\n" in run.stdout
    assert "batch: done" in run.stdout


def test_the_first_insert_succeeds_within_five_seconds_of_the_start(new_cluster: Any, replay: ModuleType) -> None:
    cluster = new_cluster(nodes=3)
    began = time.monotonic()
    cluster.loopback.start()
    peer = replay.Peer("127.0.0.1", cluster.ports[0], {})
    assert peer.answer("INSERT INTO root.first.d1(timestamp, s1) VALUES (1, 1)") == ["ok"]
    seconds = time.monotonic() - began
    peer.close()
    print(f"first insert after {seconds:.1f} s")
    assert seconds < 15, "5 s on a machine with nothing else to do; the bound leaves room for one that has"


# --- nodetool ---------------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("peer")
def test_ring_and_status(cluster: Any) -> None:
    texts = node_texts(cluster)
    assert lines(cluster.nodetool("ring")) == [
        f"{'Node Identifier':<20}  {'Node':>30}",
        *(f"{i:<20}->{text:>30}" for i, text in enumerate(texts, 1)),
    ]
    assert lines(cluster.nodetool("status", node=2)) == [
        f"{'Node':<30}  {'Status':>10}",
        *(f"{text:<30}->{'on':>10}" for text in texts),
    ]


@pytest.mark.usefixtures("peer")
def test_host_shows_the_groups_and_their_slots(cluster: Any) -> None:
    for words in (["host"], ["host", "-a"], ["host", "--all"]):
        head, *rows = lines(cluster.nodetool(*words, node=3))
        assert head == f"{'Raft group':<50}  {'Slot Number':>20}"
        assert len(rows) == 3  # with three replicas every node is in every group
        assert all(re.fullmatch(rf"\({NODE}, {NODE}, {NODE}\)->\s+\d+", row) for row in rows)
        assert sum(int(row.split("->")[1]) for row in rows) == 10_000


@pytest.mark.usefixtures("peer")
def test_partition_shows_who_holds_what(cluster: Any) -> None:
    week = 604_800_000
    members = rf"\[{NODE}, {NODE}, {NODE}\]"
    rows = lines(cluster.nodetool("partition", "-path", "root.tool.d1", "-st", "5", "-et", str(2 * week + 7)))
    bounds = [(5, week), (week, 2 * week), (2 * week, 2 * week + 7)]
    assert len(rows) == 3
    for row, (low, high) in zip(rows, bounds, strict=True):
        found = re.fullmatch(rf"DATA<root\.tool\.d1, (-?\d+), (-?\d+)>\t->\t{members}", row)
        assert found, row
        assert int(found[1]) == low
        assert int(found[2]) in (high - 1, high)
    (row,) = lines(cluster.nodetool("partition", "--path", "root.tool.d1", "-m"))
    assert re.fullmatch(rf"META<root\.tool\.d1>\t->\t{members}", row)
    (row,) = lines(cluster.nodetool("partition", "-path", "root.tool.d1"))
    assert row.startswith("DATA<root.tool.d1, ")
    (row,) = lines(cluster.nodetool("partition", "-path", "root.tool.d1", "-st", "9", "-et", "3"))
    assert row.startswith("DATA<root.tool.d1, 9, 9>")
    rows = lines(cluster.nodetool("partition", "-path", "root.nosuch"))
    assert rows == ["The storage group of path <root.nosuch> doesn't exist."]


@pytest.mark.usefixtures("peer")
def test_groups_show_one_leader_each(cluster: Any) -> None:
    head, *rows = lines(cluster.nodetool("groups"))
    assert head.split() == ["Group", "Node", "Role", "Term", "Commit", "Applied", "Lag"]
    cells = [row.split() for row in rows]
    assert sorted((int(row[0]), row[1]) for row in cells) == [
        (g, t) for g in range(4) for t in sorted(node_texts(cluster))
    ]
    for group in range(4):
        assert sorted(row[2] for row in cells if row[0] == str(group)) == ["follower", "follower", "leader"]


@pytest.mark.usefixtures("peer")
def test_digests_are_equal(cluster: Any) -> None:
    head, *rows = lines(cluster.nodetool("digest"))
    assert head.split() == ["Group", "Applied", "Replicas", "Equal", "Digest"]
    assert [row.split()[0] for row in rows] == ["1", "2", "3"]
    assert all(row.split()[2:4] == ["3", "yes"] for row in rows)


@pytest.mark.usefixtures("peer")
def test_log_describes_a_directory_without_a_node(cluster: Any) -> None:
    directory = cluster.member(1).directory / "data" / "wal"
    assert lines(cluster.nodetool("log", "-path", str(directory)))
    detailed = lines(cluster.nodetool("log", "-path", str(directory), "-d"))
    assert any("meta command bootstrap" in line for line in detailed)
    assert any("insert of storage group" in line for line in detailed)
    assert detailed[-1].startswith("the log ends behind batch")
    facts = [json.loads(line) for line in lines(cluster.nodetool("--json", "log", "-path", str(directory)))]
    assert facts[-1]["what"] == "end"
    assert not [fact for fact in facts if fact["what"] in ("corrupt", "damaged")]
    segment = str(directory / "segment-00000001.log")
    told = subprocess.run([ROOT / "sbin" / "iotdb", "raft-log", segment], capture_output=True, text=True, check=False)
    assert told.returncode == 0, told.stderr
    assert told.stdout.splitlines()[-1].startswith("the file ends behind batch")


@pytest.mark.parametrize(
    "words", [["ring"], ["status"], ["host"], ["partition", "-path", "root.tool"], ["groups"], ["digest"]],
    ids=lambda words: words[0],
)  # fmt: skip
@pytest.mark.usefixtures("peer")
def test_json_is_one_object(cluster: Any, words: list[str]) -> None:
    (text,) = lines(cluster.nodetool("--json", *words))
    assert isinstance(json.loads(text), dict)


def test_help_names_the_commands(cluster: Any) -> None:
    for words in ([], ["help"]):
        text = "\n".join(lines(cluster.nodetool(*words)))
        for command in ("ring", "status", "host", "partition", "groups", "digest", "log"):
            assert re.search(rf"^\s+{command}\s+\S", text, re.MULTILINE)
    assert lines(cluster.nodetool("help", "ring"))[0].startswith("nodetool ring: ")


@pytest.mark.parametrize(
    "words", [["nonsense"], ["partition"], ["ring", "-x"], ["-p", "x", "ring"], ["log"], ["partition", "-path"]],
    ids=" ".join,
)  # fmt: skip
def test_wrong_usage_is_said_on_stdout_with_a_hint_and_exit_1(cluster: Any, words: list[str]) -> None:
    run = cluster.nodetool(*words)
    assert run.returncode == 1
    assert run.stdout.startswith("nodetool: ")
    assert "nodetool help" in run.stdout
    assert run.stderr == ""


def test_nobody_there_is_said_on_stderr_with_exit_1(processes: ModuleType) -> None:
    port = str(31_999 + processes.free_offset())
    run = processes.run_tool("nodetool", "-p", port, "status")
    assert (run.returncode, run.stdout) == (1, "")
    assert run.stderr.startswith(f"nodetool: Failed to connect to '127.0.0.1:{port}' - ")


@pytest.mark.usefixtures("peer")
def test_a_node_that_is_down_is_off_and_the_rest_answers(cluster: Any) -> None:
    cluster.kill(3)
    rows = lines(cluster.nodetool("status"))
    assert [row.split("->")[1].strip() for row in rows[1:]] == ["on", "on", "off"]
    assert cluster.nodetool("groups").returncode == 0
    rows = lines(cluster.nodetool("digest"))[1:]
    assert all(row.split()[2:4] == ["2", "yes"] for row in rows)
    cluster.launch(3)
    cluster.wait()
    assert [row.split("->")[1].strip() for row in lines(cluster.nodetool("status"))[1:]] == ["on"] * 3


def test_the_nodes_had_nothing_to_complain_of(cluster: Any) -> None:
    assert cluster.complaints() == []
