"""Headers, refusals, calendar months, the TTL, and what a plan asks of its surroundings."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime
from typing import Any
from zoneinfo import ZoneInfo

import numpy as np
import pytest

from iotdb_cluster.columns import DataType
from iotdb_cluster.errors import CallerError, CorruptData
from iotdb_cluster.query import codec, drive, is_planned, prepare
from iotdb_cluster.query import requests as ask
from iotdb_cluster.query.plan import QueryContext
from iotdb_cluster.query.windows import FixedWindows, MonthWindows, add_months


@pytest.fixture
def filled(naive: Any) -> Any:
    """root.sg.d1.{i,f,t,b}, root.sg.d2.i and root.other.d1.i with points at 0, 10 .. 990."""
    database = naive(batch_rows=10, interval=300)
    for path, kind in [
        ("root.sg.d1.i", DataType.INT32),
        ("root.sg.d1.f", DataType.FLOAT),
        ("root.sg.d1.t", DataType.TEXT),
        ("root.sg.d1.b", DataType.BOOLEAN),
        ("root.sg.d2.i", DataType.INT64),
        ("root.other.d1.i", DataType.INT32),
    ]:
        database.create(path, kind)
        for time in range(0, 1000, 10):
            made = {DataType.TEXT: b"x", DataType.BOOLEAN: True}
            database.put(path, time, made.get(kind, time // 10))
    return database


ANSWERS = {
    "SELECT i, count(i) FROM root.sg.d1": (401, ""),
    "SELECT count(i) FROM root.sg.d1 ALIGN BY DEVICE": None,
    "SELECT count(i) FROM root.sg.d1 GROUP BY LEVEL = 1 ALIGN BY DEVICE": (411, "group by level does not support"),
    "SELECT count(i) FROM root.sg.d1 GROUP BY ([0, 9), 3ms) DISABLE ALIGN": (411, "GROUPBYTIME doesn't support"),
    "SELECT i FROM root.sg.d1 WHERE time = 3 FILL (INT32[previous]) DISABLE ALIGN": (411, "FILL doesn't support"),
    "SELECT LAST i FROM root.sg.d1 DISABLE ALIGN": (411, "Disable align cannot be applied to LAST query."),
    "SELECT LAST i FROM root.sg.d1 ALIGN BY DEVICE": (411, "Last query does not support align by device."),
    "SELECT LAST i FROM root.sg.d1 WHERE i > 3": (411, "Only '>' and '>=' are supported in LAST query"),
    "SELECT i FROM root.sg.d1, root.sg.d2 ALIGN BY DEVICE": (411, "The data types of the same measurement column"),
    "SELECT d1.i FROM root.sg ALIGN BY DEVICE": (411, "The paths of the SELECT clause can only be single level."),
    "SELECT sin(i) FROM root.sg.d1 ALIGN BY DEVICE": (411, "ALIGN BY DEVICE clause is not supported in UDF queries."),
    "SELECT i AS x FROM root.sg.*": (411, "alias 'x' can only be matched with one time series"),
    "SELECT i FROM root.sg.d1 WHERE no > 1": (411, "Unknown time series root.sg.d1.no in `where clause`"),
    "SELECT i FROM root.sg.d1 WHERE no > 1 ALIGN BY DEVICE": (411, "Unknown time series root.sg.d1.no in"),
    "SELECT i FROM root.sg.d1 WHERE root.no.d.s > 1 ALIGN BY DEVICE": (411, "Unknown time series root.no.d.s in"),
    "SELECT i FROM root.sg.d1 SLIMIT 1 SOFFSET 1": (411, "The value of SOFFSET (1) is equal to or exceeds"),
    "SELECT sum(t) FROM root.sg.d1": (411, "Unsupported data type in aggregation SUM : TEXT"),
    "SELECT avg(b) FROM root.sg.d1": (411, "Unsupported data type in aggregation AVG : BOOLEAN"),
    "SELECT first_value(i) FROM root.sg.* GROUP BY LEVEL = 1": (411, "Aggregate among unmatched data types"),
    "SELECT top_k(i) FROM root.sg.d1": (411, 'attribute "k" is required but was not provided.'),
    "SELECT top_k(i, 'k'='0') FROM root.sg.d1": (411, "k has to be greater than 0 and less than or equal to 1000."),
    "SELECT sin(t) FROM root.sg.d1": (411, "the data type of the input series (index: 0) is not valid."),
    "SELECT sin(i, f) FROM root.sg.d1": (411, "the number of the input series is not valid. expected: 1. actual: 2."),
    "SELECT nope(i) FROM root.sg.d1": (411, "UDF NOPE has not been registered"),
    "SELECT i FROM root.sg.d1 FILL (INT32[previous])": (303, "Slice query must select a single time point"),
    "SELECT t FROM root.sg.d1 WHERE time = 3 FILL (TEXT[linear])": (303, "type TEXT cannot use linear fill function"),
    "SELECT i FROM root.sg.d1 WHERE time = 3 FILL (ALL[previous])": (303, ""),
    "SELECT count(i) FROM root.sg.d1 GROUP BY ([0, 9), 3ms) FILL (ALL[previous])": (303, "Group By Fill only"),
    "SHOW TIMESERIES WHERE nothing = v": (303, "The key nothing is not a tag."),
    "COUNT TIMESERIES root.no.such": (304, "Path [root.no.such] does not exist"),
}  # fmt: skip


@pytest.mark.parametrize("text", sorted(ANSWERS))
def test_refusals(filled: Any, text: str) -> None:
    want = ANSWERS[text]
    if want is None:
        filled.query(text)
        return
    with pytest.raises(CallerError) as caught:
        filled.query(text)
    assert caught.value.code == want[0]
    assert want[1] in caught.value.message
    assert not filled.streams


def test_too_many_series(naive: Any) -> None:
    database = naive()
    for number in range(1002):
        database.create(f"root.sg.d.s{number}", DataType.INT32)
    with pytest.raises(CallerError, match="Too many paths in one query!"):
        database.query("SELECT * FROM root")
    plan, _ = database.query("SELECT * FROM root SLIMIT 3 SOFFSET 1000")
    assert plan.header.columns == ("root.sg.d.s998", "root.sg.d.s999")


def test_headers(filled: Any) -> None:
    raw = filled.prepare("SELECT i, f, i FROM root.sg.d1").header
    assert (raw.columns, raw.physical) == (("root.sg.d1.i", "root.sg.d1.f", "root.sg.d1.i"), (0, 1, 0))
    assert raw.name_index == {"root.sg.d1.i": 0, "root.sg.d1.f": 1}
    assert (raw.operation, raw.ignore_time, raw.non_align) == ("QUERY", False, False)
    # Two names of one series are two physical columns: clients size theirs by the map.
    two = filled.prepare("SELECT i AS a, i AS b FROM root.sg.d1").header
    assert two.name_index == {"a": 0, "b": 1}
    assert filled.prepare("SELECT i FROM root.sg.d1 DISABLE ALIGN").header.non_align
    level = filled.prepare("SELECT count(*) FROM root GROUP BY LEVEL = 1").header
    assert (level.columns, level.name_index, level.ignore_time) == (
        ("count(root.other.*.*)", "count(root.sg.*.*)"), None, True,
    )  # fmt: skip
    device = filled.prepare("SELECT i, 'c', no FROM root.sg.d1 ALIGN BY DEVICE").header
    assert device.columns == ("Device", "i", "'c'", "no")
    assert [kind.name for kind in device.types] == ["TEXT", "INT32", "TEXT", "TEXT"]
    assert filled.prepare("SELECT nothing FROM root.sg.d1").header.columns == ()
    functions = filled.query("SHOW FUNCTIONS")[1]
    assert functions.columns[0].tolist()[:2] == [b"ABS", b"ACOS"]
    assert len(functions) == 36


def test_a_constant_column_repeats_its_text(filled: Any) -> None:
    _, rows = filled.query("SELECT i, 'c' FROM root.sg.d1 LIMIT 2 ALIGN BY DEVICE")
    assert rows.columns[2].tolist() == [b"'c'", b"'c'"]


def test_limits_reach_what_is_asked(filled: Any) -> None:
    filled.query("SELECT count(i) FROM root.sg.d1 GROUP BY ([0, 100000000000), 1ms) LIMIT 3 OFFSET 5")
    (asked,) = [request for request in filled.requests if isinstance(request, ask.Aggregate)]
    assert asked.starts.tolist() == [5, 6, 7]
    plan, rows = filled.query("SELECT i FROM root.sg.d1 WHERE time > 5 LIMIT 4")
    assert len(rows) == 4
    # Behind a condition on values four rows may be far apart.
    assert len(filled.query("SELECT i FROM root.sg.d1 WHERE i > 5 LIMIT 4")[1]) == 4
    few, many = [request.batch_rows for request in filled.requests if isinstance(request, ask.OpenScan)]
    assert (few, many) == (4, 10_000)
    assert isinstance(filled.requests[-1], ask.CloseScan)
    assert plan.ended


def test_conditions_on_time_bound_the_scan(filled: Any) -> None:
    filled.query("SELECT i FROM root.sg.d1 WHERE time >= 100 and (time < 200 or time > 900) and f > 3")
    scans = [request for request in filled.requests if isinstance(request, ask.OpenScan)]
    assert [(scan.low, scan.high) for scan in scans] == [(100, 199), (901, (1 << 63) - 1)]
    assert [one.measurement for one in scans[0].series] == ["i", "f"]


def test_impossible_conditions_read_nothing(filled: Any) -> None:
    filled.query("SELECT i FROM root.sg.d1 WHERE time > 5 and time < 3")
    filled.query("SELECT count(i) FROM root.sg.d1 WHERE time > 5 and time < 3")
    assert {type(request) for request in filled.requests} == {ask.MatchSeries}


def test_a_failed_request_leaves_nothing_open(filled: Any) -> None:
    for text in ("SELECT i FROM root.sg.* WHERE i > 3", "SELECT count(i) FROM root.sg.* WHERE i > 3"):
        plan = filled.prepare(text)
        pulls = 0

        def answer(request: Any) -> Any:
            nonlocal pulls
            pulls += isinstance(request, ask.Pull)
            if pulls == 3 and isinstance(request, ask.Pull):
                raise CallerError(411, "gone")  # type: ignore[arg-type]
            return filled.answer(request)

        with pytest.raises(CallerError, match="gone"):
            drive(plan.fetch(1000), answer)
        drive(plan.close(), filled.answer)
        assert not filled.streams


def test_a_query_given_up_half_way_is_closed(filled: Any) -> None:
    for text in ("SELECT i FROM root.sg.*", "SELECT count(i) FROM root.sg.* WHERE i > 3"):
        plan = filled.prepare(text)
        steps = plan.fetch(1000)
        request = next(steps)
        while not isinstance(request, ask.Pull):
            request = steps.send(filled.answer(request))
        steps.close()
        assert filled.streams
        drive(plan.close(), filled.answer)
        assert not filled.streams
        assert len(filled.fetch(plan, 5)) == 0


def test_what_the_ttl_hides(filled: Any) -> None:
    for path, info in filled.series.items():
        filled.series[path] = replace(info, visible_from=500)
    assert filled.query("SELECT i FROM root.sg.d1")[1].times.tolist() == list(range(500, 1000, 10))
    assert filled.query("SELECT count(i) FROM root.sg.d1")[1].columns[0].tolist() == [50]
    grouped = filled.query("SELECT count(i), sum(b) FROM root.sg.d1 GROUP BY ([460, 540), 25ms)")[1]
    assert grouped.columns[0].tolist() == [0, 1, 3, 0]
    assert grouped.columns[1].tolist() == [0.0, 1.0, 3.0, 0.0]
    fill = "SELECT i FROM root.sg.d1 WHERE time = 495 FILL (INT32[previous])"
    assert filled.query(fill)[1].columns[0].tolist() == [None]
    for path, info in filled.series.items():
        filled.series[path] = replace(info, visible_from=5000)
    assert len(filled.query("SELECT LAST i FROM root.sg.d1")[1]) == 0
    assert filled.query("SELECT count(i) FROM root.sg.d1 GROUP BY ([0, 20), 10ms)")[1].columns[0].tolist() == [0, 0]


def test_latest_series_come_first(filled: Any) -> None:
    filled.put("root.sg.d2.i", 5000, 1)
    rows = filled.query("SHOW LATEST TIMESERIES LIMIT 1")[1]
    assert rows.columns[0].tolist() == [b"root.sg.d2.i"]


def at(*parts: int, zone: Any = UTC) -> int:
    return int(datetime(*parts, tzinfo=zone).timestamp() * 1000)


def test_months_keep_the_day_where_they_can() -> None:
    begin = at(2023, 1, 31)
    assert [add_months(begin, k, UTC) for k in range(4)] == [
        begin, at(2023, 2, 28), at(2023, 3, 31), at(2023, 4, 30),
    ]  # fmt: skip
    assert add_months(at(2024, 3, 31), -1, UTC) == at(2024, 2, 29)
    with pytest.raises(CallerError):
        add_months(at(9999, 12, 1), 1, UTC)


def test_month_windows_follow_the_zone() -> None:
    berlin = ZoneInfo("Europe/Berlin")
    start, end = at(2023, 1, 1, zone=berlin), at(2023, 12, 31, zone=berlin)
    windows = MonthWindows(start, end, (1, 0), (1, 0), False, berlin)
    assert len(windows) == 12
    starts, ends, times = windows.slice(2, 12)
    assert starts.tolist() == [at(2023, month, 1, zone=berlin) for month in range(3, 13)]
    assert ends.tolist() == [*(low - 1 for low in starts.tolist()[1:]), end - 1]
    assert times.tolist() == starts.tolist()
    ten_days = MonthWindows(start, end, (0, 864_000_000), (1, 0), False, UTC).slice(0, 2)
    assert (ten_days[1] - ten_days[0]).tolist() == [863_999_999] * 2


def test_windows_at_the_ends_of_time() -> None:
    low, high = -(1 << 63), (1 << 63) - 1
    windows = FixedWindows(low, high, 1 << 62, 1 << 62, False)
    starts, ends, _ = windows.slice(0, 10)
    assert starts.tolist() == [low, low + (1 << 62), 0, 1 << 62]
    assert ends.tolist() == [-(1 << 62) - 1, -1, (1 << 62) - 1, high - 1]


def test_damaged_bytes_are_refused(filled: Any) -> None:
    (series,) = filled.answer(ask.MatchSeries(("root.sg.d1",)))
    requests = [
        ask.Aggregate((series[0],), (ask.Needs.SUM,), np.array([0]), np.array([5])),
        ask.Nearest(tuple(series), 5, 0, 9),
        ask.IsTag("x"),
    ]
    for request in requests:
        sent = codec.encode_request(request)
        for damaged in (
            sent[:-1],
            b"",
            sent.replace(type(request).__name__.encode(), b"N" * len(type(request).__name__)),
        ):
            with pytest.raises(CorruptData):
                codec.decode_request(damaged)
    with pytest.raises(CorruptData):
        codec.decode_answer(ask.MatchSeries(("root",)), codec.encode_answer(ask.IsTag("x"), True))


def test_statements_that_are_planned_elsewhere(filled: Any) -> None:
    assert is_planned(filled.parse("SHOW VERSION"))
    listing = filled.parse("LIST USER")
    assert not is_planned(listing)
    with pytest.raises(CallerError):
        drive(prepare(listing, QueryContext()), filled.answer)
