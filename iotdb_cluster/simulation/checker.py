"""Is there an order of a history's operations, each between its call and its answer, in which every read is right?

The search is that of Wing and Gong with Lowe's memory of configurations, and three cuts that lose no order:
* a read that is right now is taken now: it changes nothing;
* an operation whose outcome is unknown is taken only as late as it can be, right before what it may not pass: a read
  that it makes right (alone or with others), or where it is a delete of several cells, a change of some of those;
* of two such changes that do the same (values that no read saw are all alike) only the older is tried.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from iotdb_cluster.simulation.history import Action, Delete, History, Last, Operation, Read, State, Write, project

__all__ = ["NotLinearizable", "Undecided", "check_history", "check_operations", "is_linearizable"]

STEPS_MAX = 200_000
SHOWN = 24
UNSEEN = -1.0


class NotLinearizable(AssertionError):
    """No order explains what the clients saw."""


class Undecided(AssertionError):
    """The search took too many steps."""


@dataclass(frozen=True, slots=True)
class _Configuration:
    """The first `base` answered operations are ordered, and those of `ahead` beyond; `used` of the unknown ones."""

    base: int
    ahead: int
    used: int
    state: State
    owing: tuple[int, int] | None  # the cells of an unknown one that was taken and that nothing has needed yet


class _Search:
    def __init__(self, operations: Sequence[Operation]) -> None:
        ordered = sorted(_alike(operations), key=lambda one: one.invoked)
        self.answered = [one for one in ordered if one.returned is not None]
        self.returns = [one.returned or 0 for one in self.answered]
        self.unknown = [one for one in ordered if one.returned is None and one.changes]
        self.steps = 0
        self.furthest = _Configuration(0, 0, 0, (), None)

    def run(self, state: State, steps_max: int) -> bool:
        stack = [_Configuration(0, 0, 0, state, None)]
        seen: set[_Configuration] = set()
        while stack:
            found = self._with_reads(stack.pop())
            if found in seen:
                continue
            seen.add(found)
            if found.base >= self.furthest.base:
                self.furthest = found
            if found.base == len(self.answered):
                return True
            self.steps += 1
            if self.steps > steps_max:
                raise Undecided(f"{len(self.answered)} operations: undecided after {steps_max} steps")
            stack.extend(self._next(found))
        return False

    def _window(self, found: _Configuration) -> tuple[list[int], int]:
        """Places of the operations that may be next, and the moment before which they were called."""
        places: list[int] = []
        until = self.returns[found.base]
        place = found.base
        while place < len(self.answered) and self.answered[place].invoked < until:
            if not found.ahead >> (place - found.base) & 1:
                places.append(place)
                until = min(until, self.returns[place])
            place += 1
        return [place for place in places if self.answered[place].invoked < until], until

    def _take(self, found: _Configuration, place: int, state: State) -> _Configuration:
        ahead = found.ahead | 1 << (place - found.base)
        base = found.base
        while ahead & 1:
            ahead >>= 1
            base += 1
        return _Configuration(base, ahead, found.used, state, None)

    def _with_reads(self, found: _Configuration) -> _Configuration:
        while found.base < len(self.answered):
            for place in self._window(found)[0]:
                one = self.answered[place]
                if not one.changes and one.action.apply(found.state) is not None:
                    found = self._take(found, place, found.state)
                    break
            else:
                break
        return found

    def _next(self, found: _Configuration) -> list[_Configuration]:
        """What may follow, the most promising last."""
        places, until = self._window(found)
        following: list[_Configuration] = []
        following += self._unknown_next(found, until)
        for place in sorted(places, key=lambda place: -self.returns[place]):
            one = self.answered[place]
            if one.changes and _may_follow(found.owing, one.action):
                state = one.action.apply(found.state)
                if state is not None:
                    following.append(self._take(found, place, state))
        return following

    def _unknown_next(self, found: _Configuration, until: int) -> list[_Configuration]:
        following: list[_Configuration] = []
        tried: set[object] = set()
        for place, one in enumerate(self.unknown):
            if one.invoked >= until:
                break
            if found.used >> place & 1 or one.action in tried:
                continue
            tried.add(one.action)
            state = one.action.apply(found.state)
            if state is not None and state != found.state:
                used = found.used | 1 << place
                following.append(_Configuration(found.base, found.ahead, used, state, _cells(one.action)))
        following.reverse()
        return following

    def tell(self) -> str:
        """Where the longest order ends."""
        found = self.furthest
        lines = [f"ordered: {found.base} of {len(self.answered)} answered operations; then {found.state}"]
        until = self._window(found)[1]
        for place in range(max(0, found.base - SHOWN // 2), min(len(self.answered), found.base + SHOWN)):
            one = self.answered[place]
            if one.invoked > until + SHOWN:
                break
            taken = place < found.base or found.ahead >> (place - found.base) & 1
            lines.append(f"{' ' if taken else '*'} {one.client} [{one.invoked}, {one.returned}] {one.action}")
        lines += [
            f"{'used' if found.used >> place & 1 else '?'} {one.client} [{one.invoked}, unknown] {one.action}"
            for place, one in enumerate(self.unknown)
            if one.invoked < until
        ]
        return "\n".join(lines)


def _alike(operations: Sequence[Operation]) -> list[Operation]:
    """Values that nobody saw are one value: what differs in nothing else is then the same to the search."""
    seen: set[float | None] = set()
    for one in operations:
        if isinstance(one.action, Read):
            seen.update(one.action.values)
        elif isinstance(one.action, Last):
            seen.add(one.action.value)
    return [
        replace(one, action=Write(one.action.cell, UNSEEN))
        if isinstance(one.action, Write) and one.action.value not in seen
        else one
        for one in operations
    ]


def _cells(action: Action) -> tuple[int, int]:
    if isinstance(action, Delete):
        return action.first, action.last
    return (action.cell, action.cell) if isinstance(action, Write) else (0, -1)


def _may_follow(owing: tuple[int, int] | None, change: Action) -> bool:
    """Whether an unknown change of the cells `owing` could not as well come after this one, or be left away."""
    if owing is None:
        return True
    first, last = _cells(change)
    return owing[0] < owing[1] and first <= owing[1] and last >= owing[0]


def is_linearizable(operations: Sequence[Operation], width: int, steps_max: int = STEPS_MAX) -> bool:
    """Whether an order exists, from `width` empty cells on. Raises Undecided."""
    return _Search(operations).run((None,) * width, steps_max)


def check_operations(name: str, operations: Sequence[Operation], width: int) -> None:
    """Raises NotLinearizable, with the place where every order ends, or Undecided."""
    written = {one.action.value for one in operations if isinstance(one.action, Write)}
    search = _Search(operations)
    if not search.run((None,) * width, STEPS_MAX):
        raise NotLinearizable(f"{name} is not linearizable ({len(written)} values written)\n{search.tell()}")


def check_history(name: str, history: History) -> None:
    """A narrow series as a whole, and each cell of any."""
    for cell in range(history.width):
        check_operations(f"{name}, cell {cell}", project(history.operations, cell), 1)
    if history.narrow:
        check_operations(name, history.operations, history.width)
