"""What clients did and saw: operations on the cells of one series, with the moments of their call and answer.

A cell is one point in time of a series. Values are unique, so that a read says which write it saw. Moments are counted,
not measured: everything happens in one thread, in an order.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TypeAlias

__all__ = ["Action", "Count", "Delete", "History", "Last", "Operation", "Read", "State", "Write", "project"]

State: TypeAlias = tuple[float | None, ...]  # a value a cell; None where there is no point


@dataclass(frozen=True, slots=True)
class Write:
    """Puts a value into a cell, over whatever is there."""

    cell: int
    value: float

    def apply(self, state: State) -> State | None:
        return (*state[: self.cell], self.value, *state[self.cell + 1 :])


@dataclass(frozen=True, slots=True)
class Delete:
    """Empties the cells from `first` to `last`, both included."""

    first: int
    last: int

    def apply(self, state: State) -> State | None:
        return (*state[: self.first], *((None,) * (self.last + 1 - self.first)), *state[self.last + 1 :])


@dataclass(frozen=True, slots=True)
class Read:
    """Saw these values in the cells from `first` on."""

    first: int
    values: State

    def apply(self, state: State) -> State | None:
        return state if state[self.first : self.first + len(self.values)] == self.values else None


@dataclass(frozen=True, slots=True)
class Last:
    """Saw this value in this cell, and no later cell with one; cell -1: no cell with one."""

    cell: int
    value: float | None

    def apply(self, state: State) -> State | None:
        if any(value is not None for value in state[self.cell + 1 :]):
            return None
        return state if self.cell < 0 or state[self.cell] == self.value else None


@dataclass(frozen=True, slots=True)
class Count:
    """Saw so many cells with a value from `first` to `last`."""

    first: int
    last: int
    number: int

    def apply(self, state: State) -> State | None:
        found = sum(value is not None for value in state[self.first : self.last + 1])
        return state if found == self.number else None


Action: TypeAlias = Write | Delete | Read | Last | Count


@dataclass(frozen=True, slots=True)
class Operation:
    """`returned` None: the outcome is unknown, it may take effect at any later moment or never."""

    client: str
    invoked: int
    returned: int | None
    action: Action

    @property
    def changes(self) -> bool:
        return isinstance(self.action, Write | Delete)


@dataclass(slots=True)
class History:
    """The operations of one series of `width` cells, in the order in which they ended.

    `narrow`: all cells lie in one unit, so that reads over several cells see one instant.
    """

    width: int
    narrow: bool
    operations: list[Operation] = field(default_factory=list)
    refused: int = 0


def project(operations: list[Operation], cell: int) -> list[Operation]:
    """What concerns one cell, as operations on a series of that cell alone; reads of LAST and counts are left out."""
    found: list[Operation] = []
    for one in operations:
        action = one.action
        mine: Action | None = None
        if isinstance(action, Write) and action.cell == cell:
            mine = Write(0, action.value)
        elif isinstance(action, Delete) and action.first <= cell <= action.last:
            mine = Delete(0, 0)
        elif isinstance(action, Read) and action.first <= cell < action.first + len(action.values):
            mine = Read(0, (action.values[cell - action.first],))
        if mine is not None:
            found.append(Operation(one.client, one.invoked, one.returned, mine))
    return found
