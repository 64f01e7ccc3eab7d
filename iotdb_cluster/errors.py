"""The three families of failure and the status codes of the client protocol.

* `InvariantViolation`: our bug. The node stops with the numbers in the message.
* `SystemFault`: the disk or the system. The group or the node stops serving, loudly.
* `CallerError`: the caller. Answered with the status code that the exception carries.

Every room may import this module; it imports nothing of ours.
"""

from __future__ import annotations

from collections.abc import Sequence
from enum import IntEnum

__all__ = [
    "CallerError",
    "CorruptData",
    "InvariantViolation",
    "Moved",
    "NotLeader",
    "OutcomeUnknown",
    "StaleSchema",
    "Status",
    "SystemFault",
    "check",
]


class Status(IntEnum):
    """Status codes of the client protocol (0.12.5); the names are those that its users know."""

    SUCCESS = 200
    STILL_EXECUTING = 201
    INVALID_HANDLE = 202
    INCOMPATIBLE_VERSION = 203
    NODE_DELETE_FAILED = 298
    ALIAS_ALREADY_EXIST = 299
    PATH_ALREADY_EXIST = 300
    PATH_NOT_EXIST = 301
    UNSUPPORTED_FETCH_METADATA_OPERATION = 302
    METADATA_ERROR = 303
    TIMESERIES_NOT_EXIST = 304
    OUT_OF_TTL = 305
    CONFIG_ADJUSTER = 306
    MERGE_ERROR = 307
    SYSTEM_CHECK_ERROR = 308
    SYNC_DEVICE_OWNER_CONFLICT = 309
    SYNC_CONNECTION_EXCEPTION = 310
    STORAGE_GROUP_PROCESSOR_ERROR = 311
    STORAGE_GROUP_ERROR = 312
    STORAGE_ENGINE_ERROR = 313
    TSFILE_PROCESSOR_ERROR = 314
    PATH_ILLEGAL = 315
    LOAD_FILE_ERROR = 316
    STORAGE_GROUP_NOT_READY = 317
    ILLEGAL_PARAMETER = 318
    DUPLICATED_TEMPLATE = 320
    UNDEFINED_TEMPLATE = 321
    STORAGE_GROUP_NOT_EXIST = 322
    EXECUTE_STATEMENT_ERROR = 400
    SQL_PARSE_ERROR = 401
    GENERATE_TIME_ZONE_ERROR = 402
    SET_TIME_ZONE_ERROR = 403
    NOT_STORAGE_GROUP = 404
    QUERY_NOT_ALLOWED = 405
    AST_FORMAT_ERROR = 406
    LOGICAL_OPERATOR_ERROR = 407
    LOGICAL_OPTIMIZE_ERROR = 408
    UNSUPPORTED_FILL_TYPE = 409
    PATH_ERROR = 410
    QUERY_PROCESS_ERROR = 411
    WRITE_PROCESS_ERROR = 412
    WRITE_PROCESS_REJECT = 413
    QUERY_ID_NOT_EXIST = 414
    UNSUPPORTED_INDEX_FUNC = 421
    UNSUPPORTED_INDEX_TYPE = 422
    INTERNAL_SERVER_ERROR = 500
    CLOSE_OPERATION_ERROR = 501
    READ_ONLY_SYSTEM = 502
    DISK_SPACE_INSUFFICIENT = 503
    START_UP_ERROR = 504
    SHUT_DOWN_ERROR = 505
    MULTIPLE_ERROR = 506
    WRONG_LOGIN_PASSWORD = 600
    NOT_LOGIN = 601
    NO_PERMISSION = 602
    UNINITIALIZED_AUTH = 603
    PARTITION_NOT_READY = 700
    TIME_OUT = 701
    NO_LEADER = 702
    UNSUPPORTED_OPERATION = 703
    NODE_READ_ONLY = 704
    CONSISTENCY_FAILURE = 705
    NO_CONNECTION = 706
    NEED_REDIRECTION = 707


class InvariantViolation(Exception):
    """Our bug: something that must always hold does not. Never caught but to stop the node."""


def check(condition: object, message: str, *numbers: object) -> None:
    """Raise `InvariantViolation(message % numbers)` unless the condition holds; stays on in production."""
    if not condition:
        raise InvariantViolation(message % numbers if numbers else message)


class SystemFault(Exception):
    """The disk, the network or the system failed in a way that the room that met it cannot mend."""


class CorruptData(SystemFault):
    """Stored bytes do not match their checksum, or are of a version that this program does not know."""


class CallerError(Exception):
    """The caller asked for what cannot be done; `code` and `message` are the answer.

    `parts`, where the call had several, holds one entry a part in the caller's order: None where the part succeeded.
    """

    code: Status

    def __init__(self, code: Status, message: str, parts: Sequence[CallerError | None] = ()) -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.parts = tuple(parts)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.code.name}={int(self.code)}, {self.message!r})"


class NotLeader(CallerError):
    """This replica does not lead the group; `leader` is the node identifier of the one that does, or 0."""

    def __init__(self, leader: int, message: str) -> None:
        super().__init__(Status.NO_LEADER, message)
        self.leader = leader


class Moved(CallerError):
    """The group does not own the slot at that epoch (or the unit is not open there): final for this request id."""

    def __init__(self, message: str) -> None:
        super().__init__(Status.PARTITION_NOT_READY, message)


class StaleSchema(CallerError):
    """The series were resolved under a schema epoch below the unit's floor: resolve again, under a new request id."""

    def __init__(self, message: str) -> None:
        super().__init__(Status.METADATA_ERROR, message)


class OutcomeUnknown(CallerError):
    """The request may still take effect: the time ran out, or the leader went away, before its fate was known."""

    def __init__(self, message: str) -> None:
        super().__init__(Status.TIME_OUT, message)
