"""The protocol of inserts, units and deletes holds in random schedules, and fails without any one of its parts."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest


@pytest.fixture(scope="module")
def model() -> ModuleType:
    name = "iotdb_cluster_tests_protocol_model"
    spec = importlib.util.spec_from_file_location(name, Path(__file__).with_name("protocol_model.py"))
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


def test_no_schedule_breaks_the_protocol(model: ModuleType) -> None:
    assert model.run_schedules(1, 300) == []


@pytest.mark.parametrize(
    ("part", "seed"),
    [
        ("floor", 60),
        ("request-ids", 70),
        ("intent-numbers", 490),
        ("retiring", 25),
        ("units-first", 1),
        ("listing", 1),
    ],
)
def test_each_part_is_needed(model: ModuleType, part: str, seed: int) -> None:
    """`seed` is near one that shows it, so that the test is short; any would do in the end."""
    assert model.run_schedules(seed, 1_000, part, stop_at=1)
