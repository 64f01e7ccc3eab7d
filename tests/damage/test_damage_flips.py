"""The short form of `flips.py`: some flipped bits in every kind of file."""

from __future__ import annotations

from types import ModuleType

import pytest

SHORT = 40
KINDS = ("chunk", "compacted chunk", "manifest", "checkpoint", "schema", "log segment", "identity", "incarnation")


@pytest.mark.parametrize("kind", KINDS)
def test_a_flipped_bit_is_noticed_or_harmless(flips: ModuleType, kind: str) -> None:
    assert kind in flips.KINDS
    found = flips.run_kind(kind, SHORT, 7)
    assert found["wrong"] == []
    assert found["noticed"] > SHORT // 8, "many bits of a file mean something"
