"""How fast units are copied between nodes: for repairs and moves together, and less where clients are served."""

from __future__ import annotations

import asyncio
from collections import deque
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
SAMPLE_MS = 100.0  # between two looks at the count of operations, ...
SAMPLED_MS = 1_000.0  # ... of which those of so long are counted: one alone, as of the move itself, is no load


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
        self._samples: deque[tuple[float, int]] = deque([(world.clock.monotonic_ms(), operations())])
        self._busy = False

    def look(self) -> None:
        """Count what is served; now and then, also while nothing is copied."""
        now = self._world.clock.monotonic_ms()
        if now - self._samples[-1][0] < SAMPLE_MS:
            return
        count = self._operations()
        while len(self._samples) > 1 and now - self._samples[1][0] >= SAMPLED_MS:
            self._samples.popleft()
        since, before = self._samples[0]
        self._busy = count - before > FOREGROUND_OPERATIONS_PER_S * max(1.0, (now - since) / 1000)
        self._samples.append((now, count))

    @property
    def busy(self) -> bool:
        """Whether clients were served within the last second."""
        self.look()
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
