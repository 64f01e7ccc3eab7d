"""How fast units are copied between nodes: for repairs and moves together, and less where clients are served."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from iotdb_cluster.cluster.settings import Settings
from iotdb_cluster.limits import (
    COPY_BUSY_BYTES_PER_S,
    COPY_PIECE_BYTES_BUSY,
    COPY_PIECE_BYTES_MIN,
    COPY_PIECES_QUEUED,
    FOREGROUND_OPERATIONS_PER_S,
    SNAPSHOT_PIECE_BYTES,
)
from iotdb_cluster.world import World

__all__ = ["Bandwidth"]

PIECE_MS = 250.0
PIECE_TIMEOUT_MS = 30_000.0  # of a piece that waits for nothing
SAMPLE_MS = 100.0  # over which operations are counted


class Bandwidth:
    """What one node sends, or what it receives, of units. `operations()` counts the reads and writes that it serves.

    While more than `FOREGROUND_OPERATIONS_PER_S` of them are served a copy gets `COPY_BUSY_BYTES_PER_S` at
    most, in small pieces: what is served meanwhile waits for a piece at most.
    """

    def __init__(self, world: World, settings: Settings, operations: Callable[[], int]) -> None:
        self._world = world
        self._settings = settings
        self._operations = operations
        self._next_ms = 0.0
        self._sampled_ms = world.clock.monotonic_ms()
        self._counted = operations()
        self._busy = False

    @property
    def busy(self) -> bool:
        """Whether clients were served lately."""
        now = self._world.clock.monotonic_ms()
        passed_ms = now - self._sampled_ms
        if passed_ms >= SAMPLE_MS:
            count = self._operations()
            self._busy = 1000 * (count - self._counted) > FOREGROUND_OPERATIONS_PER_S * passed_ms
            self._sampled_ms, self._counted = now, count
        return self._busy

    @property
    def piece_bytes(self) -> int:
        """The size of the next piece that is worth asking for: no more than what passes within `PIECE_MS`."""
        most = COPY_PIECE_BYTES_BUSY if self.busy else SNAPSHOT_PIECE_BYTES
        return max(COPY_PIECE_BYTES_MIN, min(most, int(self.bytes_per_s * PIECE_MS / 1000)))

    @property
    def piece_timeout_ms(self) -> float:
        """How long a piece may be on its way: `COPY_PIECES_QUEUED` others, of other copies, may pass before it."""
        slowest = min(float(self._settings.migration_bytes_per_s), COPY_BUSY_BYTES_PER_S)  # its giver may be busy
        return PIECE_TIMEOUT_MS + 1000 * COPY_PIECES_QUEUED * self.piece_bytes / slowest

    @property
    def bytes_per_s(self) -> float:
        bound = float(self._settings.migration_bytes_per_s)
        return min(bound, COPY_BUSY_BYTES_PER_S) if self.busy else bound

    async def pace(self, size: int) -> None:
        """Wait until so many bytes more may be copied."""
        now = self._world.clock.monotonic_ms()
        begin = max(now, self._next_ms)
        self._next_ms = begin + 1000 * size / self.bytes_per_s
        if begin > now:
            await asyncio.sleep((begin - now) / 1000)
