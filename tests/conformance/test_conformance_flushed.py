"""The answers of a real 0.12.5 with everything flushed and merged between statements: from files, not from memory."""

import importlib.util
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

HERE = Path(__file__).parent
STATEMENTS = 200


@pytest.fixture
def run() -> ModuleType:
    """`tests/conformance/run.py`, whose long form does the same to all files."""
    spec = importlib.util.spec_from_file_location("conformance_run", HERE / "run.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_answers_stay_right_when_everything_is_in_files(cluster: Any, run: ModuleType) -> None:
    flushing = run.Flushing(cluster, every=1)
    path = HERE / "transcripts" / "fuzz_8.transcript"
    right, wrong = run.replay("127.0.0.1", cluster.ports[2], path, flushing.before, STATEMENTS)
    flushing.close()
    assert not wrong, "\n".join(wrong)
    assert right == flushing.flushes == STATEMENTS
    assert flushing.files_most > 0
    assert cluster.complaints() == []
