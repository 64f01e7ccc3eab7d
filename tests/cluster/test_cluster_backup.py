"""Backup and restore: a cluster in one directory, and from there into clusters of other sizes: the same content."""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

WEEK_MS = 604_800_000
QUESTIONS = (
    "SELECT * FROM root.plant.line1",
    "SELECT * FROM root.plant.line2.press",
    "SELECT count(*), max_value(*) FROM root.plant GROUP BY LEVEL = 1",
    "SELECT LAST * FROM root.plant.line1",
    "SHOW TIMESERIES root.plant",
    "SHOW TIMESERIES root.fleet WHERE unit = km",
    "SHOW STORAGE GROUP",
    "SHOW ALL TTL",
    "COUNT TIMESERIES root",
    "LIST USER",
    "LIST PRIVILEGES USER reader",
    "LIST ALL ROLE OF USER reader",
)


def fill(peer: Any) -> None:
    for sql in (
        "SET STORAGE GROUP TO root.plant",
        "SET STORAGE GROUP TO root.fleet",
        "SET STORAGE GROUP TO root.empty",
        "CREATE TIMESERIES root.fleet.v1.distance(mileage) WITH DATATYPE=DOUBLE, ENCODING=GORILLA, COMPRESSOR=LZ4"
        " TAGS(unit=km) ATTRIBUTES(source=odometer)",
        "CREATE TIMESERIES root.plant.line1.counter WITH DATATYPE=INT64, ENCODING=RLE",
        "CREATE TIMESERIES root.plant.line1.on WITH DATATYPE=BOOLEAN, ENCODING=PLAIN",
        "CREATE TIMESERIES root.plant.line1.gone WITH DATATYPE=INT32, ENCODING=PLAIN",
        "CREATE TIMESERIES root.plant.line2.press.note WITH DATATYPE=TEXT, ENCODING=PLAIN",
        "CREATE USER reader 'secret'",
        "CREATE ROLE watcher",
        "GRANT ROLE watcher PRIVILEGES 'READ_TIMESERIES' ON root.plant",
        "GRANT watcher TO reader",
        "GRANT USER reader PRIVILEGES 'INSERT_TIMESERIES' ON root.fleet",
    ):
        assert peer.answer(sql) == ["ok"], sql
    for step in range(60):
        time = step * WEEK_MS // 10
        for sql in (
            f"INSERT INTO root.plant.line1(timestamp, counter, on, gone) VALUES ({time}, {step}, {step % 2 == 0}, 1)",
            f"INSERT INTO root.plant.line2.press(timestamp, note, level) VALUES ({time}, 'text {step}', {step / 4})",
            f"INSERT INTO root.fleet.v1(timestamp, distance) VALUES ({time}, {step * 1.25})",
        ):
            assert peer.answer(sql) == ["ok"], sql
        if step == 30:
            assert peer.answer("FLUSH") == ["ok"]
    assert peer.answer("DELETE FROM root.plant.line1.counter WHERE time < 604800000") == ["ok"]
    assert peer.answer("DELETE TIMESERIES root.plant.line1.gone") == ["ok"]
    assert peer.answer("SET TTL TO root.fleet 3000000000000") == ["ok"]


def told(cluster: Any, replay: ModuleType) -> list[list[str]]:
    peer = replay.Peer("127.0.0.1", cluster.ports[-1], {})
    answers = [peer.answer(sql) for sql in QUESTIONS]
    peer.close()
    return answers


def tool(cluster: Any, *words: str, node: int = 1) -> dict[str, Any]:
    done = cluster.nodetool("--json", *words, node=node)
    assert done.returncode == 0, done.stderr
    return dict(json.loads(done.stdout))


def refusal(cluster: Any, *words: str) -> str:
    done = cluster.nodetool(*words)
    assert done.returncode in (2, 3), (done.returncode, done.stdout)
    return str(done.stderr)


def test_a_backup_is_restored_into_clusters_of_other_sizes(
    new_cluster: Callable[..., Any], replay: ModuleType, tmp_path: Path
) -> None:
    directory = tmp_path / "backup"
    with new_cluster(nodes=3, replication=2) as cluster:
        peer = replay.Peer("127.0.0.1", cluster.ports[0], {})
        fill(peer)
        peer.close()
        before, content = told(cluster, replay), tool(cluster, "content", node=2)
        assert set(content["storage_groups"]) == {"root.empty", "root.fleet", "root.plant"}
        made = tool(cluster, "backup", str(directory), node=3)
        assert made["groups"] == 3
        assert made["bytes"] > 0
        assert "is not empty" in refusal(cluster, "backup", str(directory))
        assert "whole path" in refusal(cluster, "backup", "backup")
        assert "restored into a new cluster" in refusal(cluster, "restore", str(directory))
    for nodes in (1, 2):
        with new_cluster(nodes=nodes, replication=1) as other:
            done = tool(other, "restore", str(directory))
            assert (done["storage_groups"], done["equal"], done["left_out"]) == (3, True, [])
            assert done["points"] > 200
            if nodes == 1:  # once more, as after an attempt that failed: users and roles are there already
                again = replay.Peer("127.0.0.1", other.ports[0], {})
                assert again.answer("DELETE STORAGE GROUP root.*") == ["ok"]
                again.close()
                assert tool(other, "restore", str(directory))["equal"]
            assert tool(other, "content") == content
            assert told(other, replay) == before


def test_what_is_no_whole_backup_is_refused(
    new_cluster: Callable[..., Any], replay: ModuleType, tmp_path: Path
) -> None:
    directory = tmp_path / "backup"
    with new_cluster(nodes=1) as cluster:
        peer = replay.Peer("127.0.0.1", cluster.ports[0], {})
        fill(peer)
        peer.close()
        tool(cluster, "backup", str(directory))
    with new_cluster(nodes=1) as other:
        assert "is no backup" in refusal(other, "restore", str(tmp_path / "nothing"))
        damaged = next(path for path in sorted(directory.rglob("*.chunk")))
        data = bytearray(damaged.read_bytes())
        data[len(data) // 2] ^= 4
        damaged.write_bytes(bytes(data))
        assert f"{damaged.name} does not match its checksum" in refusal(other, "restore", str(directory))
        whole = (directory / "backup.json").read_bytes()
        for text in (whole[: len(whole) // 2], b"[]", b'{"version": 1}', b'{"version": 7}'):
            (directory / "backup.json").write_bytes(text)
            assert re.search(
                "the backup (in .* cannot be read|has version 7)", refusal(other, "restore", str(directory))
            )
        (directory / "backup.json").unlink()
        assert "not ended" in refusal(other, "restore", str(directory))
    with new_cluster(nodes=1, partition_interval=86_400) as third:
        assert "has no backup.json" in refusal(third, "restore", str(directory))


def test_a_backup_under_load_holds_all_that_was_acknowledged_before_it_began(
    new_cluster: Callable[..., Any], replay: ModuleType, tmp_path: Path
) -> None:
    directory = tmp_path / "backup"
    acknowledged: list[int] = []
    stop = threading.Event()

    def write(port: int) -> None:
        peer = replay.Peer("127.0.0.1", port, {})
        while not stop.is_set():
            number = len(acknowledged)
            if peer.answer(f"INSERT INTO root.load{number % 5}.d(timestamp, s) VALUES ({number}, {number})") == ["ok"]:
                acknowledged.append(number)
        peer.close()

    with new_cluster(nodes=3, replication=3) as cluster:
        writer = threading.Thread(target=write, args=(cluster.ports[0],))
        writer.start()
        try:
            while len(acknowledged) < 200:
                assert writer.is_alive()
            sure = len(acknowledged)
            tool(cluster, "backup", str(directory), node=2)
        finally:
            stop.set()
            writer.join()
    with new_cluster(nodes=1) as other:
        tool(other, "restore", str(directory))
        peer = replay.Peer("127.0.0.1", other.ports[0], {})
        rows = [int(peer.answer(f"SELECT count(s) FROM root.load{group}.d")[1]) for group in range(5)]
        peer.close()
        assert sure <= sum(rows) <= len(acknowledged)
