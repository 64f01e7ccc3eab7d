"""What one statement waited for, so that a slow one can be explained."""

from __future__ import annotations

__all__ = ["SLOW_MS", "Waits"]

SLOW_MS = 1_000  # a statement that takes longer says in the log what it waited for
REASONS_MAX = 8
REASON_CHARS_MAX = 120
WAIT_MS_MIN = 20.0  # shorter ones explain nothing


class Waits:
    """Milliseconds by reason. Waits that went on at the same time each count whole."""

    __slots__ = ("_ms",)

    def __init__(self) -> None:
        self._ms: dict[str, float] = {}

    def add(self, why: str, ms: float) -> None:
        """Too short ones, and further reasons beyond the bound, are left out."""
        if ms < WAIT_MS_MIN:
            return
        why = why[:REASON_CHARS_MAX]
        if why in self._ms or len(self._ms) < REASONS_MAX:
            self._ms[why] = self._ms.get(why, 0.0) + ms

    def __str__(self) -> str:
        """The longest first."""
        parts = sorted(self._ms.items(), key=lambda item: (-item[1], item[0]))
        return "; ".join(f"{ms:.0f} ms: {why}" for why, ms in parts) or "nothing that is known"
