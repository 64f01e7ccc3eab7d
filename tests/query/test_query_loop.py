"""No query holds the event loop for more than 10 ms: many series, many rows, many windows, long texts.

Measured in CPU time of the thread of the loop, so that a busy machine changes nothing; the best of three runs counts,
because a page fault is not the query's.
"""

import gc
import importlib.util
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from iotdb_cluster.limits import LOOP_BLOCKED_MS_MAX

DEVICES, MEASUREMENTS, ROWS = 1_000, 10, 60_000
TRIES = 3
HOST = "127.0.0.1"
QUERIES = [
    "SHOW TIMESERIES",
    "SHOW TIMESERIES root.big.* LIMIT 9000",
    "SHOW LATEST TIMESERIES root.big",
    "SHOW DEVICES",
    "COUNT TIMESERIES",
    "COUNT TIMESERIES root GROUP BY LEVEL=2",
    "COUNT NODES root LEVEL=3",
    "COUNT DEVICES",
    "SHOW CHILD PATHS root.big.*",
    "SELECT count(*) FROM root.big",
    "SELECT count(*) FROM root.big GROUP BY LEVEL=1",
    "SELECT count(*), max_value(*) FROM root.big ALIGN BY DEVICE",
    "SELECT LAST * FROM root.big",
    "SELECT s1 FROM root.big.* WHERE time < 100",
    "SELECT * FROM root.big ALIGN BY DEVICE",
    "SELECT * FROM root.long.d",
    "SELECT d0, d1 FROM root.long.d WHERE d0 > 0.5 ORDER BY TIME DESC",
    "SELECT t FROM root.long.d WHERE t LIKE '%99%'",
    "SELECT count(d0), avg(d1) FROM root.long.d GROUP BY ([0, 60000), 1ms)",
    "SELECT avg(d0) FROM root.long.d WHERE d1 > 0.5 GROUP BY ([0, 60000), 100ms)",
    "SELECT top_k(d0, 'k'='100'), sin(d1) FROM root.long.d",
    "SELECT * FROM root.long.d DISABLE ALIGN",
    f"SELECT {', '.join(f'd{n}.s{m}' for n in range(500) for m in range(10))} FROM root.big",
]


def module(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"query_{name}", Path(__file__).parent / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    made = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = made
    spec.loader.exec_module(made)
    return made


@pytest.fixture(scope="module")
def watched(tmp_path_factory: pytest.TempPathFactory, processes: ModuleType) -> Iterator[Any]:
    directory = tmp_path_factory.mktemp("watched")
    keys = {"max_deduplicated_path_num": 20_000}
    with processes.Processes(directory, 1, 1, **keys) as cluster:
        port = cluster.ports[0]
    with module("watched").WatchedNode(cluster.member(1).directory) as node:
        yield node, port


@pytest.fixture(scope="module")
def peer(watched: Any, replay: ModuleType) -> Iterator[Any]:
    _, port = watched
    made = replay.Peer(HOST, port, {})
    fill(made)
    yield made
    made.close()


def tablet(peer: Any, device: str, names: list[str], kind: int, values: bytes, times: Any) -> None:
    request = peer.types.TSInsertTabletReq(
        peer.session, device, names, values, times.astype(">i8").tobytes(), [kind] * len(names), len(times)
    )
    status = peer.client.insertTablet(request)
    assert status.code == 200, status


def fill(peer: Any) -> None:
    names = [f"s{at}" for at in range(MEASUREMENTS)]
    times = np.arange(3)
    values = np.arange(3 * MEASUREMENTS, dtype=np.float64).astype(">f8").tobytes()
    for number in range(DEVICES):
        tablet(peer, f"root.big.d{number}", names, 4, values, times)
    random = np.random.default_rng(1)
    for at in range(0, ROWS, 10_000):
        times = np.arange(at, at + 10_000)
        columns = random.random((4, 10_000)).astype(">f8").tobytes()
        tablet(peer, "root.long.d", ["d0", "d1", "d2", "d3"], 4, columns, times)
        texts = b"".join(len(text).to_bytes(4, "big") + text for text in (b"text %d" % time for time in times))
        tablet(peer, "root.long.d", ["t"], 5, texts, times)


def all_blocks(peer: Any, sql: str) -> int:
    """Read a query to its end without decoding it; how many blocks."""
    types = peer.types
    answer = peer.client.executeStatement(types.TSExecuteStatementReq(peer.session, sql, peer.statement, 10_000))
    assert answer.status.code == 200, answer.status
    blocks, aligned = 1, answer.nonAlignQueryDataSet is None
    while True:
        request = types.TSFetchResultsReq(peer.session, sql, 10_000, answer.queryId, aligned)
        more = peer.client.fetchResults(request)
        assert more.status.code == 200, more.status
        if not more.hasResultSet:
            break
        blocks += 1
    return blocks


@pytest.mark.parametrize("sql", QUERIES, ids=lambda sql: sql[:60])
def test_the_loop_is_free_during_a_query(
    watched: Any, peer: Any, sql: str, record_property: Callable[..., None]
) -> None:
    node, _ = watched
    best = (1e9, "")
    for _ in range(TRIES):
        gc.collect()
        gc.disable()  # a collection walks all that the tests hold; a node freezes what it holds when it serves
        try:
            node.forget()
            all_blocks(peer, sql)
        finally:
            gc.enable()
        best = min(best, node.longest)
        if best[0] <= LOOP_BLOCKED_MS_MAX:
            break
    record_property("loop_ms", best[0])
    assert best[0] <= LOOP_BLOCKED_MS_MAX, f"{best[0]:.1f} ms: {best[1]}"
