"""The checker against every order there is, on tiny histories, and histories with a planted violation."""

from __future__ import annotations

import random
from itertools import combinations, permutations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from iotdb_cluster.simulation.checker import (
    NotLinearizable,
    Undecided,
    check_history,
    check_operations,
    is_linearizable,
)
from iotdb_cluster.simulation.history import (
    Action,
    Count,
    Delete,
    History,
    Last,
    Operation,
    Read,
    State,
    Write,
    project,
)

WIDTH = 2


def by_trying_all(operations: list[Operation], width: int) -> bool:
    """Every subset of the unknown ones, every order."""
    answered = [one for one in operations if one.returned is not None]
    unknown = [one for one in operations if one.returned is None]
    for size in range(len(unknown) + 1):
        for some in combinations(unknown, size):
            if any(is_right(order, width) for order in permutations([*answered, *some])):
                return True
    return False


def is_right(order: tuple[Operation, ...], width: int) -> bool:
    state: State | None = (None,) * width
    for at, one in enumerate(order):
        if any(later.returned is not None and later.returned < one.invoked for later in order[at + 1 :]):
            return False
        state = one.action.apply(state or ())
        if state is None:
            return False
    return True


VALUES = st.sampled_from([1.0, 2.0, 3.0])
SEEN = st.sampled_from([None, 1.0, 2.0, 3.0])
CELLS = st.integers(0, WIDTH - 1)
ACTIONS: st.SearchStrategy[Action] = st.one_of(
    st.builds(Write, CELLS, VALUES),
    st.sampled_from([Delete(0, 0), Delete(0, 1), Delete(1, 1)]),
    st.builds(lambda cell, value: Read(cell, (value,)), CELLS, SEEN),
    st.builds(lambda one, two: Read(0, (one, two)), SEEN, SEEN),
    st.builds(Last, CELLS, VALUES) | st.just(Last(-1, None)),
    st.builds(lambda number: Count(0, 1, number), st.integers(0, 2)),
)


@st.composite
def histories(draw: st.DrawFn) -> list[Operation]:
    """Any actions at any times: most are wrong, by one operation or by many."""
    count = draw(st.integers(1, 6))
    moments = draw(st.permutations(range(2 * count)))
    found = []
    for at in range(count):
        action = draw(ACTIONS)
        invoked, returned = sorted(moments[2 * at : 2 * at + 2])
        known = not isinstance(action, Write | Delete) or draw(st.integers(0, 2))
        found.append(Operation(f"c{at}", invoked, returned if known else None, action))
    return found


@settings(max_examples=500, deadline=None)
@given(histories())
def test_agrees_with_every_order_there_is(operations: list[Operation]) -> None:
    assert is_linearizable(operations, WIDTH) == by_trying_all(operations, WIDTH)


def atomic_history(rng: random.Random, count: int, width: int, known: float = 0.97) -> list[Operation]:
    """What five clients of a correct register see: each operation takes effect somewhere between call and answer."""
    state: State = (None,) * width
    running: dict[str, tuple[int, Action | str, Action | None]] = {}
    found: list[Operation] = []
    now = 0
    while len(found) < count:
        now += 1
        client = f"c{rng.randrange(5)}"
        if client not in running:
            wish = rng.choice(["write", "write", "delete", "point", "all", "last", "count"])
            action: Action | str = wish
            if wish == "write":
                action = Write(rng.randrange(width), float(now))
            elif wish == "delete":
                first = rng.randrange(width)
                action = Delete(first, rng.randrange(first, width))
            running[client] = (now, action, None)
            continue
        invoked, wanted, done = running[client]
        if done is None:
            if isinstance(wanted, str):
                done = seen(state, wanted, rng)
            else:
                done = wanted
                if rng.random() < known:
                    state = done.apply(state) or state
                elif rng.random() < 0.5:  # its outcome stays unknown, with no effect
                    found.append(Operation(client, invoked, None, done))
                    del running[client]
                    continue
                else:  # its outcome stays unknown, with one
                    state = done.apply(state) or state
                    found.append(Operation(client, invoked, None, done))
                    del running[client]
                    continue
            running[client] = (invoked, wanted, done)
            continue
        found.append(Operation(client, invoked, now, done))
        del running[client]
    for client, (invoked, wanted, _) in running.items():
        if isinstance(wanted, Write | Delete):
            found.append(Operation(client, invoked, None, wanted))
    return found


def seen(state: State, wish: str, rng: random.Random) -> Action:
    if wish == "point":
        cell = rng.randrange(len(state))
        return Read(cell, (state[cell],))
    if wish == "last":
        cell = max((cell for cell, value in enumerate(state) if value is not None), default=-1)
        return Last(cell, state[cell] if cell >= 0 else None)
    if wish == "count":
        return Count(0, len(state) - 1, sum(value is not None for value in state))
    return Read(0, state)


def test_agrees_on_what_is_almost_right() -> None:
    """Histories of a register, many of their outcomes unknown, every second one with a read that is changed."""
    rng = random.Random(1)
    answers = []
    for _ in range(200):
        operations = atomic_history(rng, 7, WIDTH, known=0.4)[:8]
        reads = [at for at, one in enumerate(operations) if isinstance(one.action, Read)]
        if reads and rng.randrange(2):
            at = rng.choice(reads)
            one = operations[at]
            assert isinstance(one.action, Read)
            written = [other.action.value for other in operations if isinstance(other.action, Write)]
            values = tuple(rng.choice([None, *written]) for _ in one.action.values)
            operations[at] = Operation(one.client, one.invoked, one.returned, Read(one.action.first, values))
        answers.append(is_linearizable(operations, WIDTH))
        assert answers[-1] == by_trying_all(operations, WIDTH), operations
    assert 0.05 < answers.count(False) / len(answers) < 0.5


@pytest.mark.parametrize("seed", range(20))
def test_what_a_register_did_is_accepted(seed: int) -> None:
    rng = random.Random(seed)
    check_history("a", History(3, True, atomic_history(rng, 400, 3)))


@pytest.mark.parametrize("seed", range(20))
def test_a_stale_read_in_a_long_history_is_found(seed: int) -> None:
    rng = random.Random(seed)
    operations = atomic_history(rng, 400, 1)
    now = max(one.returned or one.invoked for one in operations)
    operations += [
        Operation("x", now + 1, now + 2, Write(0, 9001.0)),
        Operation("x", now + 3, now + 4, Write(0, 9002.0)),
    ]
    with pytest.raises(NotLinearizable):
        check_operations("a", [*operations, Operation("y", now + 5, now + 6, Read(0, (9001.0,)))], 1)


WRITTEN = [Operation("a", 1, 2, Write(0, 1.0)), Operation("b", 3, 4, Write(0, 2.0))]


@pytest.mark.parametrize(
    ("more", "right"),
    [
        ([Operation("c", 5, 6, Read(0, (2.0,)))], True),
        ([Operation("c", 5, 6, Read(0, (1.0,)))], False),  # stale
        ([Operation("c", 5, 6, Read(0, (None,)))], False),  # lost
        ([Operation("c", 5, 6, Read(0, (9.0,)))], False),  # written by nobody, or refused
        ([Operation("c", 5, 6, Last(-1, None))], False),
        ([Operation("c", 5, 6, Count(0, 0, 0))], False),
        ([Operation("c", 5, 6, Delete(0, 0)), Operation("c", 7, 8, Read(0, (2.0,)))], False),  # it reappears
        ([Operation("c", 5, None, Delete(0, 0)), Operation("c", 7, 8, Read(0, (2.0,)))], True),
        (
            [
                Operation("c", 5, None, Delete(0, 0)),
                Operation("c", 7, 8, Read(0, (None,))),
                Operation("d", 9, 10, Read(0, (2.0,))),
            ],
            False,
        ),
        (  # an unknown write takes effect once
            [
                Operation("c", 5, None, Write(0, 3.0)),
                Operation("d", 6, 7, Read(0, (3.0,))),
                Operation("d", 8, 9, Write(0, 4.0)),
                Operation("d", 10, 11, Read(0, (3.0,))),
            ],
            False,
        ),
        (  # and long after
            [
                Operation("c", 5, None, Write(0, 3.0)),
                Operation("d", 6, 7, Read(0, (2.0,))),
                Operation("d", 8, 9, Write(0, 4.0)),
                Operation("d", 10, 11, Read(0, (3.0,))),
            ],
            True,
        ),
        ([Operation("c", 5, 9, Write(0, 3.0)), Operation("d", 6, 7, Read(0, (3.0,)))], True),
        (  # two readers one after the other see a write come and go
            [
                Operation("c", 5, 20, Write(0, 3.0)),
                Operation("d", 6, 7, Read(0, (3.0,))),
                Operation("e", 8, 9, Read(0, (2.0,))),
            ],
            False,
        ),
    ],
)
def test_planted(more: list[Operation], right: bool) -> None:
    history = History(1, True, [*WRITTEN, *more])
    if right:
        check_history("a", history)
    else:
        with pytest.raises(NotLinearizable, match="not linearizable"):
            check_history("a", history)


def test_a_narrow_series_is_read_at_one_instant() -> None:
    operations = [
        Operation("a", 1, 2, Write(0, 1.0)),
        Operation("a", 3, 4, Write(1, 2.0)),
        Operation("b", 0, 5, Read(0, (None, 2.0))),
    ]
    check_history("wide", History(2, False, operations))
    with pytest.raises(NotLinearizable):
        check_history("narrow", History(2, True, operations))


def test_projection() -> None:
    operations = [
        Operation("a", 1, 2, Write(1, 1.0)),
        Operation("a", 3, 4, Delete(0, 1)),
        Operation("a", 5, 6, Read(1, (None, 3.0))),
        Operation("a", 7, 8, Count(0, 2, 1)),
        Operation("a", 9, 10, Last(1, 1.0)),
    ]
    assert [one.action for one in project(operations, 1)] == [Write(0, 1.0), Delete(0, 0), Read(0, (None,))]


def test_what_takes_too_long_is_told() -> None:
    operations = [Operation(f"c{at}", at, 100 + at, Write(0, float(at))) for at in range(12)]
    with pytest.raises(Undecided):
        is_linearizable([*operations, Operation("r", 200, 201, Read(0, (99.0,)))], 1, steps_max=100)
