from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from iotdb_cluster.rpc import canonical_zone, zone_info
from iotdb_cluster.rpc.zones import is_offset


@pytest.mark.parametrize(
    ("text", "canonical", "hours"),
    [
        ("Z", "Z", 0), ("+0000", "Z", 0), ("-00:00", "Z", 0), ("+8", "+08:00", 8), ("+08", "+08:00", 8),
        ("+0800", "+08:00", 8), ("+08:00", "+08:00", 8), ("+080000", "+08:00", 8), ("+08:00:00", "+08:00", 8),
        ("-0330", "-03:30", -3.5), ("-03:30:30", "-03:30:30", -3.5 - 30 / 3600), ("+18:00", "+18:00", 18),
        ("UTC", "UTC", 0), ("GMT", "GMT", 0), ("UT", "UT", 0), ("UTC+8", "UTC+08:00", 8), ("GMT+8", "GMT+08:00", 8),
        ("GMT+08:00", "GMT+08:00", 8), ("UT-3", "UT-03:00", -3), ("UTC+0", "UTC", 0),
        ("Asia/Shanghai", "Asia/Shanghai", 8), ("GMT0", "GMT0", 0), ("Etc/GMT+8", "Etc/GMT+8", -8),
    ],
)  # fmt: skip
def test_forms_of_java(text: str, canonical: str, hours: float) -> None:
    assert canonical_zone(text) == canonical
    assert canonical_zone(canonical) == canonical
    moment = datetime(2020, 1, 1, tzinfo=UTC)
    assert zone_info(text).utcoffset(moment) == timedelta(hours=hours)


@pytest.mark.parametrize(
    "text",
    [
        "", "z", "+", "8", "+8:00", "+080", "+19", "+18:01", "+08:60", "+0８", "+08:00:00:00", "UTC8", "UTC+", "GMT+x",
        "asia", "Asia", "Asia/Nowhere", "../../etc/passwd", "/etc/passwd", "Asia/../UTC", "a\0b", "x" * 5000,
    ],
)  # fmt: skip
def test_no_zones(text: str) -> None:
    with pytest.raises(ValueError, match=r"zone|offset"):
        canonical_zone(text)
    with pytest.raises(ValueError, match=r"zone|offset"):
        zone_info(text)


def test_what_needs_no_file() -> None:
    assert [is_offset(text) for text in ("Z", "+08:00", "UTC", "GMT+8", "Asia/Shanghai", "")] == [True] * 4 + [
        False
    ] * 2
