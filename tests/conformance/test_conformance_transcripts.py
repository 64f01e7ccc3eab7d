"""Transcripts of a real 0.12.5 server, each through one node of a cluster of three."""

from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

FILES = sorted((Path(__file__).parent / "transcripts").glob("*.transcript"))


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_every_answer_is_the_one_wanted(cluster: Any, replay: ModuleType, path: Path) -> None:
    port = cluster.ports[FILES.index(path) % len(cluster.ports)]
    right, wrong = replay.replay("127.0.0.1", port, path)
    assert not wrong, "\n".join(wrong)
    assert right == len(list(replay.cases(path)))
    assert cluster.complaints() == []
