"""The kinds of entries of a data group's log."""

from __future__ import annotations

from enum import IntEnum

__all__ = ["Kind"]


class Kind(IntEnum):
    """What an entry does. The numbers are in every log: never reuse one."""

    INSERT = 1
    ENSURE_SERIES = 2
    CREATE_SERIES = 3
    ALTER_SERIES = 4
    LIST_PARTITION = 5
    OPEN_UNIT = 6
    DELETE_INTENT = 7
    DELETE_UNIT = 8
    DELETE_RETIRE = 9
    OWN = 10
    DROP_STORAGE_GROUP = 11
    EXPIRE = 12
    FENCE = 13
    IMPORT = 14
    READY = 15
    DROP_SLOTS = 16
    DISCARD = 17
    DISSOLVE = 18
