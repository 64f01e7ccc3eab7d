"""A node is killed while queries read from it: all rows, or a clear error; before the first row another one answers."""

from __future__ import annotations

from collections.abc import Iterator
from types import ModuleType
from typing import Any

import numpy as np
import pytest

ROWS = 60_000
BLOCK = 500
HOST = "127.0.0.1"
SQL = "SELECT s0, s1, s2 FROM root.fail.d"


@pytest.fixture
def peers(cluster: Any, replay: ModuleType) -> Iterator[list[Any]]:
    cluster.launch(*[number for number in (1, 2, 3) if cluster.pid(number) is None])
    cluster.wait()
    made = [replay.Peer(HOST, port, {}) for port in cluster.ports]
    yield made
    for one in made:
        one.transport.close()


def fill(peer: Any) -> None:
    for at in range(0, ROWS, 10_000):
        times = np.arange(at, at + 10_000)
        values = np.tile(times.astype(">f8"), 3).tobytes()
        request = peer.types.TSInsertTabletReq(
            peer.session, "root.fail.d", ["s0", "s1", "s2"], values, times.astype(">i8").tobytes(), [4] * 3, 10_000
        )
        status = peer.client.insertTablet(request)
        assert status.code == 200, status


def begin(peer: Any, sql: str = SQL) -> Any:
    types = peer.types
    answer = peer.client.executeStatement(types.TSExecuteStatementReq(peer.session, sql, peer.statement, BLOCK))
    assert answer.status.code == 200, answer.status
    return answer


def rest(peer: Any, answer: Any, seen: int) -> tuple[int, str]:
    """(rows read to the end, or until an error; its text)."""
    while True:
        more = peer.client.fetchResults(peer.types.TSFetchResultsReq(peer.session, SQL, BLOCK, answer.queryId, True))
        if more.status.code != 200:
            return seen, f"{more.status.code}: {more.status.message}"
        if not more.hasResultSet:
            return seen, ""
        seen += len(more.queryDataSet.time) // 8


@pytest.mark.parametrize("victim", [2, 3])
def test_rows_end_with_the_last_or_with_an_error(cluster: Any, peers: list[Any], victim: int) -> None:
    fill(peers[0])
    answer = begin(peers[0])
    cluster.kill(victim)
    seen, error = rest(peers[0], answer, len(answer.queryDataSet.time) // 8)
    assert (seen == ROWS and not error) or (seen < ROWS and "repeat" in error), (seen, error)
    # Begun behind the death, all of it comes: what no row was sent of is asked elsewhere.
    again = begin(peers[0])
    assert rest(peers[0], again, len(again.queryDataSet.time) // 8) == (ROWS, "")
    count = begin(peers[0], "SELECT count(s0), sum(s1), last_value(s2) FROM root.fail.d")
    values = [
        np.frombuffer(values, kind)[0]
        for values, kind in zip(count.queryDataSet.valueList, (">i8", ">f8", ">f8"), strict=True)
    ]
    assert values == [ROWS, ROWS * (ROWS - 1) / 2, ROWS - 1]
