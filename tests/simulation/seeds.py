"""The seeds that CI runs, in as many parts as there are test modules, so that each can have a process of its own."""

from __future__ import annotations

PARTS = 4
FIRST, SEEDS = 500, 50


def part(number: int) -> range:
    """The seeds of part `number`, from 0 on."""
    return range(FIRST + number, FIRST + SEEDS, PARTS)
