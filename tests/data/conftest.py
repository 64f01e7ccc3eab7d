"""Shared by the tests of the data room."""

from __future__ import annotations

import numpy as np
import pytest

from iotdb_cluster.columns import Column, DataType, Rows, Tablet, TextColumn, shape_of
from iotdb_cluster.data import Header, encode_insert
from iotdb_cluster.requests import RequestId


@pytest.fixture(scope="session")
def insert_payloads() -> list[bytes]:
    """A few INSERT entries of every form, under a header that some group would take."""
    header = Header(RequestId(1, 1, 1, 1), 5, 40, 1, 0, 0)
    plain = shape_of(("a", "b"), (DataType.DOUBLE, DataType.BOOLEAN))
    table = np.zeros(4, plain.row_dtype)
    raw = table.view(np.uint8).reshape(4, -1)
    raw[:, 8], raw[:, 17] = int(DataType.DOUBLE), int(DataType.BOOLEAN)
    text = shape_of(("t", "ü"), (DataType.TEXT, DataType.INT32))
    columns = [
        Column(DataType.TEXT, TextColumn.of([b"abc", b"", "é".encode()]), np.array([True, False, True])),
        Column(DataType.INT32, np.arange(3, dtype=">i4")),
    ]
    rows = Rows("root.sg.d1", plain, table.tobytes())
    tablet = Tablet("root.sg.d2", text, np.arange(3, dtype=">i8"), columns)
    return [encode_insert(header, some) for some in ([rows], [tablet], [rows, tablet, rows])]
