"""Calls just below, at and above the limit of one log entry: they are cut, whole in effect, or refused by the row."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from iotdb_cluster.limits import ENTRY_BYTES_MAX, MIB

DOUBLE, TEXT = 4, 5
CELLS = ENTRY_BYTES_MAX // 16  # a time and a DOUBLE each


@pytest.fixture(scope="module")
def peer(cluster: Any, replay: ModuleType) -> Iterator[Any]:
    one = replay.Peer("127.0.0.1", cluster.ports[0], {})
    yield one
    one.close()


def insert(peer: Any, device: str, kinds: list[int], times: bytes, values: bytes, rows: int) -> Any:
    names = [f"s{place}" for place in range(len(kinds))]
    request = peer.types.TSInsertTabletReq(peer.session, device, names, values, times, kinds, rows)
    return peer.client.insertTablet(request)


@pytest.mark.parametrize("rows", [CELLS - 64, *range(CELLS - 12, CELLS + 3), CELLS + 64, 2 * CELLS + 1])
def test_a_tablet_near_the_limit_is_there_whole(peer: Any, rows: int) -> None:
    device = f"root.limit.d{rows}"
    times = np.arange(rows, dtype=">i8")
    values = times.astype(">f8") / 2
    status = insert(peer, device, [DOUBLE], times.tobytes(), values.tobytes(), rows)
    assert status.code == 200, status.message
    line = peer.answer(f"SELECT count(s0), sum(s0), first_value(s0), last_value(s0) FROM {device}")[1].split(" | ")
    assert int(line[0]) == rows
    assert [float(text) for text in line[1:]] == [rows * (rows - 1) / 4, 0.0, (rows - 1) / 2]


@pytest.mark.parametrize("over", [-200, -1, 0, 1, 200, MIB])
def test_texts_near_the_limit_are_there_whole(peer: Any, over: int) -> None:
    """Four rows of 1 MB each and one that brings them to the limit."""
    device = f"root.limit.t{over + 1000}"
    sizes = [MIB - 100] * 4 + [max(1, 400 + over)]
    texts = [bytes([97 + place]) * size for place, size in enumerate(sizes)]
    values = b"".join(struct.pack(">i", len(text)) + text for text in texts)
    times = np.arange(len(texts), dtype=">i8").tobytes()
    status = insert(peer, device, [TEXT], times, values, len(texts))
    assert status.code == 200, status.message
    told = peer.answer(f"SELECT s0 FROM {device}")[1:]
    assert [len(line.partition(" | ")[2]) - len("''") for line in told] == sizes  # shown in quotes


def test_a_row_that_no_entry_can_hold_is_refused_and_nothing_of_it_is_there(peer: Any) -> None:
    device, columns = "root.limit.wide", 5
    texts = [b"x" * MIB] * columns
    values = b"".join(struct.pack(">i", len(text)) + text for text in texts)
    status = insert(peer, device, [TEXT] * columns, np.zeros(1, ">i8").tobytes(), values, 1)
    assert status.code == 413
    assert f"a row of {device} takes" in status.message
    assert len(peer.answer(f"SELECT * FROM {device}")) <= 1
