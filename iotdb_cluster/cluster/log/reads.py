"""Entries that are not in memory any more, read back from the segments: at once, or ahead on a worker."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping, Sequence

from crc32c import crc32c

from iotdb_cluster.cluster.log.record import decode_entries
from iotdb_cluster.cluster.log.replica_log import Fetched, Run
from iotdb_cluster.cluster.log.segment import Segment
from iotdb_cluster.errors import CorruptData
from iotdb_cluster.raft import Entries
from iotdb_cluster.world import Workers

__all__ = ["LogReads"]

logger = logging.getLogger(__name__)


class LogReads:
    """Reads of one log. `active`: workers read; otherwise the log's writer does not run, and all is read at once."""

    def __init__(self, segments: Mapping[int, Segment], workers: Workers | None) -> None:
        self._segments = segments
        self._workers = workers
        self._fetches: set[asyncio.Task[None]] = set()
        self.active = False

    def start(self) -> None:
        self.active = self._workers is not None

    def read(self, run: Run) -> Entries:
        """A run's entries. Raises CorruptData."""
        segment = self._segments.get(run.position >> 32)
        if segment is None:
            raise CorruptData(f"log segment {run.position >> 32} is not there")
        offset = run.position & 0xFFFFFFFF
        data = segment.file.read(offset, run.length)
        if crc32c(data) != run.crc:
            raise CorruptData(
                f"{segment.path} offset {offset}: {run.length} bytes of entries do not match their checksum"
            )
        return decode_entries(data)

    def read_ahead(self, runs: Sequence[Run], done: Fetched) -> None:
        """Read runs on a worker; `done` gets, on the loop, those before the first that could not be read."""
        if self._workers is None:
            done([])
            return
        task = asyncio.ensure_future(self._fetch(self._workers, runs, done))
        self._fetches.add(task)
        task.add_done_callback(self._fetches.discard)

    async def _fetch(self, workers: Workers, runs: Sequence[Run], done: Fetched) -> None:
        found: list[tuple[Run, Entries]] = []
        try:
            await workers.run(lambda: found.extend((run, self.read(run)) for run in runs))
        except (OSError, CorruptData) as error:
            # The segment may have been used again meanwhile; whoever still needs the entries reads them, and is told.
            logger.debug("reading ahead ended early: %s", error)
        done(found)

    async def close(self) -> None:
        """Wait for what is being read."""
        self.active = False
        if self._fetches:
            await asyncio.wait(self._fetches)
