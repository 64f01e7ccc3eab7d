"""Waiting for the durable log."""

from __future__ import annotations

import asyncio

from iotdb_cluster.cluster.log.durable_log import DurableLog
from iotdb_cluster.cluster.log.record import Record

__all__ = ["submitted"]


async def submitted(log: DurableLog, *records: Record) -> None:
    """Wait until these records, and all submitted before, are durable.

    Who is cancelled meanwhile waits no longer; the records are written all the same.
    """
    done: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def written() -> None:
        if not done.done():
            done.set_result(None)

    log.submit(list(records), written)
    await done
