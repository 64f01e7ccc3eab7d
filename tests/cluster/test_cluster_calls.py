"""Finding leaders, deadlines, request ids, and failures over the wire."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from iotdb_cluster.cluster import request_ids
from iotdb_cluster.cluster.calls import Calls, Deadline, Leaders
from iotdb_cluster.cluster.failures import answer_bytes, dump_failure, failure_bytes, read_answer
from iotdb_cluster.cluster.proposals import Proposals, Wanted
from iotdb_cluster.cluster.request_ids import RequestIds
from iotdb_cluster.data import NotReady, Retiring, StaleRequest
from iotdb_cluster.errors import CallerError, CorruptData, Moved, NotLeader, OutcomeUnknown, StaleSchema, Status
from iotdb_cluster.packing import pack, unpack
from iotdb_cluster.requests import RequestId
from tests.cluster.shell import run_virtual, world_of

FAILURES: list[CallerError] = [
    CallerError(Status.PATH_NOT_EXIST, "no"),
    CallerError(Status.MULTIPLE_ERROR, "some", [None, CallerError(Status.OUT_OF_TTL, "old"), Moved("gone")]),
    Moved("m"),
    StaleSchema("s"),
    OutcomeUnknown("u"),
    StaleRequest("r"),
    NotLeader(3, "l"),
    NotReady("n", True),
    NotReady("n", False),
    Retiring("d", 7, (1, -2)),
]


@pytest.mark.parametrize("failure", FAILURES, ids=lambda failure: type(failure).__name__)
def test_a_failure_survives_the_wire(failure: CallerError) -> None:
    with pytest.raises(CallerError) as caught:
        read_answer(failure_bytes(failure))
    found = caught.value
    assert type(found) is type(failure)
    assert (found.code, found.message) == (failure.code, failure.message)
    assert [type(part) for part in found.parts] == [type(part) for part in failure.parts]
    for name in ("leader", "unit_closed", "number", "partitions"):
        assert getattr(found, name, None) == getattr(failure, name, None)


def test_an_answer_is_told_from_a_failure() -> None:
    assert bytes(read_answer(answer_bytes(b"abc"))) == b"abc"
    for damaged in (b"", b"\x02abc"):
        with pytest.raises(CorruptData):
            read_answer(damaged)


# --- leaders ----------------------------------------------------------------------------------------------------------


def leaders_run(
    answers: Callable[[int, int], object], known: Callable[[int], int] = lambda _: 0, limit_ms: float = 1_000
) -> tuple[object, list[tuple[float, int]]]:
    """(the outcome, when each node was asked); `answers(node, how many before)` is raised where it is an error."""
    asked: list[tuple[float, int]] = []

    async def main() -> object:
        loop = asyncio.get_running_loop()
        world = world_of(1)
        leaders = Leaders(world, known, lambda _: [1, 2, 3])

        async def attempt(node: int, _: Deadline) -> object:
            asked.append((loop.time(), node))
            await asyncio.sleep(0.0001)
            answer = answers(node, len(asked) - 1)
            if isinstance(answer, CallerError):
                raise answer
            return answer

        try:
            return await leaders.run(7, attempt, Deadline(world, limit_ms), repeatable=True)
        except CallerError as error:
            return error

    return run_virtual(main), asked


def test_hints_are_followed_at_once() -> None:
    found, asked = leaders_run(lambda node, _: "here" if node == 3 else NotLeader(3, "3 leads"))
    assert found == "here"
    assert [node for _, node in asked] == [1, 3]
    assert asked[-1][0] < 0.001


def test_two_that_name_each_other_are_not_asked_in_a_hot_loop() -> None:
    found, asked = leaders_run(lambda node, _: NotLeader(3 - node, "the other leads") if node < 3 else NotLeader(1, ""))
    assert isinstance(found, NotLeader)
    assert len(asked) < 100
    assert asked[-1][0] < 1.01


def test_without_a_leader_every_member_is_asked_until_the_deadline() -> None:
    found, asked = leaders_run(lambda node, _: CallerError(Status.NO_CONNECTION, f"{node} is down"))
    assert isinstance(found, CallerError)
    assert found.code == Status.NO_CONNECTION
    assert {node for _, node in asked} == {1, 2, 3}
    assert len(asked) < 20


def test_what_was_unknown_once_is_never_told_as_refused() -> None:
    def answers(_: int, before: int) -> object:
        return OutcomeUnknown("broke") if not before else CallerError(Status.WRITE_PROCESS_REJECT, "full")

    found, _ = leaders_run(answers)
    assert isinstance(found, OutcomeUnknown)
    found, _ = leaders_run(lambda _, before: OutcomeUnknown("broke") if not before else NotLeader(0, "no leader"))
    assert isinstance(found, OutcomeUnknown)


def test_a_leader_that_is_cut_off_is_not_the_last_word() -> None:
    def answers(node: int, _: int) -> object:
        return "here" if node == 2 else CallerError(Status.CONSISTENCY_FAILURE, "no majority confirms")

    assert leaders_run(answers)[0] == "here"


def test_a_group_that_is_not_ready_is_asked_again_a_closed_unit_is_an_answer() -> None:
    found, _ = leaders_run(lambda _, before: NotReady("slot unheard of") if before < 3 else "done")
    assert found == "done"
    found, asked = leaders_run(lambda *_: NotReady("closed", True))
    assert isinstance(found, NotReady)
    assert len(asked) == 1


@pytest.mark.parametrize("failure", [Moved("m"), StaleSchema("s"), CallerError(Status.PATH_NOT_EXIST, "n")])
def test_an_answer_is_raised_at_once(failure: CallerError) -> None:
    found, asked = leaders_run(lambda *_: failure)
    assert found is failure
    assert len(asked) == 1


def test_who_waits_for_a_leader_asks_it_as_soon_as_it_is_known() -> None:
    async def main() -> None:
        loop, world, known = asyncio.get_running_loop(), world_of(1), {7: 0}
        leaders = Leaders(world, lambda group: known[group], lambda _: [1, 2, 3])

        async def attempt(node: int, _: Deadline) -> int:
            if known[7] != node:
                raise CallerError(Status.NO_CONNECTION, f"node {node} is down")
            return node

        def leads() -> None:
            known[7] = 3
            leaders.changed(7)

        loop.call_later(0.9, leads)  # by then they sleep for 0.2 s each time
        deadline = Deadline(world, 10_000)
        began = loop.time()
        assert await asyncio.gather(*(leaders.run(7, attempt, deadline, repeatable=True) for _ in range(2))) == [3, 3]
        assert loop.time() - began == pytest.approx(0.9, abs=0.001)
        assert not leaders._pausing
        assert "is down" in str(deadline.waits)

    run_virtual(main)


def test_a_slow_statement_says_what_it_waited_for(caplog: pytest.LogCaptureFixture) -> None:
    async def main() -> None:
        deadline = Deadline(world_of(1), 10_000)
        for number in range(20):
            deadline.within(500).waits.add(f"group {number}: no leader", 40 + number)
        deadline.waits.add("the meta group's barrier", 5.0)  # too short to explain anything
        deadline.waits.add("group 3: no leader", 300.0)
        deadline.tell_if_slow("an insert")
        assert not caplog.records
        await asyncio.sleep(1.5)
        deadline.tell_if_slow("an insert")

    caplog.set_level("INFO")
    run_virtual(main)
    (record,) = caplog.records
    said = record.getMessage()
    assert said.startswith("an insert took 1500 ms: 343 ms: group 3: no leader; 47 ms: group 7")
    assert said.count("group") == 8
    assert "meta" not in said


def test_a_deadline_within_another_is_the_earlier_one() -> None:
    async def main() -> None:
        deadline = Deadline(world_of(1), 100)
        assert deadline.within(1_000).left_ms == pytest.approx(100)
        assert deadline.within(10).left_ms == pytest.approx(10)
        await asyncio.sleep(0.2)
        assert deadline.passed
        with pytest.raises(CallerError, match="time was up before x") as caught:
            deadline.check("x")
        assert caught.value.code == Status.TIME_OUT

    run_virtual(main)


# --- request ids ------------------------------------------------------------------------------------------------------


@given(st.lists(st.tuples(st.booleans(), st.integers(0, 1_000))))
def test_low_never_passes_an_unanswered_request(steps: list[tuple[bool, int]]) -> None:
    ids = RequestIds(1, 2)
    waiting: list[RequestId] = []
    for take, which in steps:
        if take or not waiting:
            request = ids.take()
            assert request.low == min([one.sequence for one in waiting], default=request.sequence)
            assert request.sequence not in [one.sequence for one in waiting]
            waiting.append(request)
        else:
            ids.finish(waiting.pop(which % len(waiting)))
        assert ids.open == len(waiting)


def test_a_request_that_hangs_stops_the_others_in_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(request_ids, "REQUESTS_AHEAD_MAX", 10)
    ids = RequestIds(1, 1)
    hanging = ids.take()
    for _ in range(9):
        ids.finish(ids.take())
    with pytest.raises(CallerError) as caught:
        ids.take()
    assert caught.value.code == Status.WRITE_PROCESS_REJECT
    ids.finish(hanging)
    assert ids.take().low == 11


# --- proposals --------------------------------------------------------------------------------------------------------


class NoPeers:
    async def call(self, *_: object) -> memoryview:
        raise CallerError(Status.NO_CONNECTION, "nobody")


def identified(
    answer: Callable[[int], object], opening: Callable[[], Awaitable[None]] | None = None
) -> tuple[object, list[bytes], RequestIds]:
    """(the outcome, the entries that were proposed, the ids): `answer(how many before)` is the group's."""
    seen: list[bytes] = []
    ids = RequestIds(1, 1)

    async def main() -> object:
        world = world_of(2)
        calls = Calls(1, NoPeers())

        async def propose(body: memoryview, _: Deadline) -> bytes:
            seen.append(bytes(body))
            found = answer(len(seen) - 1)
            if isinstance(found, CallerError):
                raise found
            return pack(found)

        calls.handlers["propose"] = propose
        proposals = Proposals(calls, Leaders(world, lambda _: 1, lambda _: [1]), ids)
        payload = lambda request: b"%d" % request.sequence  # noqa: E731
        try:
            return await proposals.identified(lambda: 7, Wanted(payload, opening), Deadline(world, 2_000))
        except CallerError as error:
            return error

    return run_virtual(main), seen, ids


def test_a_repetition_has_the_same_id() -> None:
    found, seen, ids = identified(lambda before: OutcomeUnknown("?") if before < 3 else "done")
    assert found == "done"
    assert len(seen) == 4
    assert len(set(seen)) == 1
    assert ids.open == 0


def test_the_id_stays_when_the_unit_has_to_be_opened() -> None:
    opened = []

    async def opening() -> None:
        opened.append(1)

    answers = [OutcomeUnknown("?"), NotReady("closed", True), "done"]
    found, seen, _ = identified(lambda before: answers[before], opening)
    assert found == "done"
    assert opened == [1]
    assert len(set(seen)) == 1


def test_waiting_ends_with_the_time() -> None:
    found, _, ids = identified(lambda _: Retiring("being deleted", 3, ()))
    assert isinstance(found, CallerError)
    assert found.code == Status.TIME_OUT
    assert ids.open == 0
    found, _, _ = identified(lambda _: NotReady("closed", True))
    assert isinstance(found, NotReady)


def together(
    attempts: list[object], later: Callable[[bytes], object] = lambda _: "later", count: int = 3
) -> tuple[list[Any], list[list[bytes]], list[bytes], RequestIds]:
    """(outcomes, the entries of each joint attempt, those that went alone, the ids): `attempts` are the answers."""
    joint: list[list[bytes]] = []
    alone: list[bytes] = []
    ids = RequestIds(1, 1)

    def answer(found: object) -> object:
        if isinstance(found, CallerError):
            raise found
        return found

    async def main() -> object:
        world = world_of(2)
        calls = Calls(1, NoPeers())

        async def propose_together(body: memoryview, _: Deadline) -> bytes:
            joint.append([bytes(entry) for entry in unpack(body[4:])[1]])
            found: Any = answer(attempts[len(joint) - 1])
            return pack([[None, dump_failure(one)] if isinstance(one, CallerError) else [one, None] for one in found])

        async def propose(body: memoryview, _: Deadline) -> bytes:
            alone.append(bytes(body[4:]))
            return pack(answer(later(alone[-1])))

        calls.handlers.update({"propose together": propose_together, "propose": propose})
        proposals = Proposals(calls, Leaders(world, lambda _: 1, lambda _: [1]), ids)
        wanted = [Wanted(lambda request: b"%d" % request.sequence)] * count
        return await proposals.together(lambda: 7, wanted, Deadline(world, 2_000))

    return run_virtual(main), joint, alone, ids  # type: ignore[return-value]


def test_entries_go_together_and_each_has_its_own_outcome() -> None:
    refusal = CallerError(Status.WRITE_PROCESS_REJECT, "no room")
    outcomes, joint, alone, ids = together([["a", refusal, "c"]])
    assert joint == [[b"1", b"2", b"3"]]
    assert not alone
    assert outcomes[0] == "a"
    assert outcomes[2] == "c"
    assert type(outcomes[1]) is CallerError
    assert outcomes[1].code == Status.WRITE_PROCESS_REJECT
    assert ids.open == 0


def test_what_the_joint_attempt_leaves_open_goes_again_under_the_same_id() -> None:
    outcomes, joint, alone, ids = together([OutcomeUnknown("?"), ["a", OutcomeUnknown("?"), NotLeader(0, "lost")]])
    assert joint[0] == joint[1]
    assert alone == [b"2", b"3"]
    assert outcomes == ["a", "later", "later"]
    assert ids.open == 0


def test_a_refusal_after_an_unknown_outcome_stays_unknown() -> None:
    refusal = CallerError(Status.WRITE_PROCESS_REJECT, "no room")
    outcomes, *_ = together([OutcomeUnknown("?"), ["a", refusal, Moved("gone")]])
    assert isinstance(outcomes[1], OutcomeUnknown)
    assert isinstance(outcomes[2], Moved)  # final: had an earlier attempt been applied, its id would be known there
    outcomes, *_ = together([["a", "b", OutcomeUnknown("?")]], later=lambda _: refusal)
    assert isinstance(outcomes[2], OutcomeUnknown)


def test_an_attempt_that_ends_because_another_node_leads_may_have_taken_effect() -> None:
    ids = RequestIds(1, 1)
    known = {7: 2}
    refusal = CallerError(Status.WRITE_PROCESS_REJECT, "no room")

    class Silent:
        """Node 2 has the entries in its log, and answers nothing."""

        async def call(self, *_: object) -> memoryview:
            asyncio.get_running_loop().call_soon(another_leads)
            await asyncio.sleep(60)
            raise AssertionError

    async def main() -> list[Any]:
        nonlocal another_leads
        world = world_of(2)
        calls = Calls(1, Silent())
        leaders = Leaders(world, lambda group: known[group], lambda _: [1, 2])

        def here() -> None:
            known[7] = 1
            leaders.changed(7)

        another_leads = here

        async def propose_together(_: memoryview, __: Deadline) -> bytes:
            return pack([["a", None], [None, dump_failure(refusal)]])

        calls.handlers["propose together"] = propose_together
        wanted = [Wanted(lambda request: b"%d" % request.sequence)] * 2
        return await Proposals(calls, leaders, ids).together(lambda: 7, wanted, Deadline(world, 2_000))

    another_leads: Callable[[], None] = lambda: None  # noqa: E731
    outcomes = run_virtual(main)
    assert outcomes[0] == "a"  # type: ignore[index]
    assert isinstance(outcomes[1], OutcomeUnknown)  # type: ignore[index]


def test_a_hint_at_a_node_that_has_left_the_group_is_forgotten() -> None:
    async def main() -> list[int]:
        members, found = [1, 2, 3], []
        leaders = Leaders(world_of(3), lambda _: 0, lambda _: members)
        found.append(leaders.guess(7))
        leaders.learned({7: 3})
        found.append(leaders.guess(7))
        leaders.pass_over(7)
        found.append(leaders.guess(7))
        leaders.learned({7: 3})
        members.remove(3)
        found.append(leaders.guess(7))
        members.clear()
        return [*found, leaders.guess(7)]

    assert run_virtual(main) == [1, 3, 1, 1, 0]
