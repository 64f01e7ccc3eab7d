"""Random histories of moves lose nothing and double nothing, and show what is wrong where a part is missing."""

from __future__ import annotations

import importlib.util
import sys
from collections import Counter
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from types import ModuleType
from typing import Any
from unittest import mock

import pytest

from iotdb_cluster.data import state as state_module
from iotdb_cluster.data.handoff import Handoff
from iotdb_cluster.requests import RequestWindow


def _load() -> ModuleType:
    path = Path(__file__).with_name("handoff_model.py")
    spec = importlib.util.spec_from_file_location("handoff_model", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


model = _load()


def test_nothing_is_lost_and_nothing_doubled() -> None:
    counts: Counter[str] = Counter()
    for seed in range(30):
        counts += model.run(seed)
    assert min(counts[what] for what in ("moved", "cancelled", "repeated", "deletes", "cuts")) > 10, counts
    assert min(counts[what] for what in ("fetched", "installed", "swept")) > 5, counts


def _nothing(*_: Any, **__: Any) -> None:
    return None


def _unfenced(self: state_module.GroupState, slot: int, epoch: int) -> None:
    known = self.slots.get(slot)
    if known is None or not known.owned or known.epoch != epoch:
        _check_slot(self, slot, epoch)


def _forgetful(self: Handoff, state: state_module.GroupState, index: int, number: int, meta_index: int) -> None:
    _drop_storage_group(self, state, index, number, meta_index)
    state.dropped.clear()


_drop_storage_group = Handoff.drop_storage_group
_check_slot = state_module.GroupState.check_slot

PARTS: dict[str, Callable[[], AbstractContextManager[Any]]] = {
    "fence": lambda: mock.patch.object(state_module.GroupState, "check_slot", _unfenced),
    "applied ids": lambda: mock.patch.object(RequestWindow, "merge", _nothing),
    "schema and units": lambda: mock.patch.object(Handoff, "_take_over", _nothing),
    "what was dropped meanwhile": lambda: mock.patch.object(Handoff, "drop_storage_group", _forgetful),
    "empty before it is dissolved": lambda: mock.patch.object(Handoff, "check_dissolve", _nothing),
}


@pytest.mark.parametrize("part", PARTS)
def test_each_part_is_needed(part: str) -> None:
    with PARTS[part]():
        for seed in range(100):
            try:
                model.run(seed)
            except Exception:
                return
    pytest.fail("no history fails without it")
