"""The nodetool port: one line of JSON there, one back; bounded, on loopback."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Awaitable, Callable
from typing import Any

from iotdb_cluster.errors import CallerError

__all__ = ["AdminConnection"]

logger = logging.getLogger(__name__)

REQUEST_BYTES_MAX = 64 * 1024


class AdminConnection(asyncio.Protocol):
    """One connection: a request, its answer, and the end. `fault(error)` is told of what is no caller's error."""

    def __init__(
        self, answer: Callable[[dict[str, Any]], Awaitable[dict[str, Any]]], fault: Callable[[BaseException], None]
    ) -> None:
        self._answer = answer
        self._fault = fault
        self._received = bytearray()
        self._transport: asyncio.Transport | None = None
        self._task: asyncio.Task[None] | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport  # type: ignore[assignment]

    def connection_lost(self, _error: Exception | None) -> None:
        if self._task is not None:
            self._task.cancel()

    def data_received(self, data: bytes) -> None:
        self._received += data
        if self._task is None and b"\n" in self._received:
            self._task = asyncio.get_running_loop().create_task(self._respond())
        elif len(self._received) > REQUEST_BYTES_MAX and self._transport is not None:
            self._transport.close()

    async def _respond(self) -> None:
        try:
            request = json.loads(self._received)
            answer = await self._answer(request if isinstance(request, dict) else {})
        except ValueError:
            answer = {"error": "a line of JSON is wanted"}
        except CallerError as error:
            answer = {"error": f"{int(error.code)}: {error.message}", "code": int(error.code)}
        except Exception as error:
            answer = {"error": f"the node fails: {error}"}
            self._fault(error)
        if self._transport is not None:
            self._transport.write(json.dumps(answer).encode() + b"\n")
            self._transport.close()
