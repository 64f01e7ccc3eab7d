"""10,000 random histories (a few hundred here): what plans do to a real meta state, see `histories.py`."""

from __future__ import annotations

import pytest

from iotdb_cluster.meta import changes, moves
from iotdb_cluster.partition import table
from tests.partition.histories import History

SLOTS = 47  # few, so that a history is quick: nothing in plans depends on their number
PER_TEST = 25


@pytest.fixture(autouse=True)
def few_slots(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (table, moves, changes):
        monkeypatch.setattr(module, "SLOTS", SLOTS)


def test_random_histories(request: pytest.FixtureRequest) -> None:
    count, first = request.config.getoption("histories"), request.config.getoption("histories_from")
    changes_seen = 0
    for seed in range(first, first + count):
        history = History(seed, SLOTS)
        try:
            history.run()
        except AssertionError as error:
            raise AssertionError(f"history {seed}: {error}") from error
        changes_seen += history.changes
    assert changes_seen > count
