"""A majority dies by kill -9 and does not come back: the operator's commands, their refusals, and what is left."""

import subprocess
import time
from pathlib import Path
from types import ModuleType
from typing import Any

ROOT = Path(__file__).parents[2]
GOES_ON_S_MAX = 60.0


def forced(cluster: Any, node: int, *words: str) -> str:
    """What a command says that does its work."""
    run = cluster.nodetool(*words, node=node)
    assert run.returncode == 0, run.stderr
    return str(run.stdout)


def refused(cluster: Any, node: int, *words: str) -> str:
    """Why a command is refused."""
    run: subprocess.CompletedProcess[str] = cluster.nodetool(*words, node=node)
    assert (run.returncode, run.stdout) == (3, ""), (words, run)
    assert run.stderr.startswith("refused: ")
    return run.stderr


def goes_on(peer: Any, sql: str) -> None:
    """A statement succeeds, soon."""
    deadline = time.monotonic() + GOES_ON_S_MAX
    while (answer := peer.answer(sql)) != ["ok"]:
        assert time.monotonic() < deadline, answer
        time.sleep(0.1)


def test_three_of_five_nodes_die(new_cluster: Any, replay: ModuleType) -> None:
    cluster = new_cluster(nodes=5, replication=3)
    cluster.loopback.start()
    peer = replay.Peer("127.0.0.1", cluster.ports[2], {})
    for number in range(8):
        assert peer.answer(f"INSERT INTO root.forced{number}.d(timestamp, s) VALUES (1, {number}.5)") == ["ok"]
    peer.close()

    assert "every member of the meta group answers: it needs no force" in refused(cluster, 3, "force-meta")
    assert "every member of group 2 answers: it needs no force" in refused(cluster, 3, "force-group", "2")
    assert "there is no data group 0" in refused(cluster, 3, "force-group", "0", "--accept-loss")
    cluster.kill(1)
    cluster.kill(2)
    assert "a majority of the meta group is alive: it needs no force" in refused(cluster, 3, "force-meta")
    cluster.kill(4)
    assert "force-meta comes first" in refused(cluster, 3, "force-group", "2")
    winner = 3
    text = refused(cluster, winner, "force-meta")
    if "run it on node 5" in text:
        winner = 5
        text = refused(cluster, winner, "force-meta")
    assert "the nodes [1, 2, 4], which do not answer, were a majority of the members [1, 2, 3, 4, 5]" in text
    assert "bring one back, or say --accept-loss" in text
    said = forced(cluster, winner, "force-meta", "--accept-loss")
    assert f"the meta group has begun generation 2 with the log of node {winner}" in said
    assert "left out as dead: node 1, node 2, node 4; remove or replace each of them" in said

    assert "a majority of group 3 is alive: it needs no force" in refused(cluster, 5, "force-group", "3")
    for group, dead in ((1, "node 1, node 2"), (2, "node 2, node 4"), (4, "node 4, node 1"), (5, "node 1, node 2")):
        text = refused(cluster, 5, "force-group", str(group))
        assert "have acknowledged in its 2000 slots (" in text
        assert "bring one back, or say --accept-loss" in text
        said = forced(cluster, 5, "force-group", str(group), "--accept-loss")
        assert f"group {group} begins generation 2 without its replicas on {dead}" in said
    for node in (1, 2, 4):
        cluster.remove(node, through=5)

    for node in (3, 5):
        peer = replay.Peer("127.0.0.1", cluster.ports[node - 1], {})
        for number in range(8):
            goes_on(peer, f"INSERT INTO root.forced{number}.d(timestamp, s) VALUES ({node}, {node}.5)")
            assert f"1 | {number}.5" in peer.answer(f"SELECT s FROM root.forced{number}.d")
        peer.close()
    assert cluster.nodetool("digest", node=3).returncode == 0
    cluster.launch(4)
    deadline = time.monotonic() + GOES_ON_S_MAX
    while cluster.pid(4) is not None:
        assert time.monotonic() < deadline
        time.sleep(0.1)
    texts = ("node 4 is not a member of the cluster", "it is no member of the cluster any more")  # told, or asked
    assert any(text in cluster.log(4) for text in texts)
    assert cluster.complaints() == []


def test_a_dead_node_had_the_only_copy(new_cluster: Any, replay: ModuleType) -> None:
    cluster = new_cluster(nodes=3, replication=1)
    cluster.loopback.start()
    peer = replay.Peer("127.0.0.1", cluster.ports[0], {})
    for number in range(9):
        assert peer.answer(f"INSERT INTO root.copy{number}.d(timestamp, s) VALUES (1, {number}.5)") == ["ok"]
    cluster.kill(2)

    def remove(*words: str) -> subprocess.CompletedProcess[str]:
        conf = cluster.member(1).directory / "conf"
        return subprocess.run(
            [str(ROOT / "sbin" / "start-node.sh"), "-r", "2", *words, "-c", str(conf)],
            capture_output=True, text=True, timeout=120, check=False,
        )  # fmt: skip

    run = remove()
    assert (run.returncode, run.stdout) == (3, "")
    assert "node 2 holds the only copy of 3333 slots (3334-6666) of the group headed by node 2: " in run.stderr
    assert (
        "bring it back; or say --accept-loss: then these slots begin anew, empty, and the storage groups" in run.stderr
    )
    assert cluster.nodetool("migration").stdout.startswith("No slots are in the state of data migration")
    run = remove("--accept-loss")
    assert run.returncode == 0, run.stderr
    assert "3333 slots of which it had the only copy begin anew, empty" in run.stdout
    told = cluster.nodetool("migration").stdout
    assert "3333 slots of which dead node 2 had the only copy began anew, empty" in told
    kept = 0
    for number in range(9):
        goes_on(peer, f"INSERT INTO root.copy{number}.d(timestamp, s) VALUES (2, 2.5)")
        rows = peer.answer(f"SELECT s FROM root.copy{number}.d")[1:]
        assert rows in (["2 | 2.5"], ["1 | " + f"{number}.5", "2 | 2.5"])
        kept += len(rows) == 2
    assert 0 < kept < 9
    peer.close()
    told = "3333 slots of which the dead node 2 had the only copy begin anew, empty"
    assert told in cluster.log(1) + cluster.log(3)
    assert cluster.complaints() == []
