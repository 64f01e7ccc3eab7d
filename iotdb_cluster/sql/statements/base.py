"""What all statements have in common."""

from __future__ import annotations

from typing import ClassVar

__all__ = ["Statement"]


class Statement:
    """Base of all statements.

    `is_query`: whether it answers with a result set. `operation`: the type name shown in "No permissions for this
    operation ..." and, for queries, sent as the operation type of the result set.
    """

    __slots__ = ()
    is_query: ClassVar[bool] = False
    OPERATION: ClassVar[str] = ""

    @property
    def operation(self) -> str:
        return self.OPERATION
