"""The identities of this node's requests: (node, start number, sequence, low), one counter a node."""

from __future__ import annotations

from iotdb_cluster.errors import CallerError, Status
from iotdb_cluster.limits import REQUESTS_AHEAD_MAX
from iotdb_cluster.requests import RequestId

__all__ = ["RequestIds"]


class RequestIds:
    """Hands out sequence numbers and knows the lowest one that is not answered."""

    def __init__(self, node: int, start: int) -> None:
        self._node = node
        self._start = start
        self._next = 1
        self._low = 1
        self._finished: set[int] = set()

    def take(self) -> RequestId:
        """A new identity; 413 where an old request hangs so long that `REQUESTS_AHEAD_MAX` others passed it."""
        if self._next - self._low >= REQUESTS_AHEAD_MAX:
            raise CallerError(
                Status.WRITE_PROCESS_REJECT,
                f"{REQUESTS_AHEAD_MAX} requests of this node passed one that still waits for its answer: try again",
            )
        sequence = self._next
        self._next += 1
        return RequestId(self._node, self._start, sequence, self._low)

    def finish(self, request: RequestId) -> None:
        """The request was answered, or given up: nobody repeats it any more."""
        if request.sequence == self._low:
            self._low += 1
            while self._low in self._finished:
                self._finished.remove(self._low)
                self._low += 1
        elif request.sequence > self._low:
            self._finished.add(request.sequence)

    @property
    def open(self) -> int:
        """Requests that were taken and are not finished."""
        return self._next - self._low - len(self._finished)
