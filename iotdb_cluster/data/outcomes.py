"""What becomes of an entry, and the refusals that a coordinator tells apart.

* `Moved` and `StaleSchema` (room `errors`) are final for the request id: epochs and floors only grow. The rest of the
  call is cut anew, under new ids.
* `NotReady` is not final: the same entry may be taken later (the group has not heard of the slot's epoch yet, the unit
  is not open). Nothing may be sent under a *new* id while the old one is not given up; repeat under the *same* one.
* `Retiring` is not final either: the series are being deleted. The leader waits, at most the write time-out.
* `StaleRequest` answers a request of an older start of its node, or below the lowest one that it still waits for: it
  has no effect now, whatever it had before.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from iotdb_cluster.errors import CallerError, Status

__all__ = ["DONE", "NotReady", "Result", "Retiring", "StaleRequest"]


@dataclass(frozen=True, slots=True)
class Result:
    """The outcome of an entry: a value that JSON can say, or why it was refused whole."""

    value: Any = None
    error: CallerError | None = None


DONE = Result("done")  # applied, or applied before under the same request id


class NotReady(CallerError):
    """Not yet: repeat under the same request id. `unit_closed` where opening the unit helps."""

    def __init__(self, message: str, unit_closed: bool = False) -> None:
        super().__init__(Status.PARTITION_NOT_READY, message)
        self.unit_closed = unit_closed


class Retiring(CallerError):
    """Series of the request are being deleted by intent `number`: wait until it is retired, then repeat.

    `partitions` are those that the delete concerns; the driver knows which of them are missing.
    """

    def __init__(self, message: str, number: int, partitions: tuple[int, ...]) -> None:
        super().__init__(Status.WRITE_PROCESS_ERROR, message)
        self.number = number
        self.partitions = partitions


class StaleRequest(CallerError):
    """The request is of an older start of its node, or below the lowest one that it still waits for: without effect."""

    def __init__(self, message: str) -> None:
        super().__init__(Status.TIME_OUT, message)
