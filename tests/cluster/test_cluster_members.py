"""Members that come and go: what the conductor moves at once, how a node asks to join, what nodetool shows."""

import json
import random
import re
from collections.abc import Awaitable, Callable, Mapping
from types import ModuleType
from typing import Any

import pytest

from iotdb_cluster.cluster.conductor import batch_of, described
from iotdb_cluster.cluster.joining import (
    Joined,
    ask_to_join,
    check_no_copy,
    check_still_member,
    read_joined,
    write_joined,
)
from iotdb_cluster.cluster.log import Identity
from iotdb_cluster.cluster.settings import NodeAddress, Settings
from iotdb_cluster.cluster.startup import OtherSettings, Refused, Tale
from iotdb_cluster.errors import CallerError, CorruptData, Status, SystemFault
from iotdb_cluster.limits import MOVE_BYTES_MAX, MOVE_EMPTY_SLOTS_MAX, MOVE_UNITS_MAX
from iotdb_cluster.packing import unpack
from iotdb_cluster.partition.plan import CreateGroup, Finish, MoveSlots, RemoveNode
from iotdb_cluster.world import RealFileSystem, World

SEEDS = tuple(NodeAddress("127.0.0.1", 9003 + 2 * i, 40010 + 2 * i, 55560 + i) for i in range(3))
MINE = NodeAddress("127.0.0.1", 9009, 40016, 55563)
ANSWER = {
    "node": 4,
    "founders": [1, 2, 3],
    "nodes": [[number, *address.dump()] for number, address in enumerate((*SEEDS, MINE), 1)],
}


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def monotonic_ms(self) -> float:
        self.now += 100
        return self.now

    def wall_ms(self) -> int:
        return int(self.now)


def world() -> World:
    return World(Clock(), random.Random(1), None, None, None)  # type: ignore[arg-type]


def settings(**changes: Any) -> Settings:
    values: dict[str, Any] = {"address": MINE, "seeds": SEEDS, "directory": "/d", "start_timeout_ms": 2_000, **changes}
    return Settings(**values)


def asking(*answers: Any) -> tuple[Callable[[NodeAddress, bytes], Awaitable[Mapping[str, Any]]], list[str]]:
    """Answers one after another, the last one for ever; and who was asked."""
    asked: list[str] = []
    left = list(answers)

    async def ask(address: NodeAddress, request: bytes) -> Mapping[str, Any]:
        head, _ = unpack(request)
        assert (head["address"], head["incarnation"], head["replaces"]) == (MINE.dump(), 77, 0)
        assert head["accept_loss"] is False
        asked.append(address.name)
        answer = left.pop(0) if len(left) > 1 else left[0]
        if isinstance(answer, CallerError):
            raise answer
        return dict(answer)

    return ask, asked


@pytest.fixture(autouse=True)
def no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("iotdb_cluster.cluster.joining.ROUND_MS", 0)


DOWN = CallerError(Status.NO_CONNECTION, "connection refused")
FORMING = CallerError(Status.PARTITION_NOT_READY, "the cluster is still being formed: try again")


async def test_seeds_are_asked_in_turn_until_one_has_admitted() -> None:
    ask, asked = asking(DOWN, FORMING, {"busy": "another change"}, DOWN, ANSWER)
    joined = await ask_to_join(world(), settings(), Identity(0, 77, 1), ask)
    assert asked == ["127.0.0.1:9003", "127.0.0.1:9005", "127.0.0.1:9007", "127.0.0.1:9003", "127.0.0.1:9005"]
    assert (joined.node, joined.founders, joined.addresses[4]) == (4, (1, 2, 3), MINE)


async def test_a_loss_that_was_accepted_is_told(caplog: pytest.LogCaptureFixture) -> None:
    async def ask(address: NodeAddress, request: bytes) -> Mapping[str, Any]:
        del address
        head, _ = unpack(request)
        assert (head["replaces"], head["accept_loss"]) == (2, True)
        return {**ANSWER, "lost": 7, "dropped": ["root.a"]}

    with caplog.at_level("WARNING"):
        await ask_to_join(world(), settings(replaces=2, accept_loss=True), Identity(0, 77, 1), ask)
    assert "7 slots of which the dead node 2 had the only copy begin anew, empty, as was accepted" in caplog.text
    assert "storage groups that are dropped with them: root.a" in caplog.text


async def test_a_seed_that_is_busy_ends_the_round() -> None:
    ask, asked = asking({"busy": "another change"}, ANSWER)
    await ask_to_join(world(), settings(), Identity(0, 77, 1), ask)
    assert asked == ["127.0.0.1:9003"] * 2


async def test_joins_that_come_to_nothing() -> None:
    for answer, kind, text in (
        (DOWN, SystemFault, "no seed node has admitted this node within 2 s: 127.0.0.1:9003: connection refused"),
        ({"busy": "node 9 joins"}, Refused, "not admitted within 2 s: 127.0.0.1:9003: node 9 joins"),
        (CallerError(Status.START_UP_ERROR, "why"), Refused, "127.0.0.1:9003 does not admit this node: why"),
    ):
        ask, _ = asking(answer)
        with pytest.raises(kind, match=re.escape(text)) as failed:
            await ask_to_join(world(), settings(), Identity(0, 77, 1), ask)
        assert isinstance(failed.value, Refused) == (kind is Refused)


def test_what_was_told_is_kept(tmp_path: Any) -> None:
    files = RealFileSystem()
    assert read_joined(files, str(tmp_path)) is None
    joined = Joined.load(ANSWER)
    write_joined(files, str(tmp_path), joined)
    assert read_joined(files, str(tmp_path)) == joined
    data = bytearray((tmp_path / "joined").read_bytes())
    data[-1] ^= 1
    (tmp_path / "joined").write_bytes(data)
    with pytest.raises(CorruptData, match="joined offset 0"):
        read_joined(files, str(tmp_path))


def tale(incarnation: int = 77) -> Tale:
    return Tale("127.0.0.1:9003", SEEDS[0], incarnation, {}, True, {"127.0.0.1:9009": 77})


async def test_a_member_that_is_told_to_join_starts_only_where_it_is_known() -> None:
    def cluster_of(incarnation: int, current: bool = True) -> Callable[[NodeAddress], Awaitable[Mapping[str, Any]]]:
        async def ask(_: NodeAddress) -> Mapping[str, Any]:
            return {"removed": False, "nodes": [[4, incarnation, 1, "127.0.0.1", 9009]], "current": current}

        return ask

    async def nobody(_: NodeAddress) -> Mapping[str, Any]:
        raise DOWN

    another = cluster_of(78)
    await check_still_member(settings(), Identity(4, 77, 2), cluster_of(77))
    await check_still_member(settings(), Identity(4, 77, 2), nobody)
    await check_still_member(settings(), Identity(4, 77, 2), cluster_of(78, current=False))  # it may be behind
    with pytest.raises(OtherSettings, match="node 4 of another cluster, or of one that was removed"):
        await check_still_member(settings(), Identity(4, 77, 2), another)


async def test_a_copy_of_a_node_that_runs_does_not_start() -> None:
    async def twin(address: NodeAddress) -> Tale:
        assert address == MINE
        return tale()

    async def successor(_: NodeAddress) -> Tale:
        return tale(incarnation=78)

    joined, moved = Joined.load(ANSWER), settings(address=NodeAddress("127.0.0.1", 9011, 1, 2))
    await check_no_copy(settings(), Identity(4, 77, 2), joined, twin)  # at its own address nobody is asked
    await check_no_copy(moved, Identity(4, 77, 2), joined, successor)
    with pytest.raises(Refused, match=r"a copy of those of node 4, which runs at 127\.0\.0\.1:9009"):
        await check_no_copy(moved, Identity(4, 77, 2), joined, twin)


# --- the conductor ----------------------------------------------------------------------------------------------------


def test_empty_slots_go_together_and_full_ones_a_few_at_a_time() -> None:
    slots = list(range(5_000))
    assert batch_of(slots, {}) == tuple(range(MOVE_EMPTY_SLOTS_MAX))
    held = dict.fromkeys(range(4990), (1, 10))
    assert batch_of(slots, held) == tuple(range(4_990, 5_000))
    held = dict.fromkeys(slots, (1, 10))
    assert batch_of(slots, held) == tuple(range(MOVE_UNITS_MAX))
    assert batch_of(slots, dict.fromkeys(slots, (1, MOVE_BYTES_MAX // 2))) == (0, 1)
    assert batch_of(slots, dict.fromkeys(slots, (MOVE_UNITS_MAX * 2, MOVE_BYTES_MAX * 2))) == (0,)
    assert batch_of([7], {7: (0, 0)}) == (7,)  # a schema alone


def test_steps_in_words() -> None:
    assert described(MoveSlots(1, 4, (3, 5))) == "2 slots move from group 1 to group 4"
    assert described(CreateGroup(4)) == "the group of node 4 is made"
    assert described(RemoveNode(4)) == "node 4 is removed"
    assert described(Finish(9)) == "change 9 is finished"


# --- nodetool ---------------------------------------------------------------------------------------------------------


def lines(run: Any) -> list[str]:
    assert (run.returncode, run.stderr) == (0, "")
    return str(run.stdout).splitlines()


def test_nodetool_shows_slots_headers_and_that_nothing_moves(cluster: Any, replay: ModuleType) -> None:
    peer = replay.Peer("127.0.0.1", cluster.ports[0], {})
    assert peer.answer("INSERT INTO root.tool.d1(timestamp, s1) VALUES (1, 2.5)") == ["ok"]
    peer.close()
    texts = [member.seed for member in cluster.members]
    head, *rows = lines(cluster.nodetool("slot"))
    assert head == f"{'Raft group':<50}  {'Slot Number':>20}"
    for number, row in enumerate(rows, 1):
        ring = texts[number - 1 :] + texts[: number - 1]
        assert row.startswith(f"({', '.join(ring)}),id={number}")
    assert sum(int(row.rpartition("->")[2]) for row in rows) == 10_000

    head, *rows = lines(cluster.nodetool("header", node=2))
    assert head == f"{'Node Identifier':<20}  {'Node':>30}"
    ring = [(2, texts[1]), (3, texts[2]), (1, texts[0])]
    assert [row.rpartition(" (")[0] for row in rows] == [f"{number:<20}->{text:>30}" for number, text in ring]
    assert sorted(row.rpartition(" (")[2] for row in rows) == ["FOLLOWER)", "FOLLOWER)", "LEADER)"]
    assert lines(cluster.nodetool("header", "-id", "9")) == ["There is no data group headed by node 9."]

    quiet = ["No slots are in the state of data migration, users can change membership."]
    assert lines(cluster.nodetool("migration", node=3)) == quiet
    told = json.loads(cluster.nodetool("--json", "migration").stdout)
    assert (told["change"], told["moves"], told["replication"], told["slots_left"]) == (None, [], 3, 0)
    for by in ("slots", "bytes", "points"):
        assert lines(cluster.nodetool("rebalance", "--dry-run", "--by", by))[-1].startswith(("to do: ", "nothing"))
    assert lines(cluster.nodetool("rebalance")) == ["nothing is to be done"]
    assert lines(cluster.nodetool("set-replication", "3")) == ["nothing is to be done"]
    for word, text in (("pause", "no membership change is under way"), ("resume", "no membership change is under way")):
        run = cluster.nodetool(word)
        assert (run.returncode, run.stderr) == (3, f"refused: {text}\n")


def test_slots_are_even_and_no_member_lags(cluster: Any) -> None:
    before = [int(row.rpartition("->")[2]) for row in lines(cluster.nodetool("slot"))[1:]]
    assert sorted(before) == [3_333, 3_333, 3_334]
    rows = json.loads(cluster.nodetool("--json", "groups").stdout)["groups"]
    assert all(row["lag"] >= 0 for row in rows)
    health = [json.loads(cluster.nodetool("--json", "status").stdout)["nodes"][number][1] for number in range(3)]
    assert health == ["on", "on", "on"]
