"""A bit flips in a file of one node at rest: three real processes, no wrong answer, equal digests in the end."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

REPAIR_S_MAX = 90
QUESTION = "SELECT s FROM root.flip.d"


def unit_files(directory: Path) -> list[Path]:
    return sorted(path for path in directory.rglob("*.chunk") if path.parent.parent.name == "units")


def test_flipped_bits_in_a_file_of_one_node_are_mended_by_the_others(
    new_cluster: Callable[..., Any], replay: ModuleType
) -> None:
    with new_cluster(nodes=3, replication=3) as cluster:
        peer = replay.Peer("127.0.0.1", cluster.ports[0], {})
        for step in range(300):
            peer.answer(f"INSERT INTO root.flip.d(timestamp, s) VALUES ({step * 1_000}, {step * 1.5})")
        peer.answer("FLUSH")
        told = peer.answer(QUESTION)
        assert len(told) > 300
        peer.close()
        cluster.kill(2)
        for path in unit_files(cluster.member(2).directory):
            data = bytearray(path.read_bytes())
            data[len(data) // 3] ^= 16
            path.write_bytes(bytes(data))
        cluster.launch(2)
        cluster.wait()
        begun = time.monotonic()
        while True:
            for port in cluster.ports:
                peer = replay.Peer("127.0.0.1", port, {})
                assert peer.answer(QUESTION) == told
                peer.close()
            done = cluster.nodetool("digest", timeout_s=90)
            if done.returncode == 0 and "is whole again" in cluster.log(2):
                break
            assert time.monotonic() - begun < REPAIR_S_MAX, cluster.tails()
            time.sleep(1)
