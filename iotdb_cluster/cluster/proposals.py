"""Getting an entry into a group's log, and its outcome back: forwarded, repeated under the same id, or given up."""

from __future__ import annotations

import asyncio
import struct
from collections.abc import Awaitable, Callable
from typing import Any

from iotdb_cluster.cluster.calls import Calls, Deadline, Leaders
from iotdb_cluster.cluster.request_ids import RequestIds
from iotdb_cluster.data import NotReady, Retiring
from iotdb_cluster.errors import CallerError, OutcomeUnknown, Status
from iotdb_cluster.packing import unpack
from iotdb_cluster.requests import RequestId

__all__ = ["GROUP", "Proposals"]

GROUP = struct.Struct(">I")  # in front of a proposed entry
PAUSE_MS_FIRST = 5
PAUSE_MS_MAX = 100


class Proposals:
    """Proposes entries at the leader of a group, wherever that is."""

    def __init__(self, calls: Calls, leaders: Leaders, requests: RequestIds) -> None:
        self._calls = calls
        self._leaders = leaders
        self._requests = requests

    async def propose(self, group: int, payload: bytes, deadline: Deadline) -> Any:
        """The applied entry's value; the entry must be harmless when it is taken twice, or carry a request id."""
        body = GROUP.pack(group) + payload

        async def attempt(node: int, within: Deadline) -> memoryview:
            return await self._calls.call(node, "propose", body, within)

        answer = await self._leaders.run(group, attempt, deadline, repeatable=True)
        value, _ = unpack(answer)
        return value

    async def identified(
        self,
        group: Callable[[], int],
        payload: Callable[[RequestId], bytes],
        deadline: Deadline,
        open_unit: Callable[[], Awaitable[None]] | None = None,
    ) -> Any:
        """Propose under a request id of its own and repeat the same until the outcome is known or the time is up.

        Where the unit is closed `open_unit` is called, and the same id goes again: an earlier attempt may still be on
        its way, and under two ids both would take effect. Raises what the group refused with; `OutcomeUnknown` where
        the time was up first.
        """
        request = self._requests.take()
        try:
            entry = payload(request)
            while True:
                try:
                    return await self.patiently(group, entry, deadline)
                except NotReady:
                    if open_unit is None or deadline.passed:
                        raise
                await open_unit()
        finally:
            self._requests.finish(request)

    async def patiently(self, group: Callable[[], int], payload: bytes, deadline: Deadline) -> Any:
        """As `propose`, and wait while the group is not ready for the entry, or its series are being deleted."""
        pause_ms = float(PAUSE_MS_FIRST)
        while True:
            try:
                return await self.propose(group(), payload, deadline)
            except (NotReady, Retiring) as refusal:
                if isinstance(refusal, NotReady) and refusal.unit_closed:
                    raise
                if deadline.left_ms <= pause_ms:
                    raise CallerError(Status.TIME_OUT, f"the time was up while waiting: {refusal.message}") from None
            except CallerError as error:
                if type(error) is CallerError and error.code == Status.TIME_OUT:
                    raise OutcomeUnknown(error.message) from None
                raise
            await asyncio.sleep(pause_ms / 1000)
            pause_ms = min(pause_ms * 2, PAUSE_MS_MAX)
