"""What a real 0.12.5 server answered, asked of every node of clusters of several sizes."""

from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

TRANSCRIPTS = Path(__file__).parent / "transcripts"
BATTERY = TRANSCRIPTS / "01_seed_battery.transcript"
SIZES = [
    pytest.param({"nodes": 3, "replication": 1}, id="3-nodes-1-replica"),
    pytest.param({"nodes": 3, "replication": 2}, id="3-nodes-2-replicas"),
    pytest.param({"nodes": 3, "replication": 3}, id="3-nodes-3-replicas"),
    pytest.param({"nodes": 1, "replication": 1}, id="1-node"),
]


@pytest.mark.parametrize("cluster", SIZES, indirect=True)
def test_the_battery_is_right_through_every_port(cluster: Any, replay: ModuleType) -> None:
    for port in cluster.ports:
        right, wrong = replay.replay("127.0.0.1", port, BATTERY)
        assert not wrong, "\n".join(wrong)
        assert right == 82
    assert cluster.complaints() == []
