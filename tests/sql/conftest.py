from __future__ import annotations

from pathlib import Path

import pytest

from iotdb_cluster.sql import ParseContext, warm_up

warm_up()


@pytest.fixture(scope="session")
def context() -> ParseContext:
    """2021-06-01T00:00:00Z in milliseconds, UTC."""
    return ParseContext(now_ms=1_622_505_600_000)


@pytest.fixture(scope="session")
def statements_ok() -> list[str]:
    text = Path(__file__).with_name("statements_ok.txt").read_text(encoding="utf-8")
    return [line for line in text.split("\n") if line]
