"""What random scripts found: each mistake once, as a statement."""

from __future__ import annotations

from typing import Any

import pytest

from iotdb_cluster.columns import DataType
from iotdb_cluster.errors import CallerError


@pytest.fixture
def database(naive: Any) -> Any:
    made = naive()
    for path, kind in (
        ("root.a.d1.i", DataType.INT32),
        ("root.a.d1.b", DataType.BOOLEAN),
        ("root.a.d2.i", DataType.INT32),
        ("root.a.d2.f", DataType.DOUBLE),
    ):
        made.create(path, kind)
        for time in range(3):
            made.put(path, time, bool(time) if kind is DataType.BOOLEAN else time)
    return made


def rows(database: Any, text: str) -> list[list[Any]]:
    _, found = database.query(text)
    return [list(row) for row in zip(*(column.tolist() for column in found.columns), strict=True)]


@pytest.mark.parametrize("condition", ["f >= 1", "not (f < 1)", "f >= 1 and time >= 0", "f != 0"])
def test_a_condition_on_what_a_device_lacks_holds_nowhere_on_it(database: Any, condition: str) -> None:
    counted = rows(database, f"SELECT count(i) FROM root.a WHERE {condition} ALIGN BY DEVICE")
    assert counted == [[b"root.a.d1", 0], [b"root.a.d2", 2]]
    raw = rows(database, f"SELECT i FROM root.a WHERE {condition} ALIGN BY DEVICE")
    assert raw == [[b"root.a.d2", 1], [b"root.a.d2", 2]]


def test_columns_of_one_name_show_the_first_with_its_type(database: Any) -> None:
    plan, found = database.query("SELECT i AS x, f AS x FROM root.a.d2")
    assert plan.header.types == (DataType.INT32, DataType.INT32)
    assert [column.type for column in found.columns] == [DataType.INT32]


def test_types_are_checked_of_the_columns_that_slimit_leaves(database: Any) -> None:
    assert rows(database, "SELECT sum(i), max_value(b) FROM root.a.d1 SLIMIT 1") == [[3.0]]
    assert len(rows(database, "SELECT abs(i), abs(b) FROM root.a.d1 SLIMIT 1")) == 3
    with pytest.raises(CallerError):
        rows(database, "SELECT sum(i), max_value(b) FROM root.a.d1 SLIMIT 1 SOFFSET 1")


def test_a_prefix_star_counts_no_devices(database: Any) -> None:
    assert rows(database, "COUNT DEVICES root.a.d*") == [[0]]
    assert rows(database, "COUNT DEVICES root.a.*") == [[2]]
