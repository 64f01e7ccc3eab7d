"""What a real server answered: every SELECT, SHOW and COUNT of these sessions."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

FACTS = Path(__file__).parent / "facts"
QUERIES = {
    "01_seed_battery": 32,
    "02_schema": 52,
    "04_raw_queries": 106,
    "05_aggregations": 128,
    "fuzz_1": 150,
    "fuzz_7": 150,
}


@pytest.mark.parametrize("name", sorted(QUERIES))
@pytest.mark.parametrize(
    "settings",
    [
        {"batch_rows": 1, "interval": 50},
        {"batch_rows": 3, "interval": 1000, "wire": True},
        {"batch_rows": 10_000, "interval": 1 << 40},
    ],
    ids=["tiny", "wire", "whole"],
)
def test_answers_are_as_written(name: str, settings: dict[str, Any], transcripts: Any) -> None:
    checked, bad = transcripts(FACTS / f"{name}.transcript", **settings)
    assert not bad, "\n".join(bad)
    assert checked == QUERIES[name]
