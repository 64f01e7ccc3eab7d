"""Getting an entry into a group's log, and its outcome back: forwarded, repeated under the same id, or given up."""

from __future__ import annotations

import asyncio
import struct
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any

from iotdb_cluster.cluster.calls import Calls, Deadline, Leaders
from iotdb_cluster.cluster.failures import load_failure
from iotdb_cluster.cluster.request_ids import RequestIds
from iotdb_cluster.data import NotReady, Retiring
from iotdb_cluster.errors import CallerError, NotLeader, OutcomeUnknown, Status
from iotdb_cluster.packing import pack, unpack
from iotdb_cluster.requests import RequestId

__all__ = ["GROUP", "Proposals", "Wanted"]

GROUP = struct.Struct(">I")  # in front of a proposed entry
PAUSE_MS_FIRST = 5
PAUSE_MS_MAX = 100


@dataclass(frozen=True, slots=True)
class Wanted:
    """An entry that is to be decided: its bytes under a request id, and what opens its unit where that is closed."""

    payload: Callable[[RequestId], bytes]
    open_unit: Callable[[], Awaitable[None]] | None = None


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

    async def identified(self, group: Callable[[], int], wanted: Wanted, deadline: Deadline) -> Any:
        """Propose under a request id of its own and repeat the same until the outcome is known or the time is up.

        Where the unit is closed it is opened, and the same id goes again: an earlier attempt may still be on its way,
        and under two ids both would take effect. Raises what the group refused with; `OutcomeUnknown` where the time
        was up first.
        """
        request = self._requests.take()
        try:
            return await self._repeated(group, wanted.payload(request), wanted, deadline)
        finally:
            self._requests.finish(request)

    async def _repeated(self, group: Callable[[], int], entry: bytes, wanted: Wanted, deadline: Deadline) -> Any:
        while True:
            try:
                return await self.patiently(group, entry, deadline)
            except NotReady:
                if wanted.open_unit is None or deadline.passed:
                    raise
            await wanted.open_unit()

    async def together(
        self, group: Callable[[], int], wanted: Sequence[Wanted], deadline: Deadline
    ) -> list[Any | CallerError]:
        """As `identified` for each of several entries of one group, the first attempt in one call; their outcomes."""
        requests: list[RequestId] = []
        try:
            requests.extend(self._requests.take() for _ in wanted)
            entries = [one.payload(request) for one, request in zip(wanted, requests, strict=True)]
            outcomes, uncertain = await self._propose_together(group(), entries, deadline)
            return [
                await self._settled(outcome, uncertain, group, entry, one, deadline)
                for outcome, entry, one in zip(outcomes, entries, wanted, strict=True)
            ]
        except CallerError as error:
            return [error] * len(wanted)
        finally:
            for request in requests:
                self._requests.finish(request)

    async def _propose_together(
        self, group: int, entries: Sequence[bytes], deadline: Deadline
    ) -> tuple[list[Any | CallerError], bool]:
        """(each entry's outcome, whether an earlier attempt may have taken effect beside that)."""
        body = GROUP.pack(group) + pack(None, entries)
        uncertain = False

        async def attempt(node: int, within: Deadline) -> memoryview:
            nonlocal uncertain
            try:
                return await self._calls.call(node, "propose together", body, within)
            except (OutcomeUnknown, asyncio.CancelledError):  # cancelled: another node leads meanwhile
                uncertain = True
                raise

        answer, _ = unpack(await self._leaders.run(group, attempt, deadline, repeatable=True))
        return [load_failure(failure) if failure else value for value, failure in answer], uncertain

    async def _settled(
        self,
        outcome: Any | CallerError,
        uncertain: bool,
        group: Callable[[], int],
        entry: bytes,
        wanted: Wanted,
        deadline: Deadline,
    ) -> Any | CallerError:
        """An entry's outcome, for which the same entry goes again where the first attempt left it open."""
        if not isinstance(outcome, CallerError):
            return outcome
        uncertain = uncertain or isinstance(outcome, OutcomeUnknown)
        if isinstance(outcome, NotReady | Retiring | NotLeader | OutcomeUnknown):
            try:
                return await self._repeated(group, entry, wanted, deadline)
            except CallerError as error:
                outcome = error
        if uncertain and type(outcome) is CallerError:  # this attempt had no effect; an earlier one may have had
            return OutcomeUnknown(f"the request may have taken effect; repeated, it was refused: {outcome.message}")
        return outcome

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
                waiting_for = refusal.message
            except CallerError as error:
                if type(error) is CallerError and error.code == Status.TIME_OUT:
                    raise OutcomeUnknown(error.message) from None
                raise
            deadline.waits.add(waiting_for, pause_ms)
            await asyncio.sleep(pause_ms / 1000)
            pause_ms = min(pause_ms * 2, PAUSE_MS_MAX)
