"""Slots, ring and table against naive computations."""

from __future__ import annotations

import struct
from collections import Counter

import mmh3
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from iotdb_cluster.errors import InvariantViolation
from iotdb_cluster.limits import SLOTS
from iotdb_cluster.partition import (
    PartitionTable,
    Ring,
    SlotMap,
    SlotStrategy,
    partition_bounds,
    partition_of,
    schema_slot_of,
    slot_of,
)

TIMES = st.integers(-(1 << 63), (1 << 63) - 1)
NODES = st.sets(st.integers(1, 40), min_size=1, max_size=9)


@given(st.text(min_size=1, max_size=20).filter(lambda text: text.isprintable()), TIMES)
@settings(deadline=None)
def test_slot_is_the_documented_hash(path: str, partition: int) -> None:
    h1, h2 = mmh3.hash64(path.encode() + struct.pack(">q", partition), 2333, signed=False)
    assert slot_of(path, partition) == (h1 + h2) % 2**32 % SLOTS
    assert schema_slot_of(path) == slot_of(path, 0)


def test_slots_are_pinned() -> None:
    """Stored data lies where these say: a change of any of them loses it."""
    assert [slot_of("root.sg", partition) for partition in (0, 1, -1, 2_000)] == [5806, 6449, 4281, 7132]
    assert slot_of("root.汉字", 7) == 6263


def test_slots_spread_evenly() -> None:
    counts = Counter(slot_of(f"root.sg{group}", partition) for group in range(100) for partition in range(500))
    # 50,000 balls in 10,000 bins, five each on average: a fair hash leaves under 1 in 100 empty and no pile.
    assert len(counts) > 9_800
    assert max(counts.values()) < 25
    by_owner = Counter(slot * 3 // SLOTS for slot in counts.elements())
    assert all(abs(count - 50_000 / 3) < 800 for count in by_owner.values())


@given(st.integers(0, 10**18 - 1), st.integers(1, 9), TIMES)
@settings(deadline=None)
def test_numbered_storage_groups_go_round_robin(number: int, founders: int, partition: int) -> None:
    slots = SlotMap(SlotStrategy.ROUND_ROBIN, founders)
    table = PartitionTable.initial(range(1, founders + 1))
    slot = slots.slot_of(f"root.sg_{number}", partition)
    assert table.owner(slot)[0] == 1 + number % founders
    assert slot == slots.schema_slot_of(f"root.other.x_{number}")
    assert SlotMap(SlotStrategy.HASH, founders).slot_of("root.sg_1", partition) == slot_of("root.sg_1", partition)


@pytest.mark.parametrize("name", ["root.sg", "root.sg1", "root.sg_", "root.sg_1x", "root.sg_" + "1" * 19, "root.sg_²"])
def test_other_storage_groups_are_hashed(name: str) -> None:
    assert SlotMap(SlotStrategy.ROUND_ROBIN, 3).slot_of(name, 5) == slot_of(name, 5)


def test_numbered_storage_groups_spread_within_a_run() -> None:
    """However many there are, each tenth of all slots has its part: so nodes that join get theirs."""
    slots = SlotMap(SlotStrategy.ROUND_ROBIN, 2)
    for count in (40, 100, 1_000, 20_000):
        tenths = Counter(slots.schema_slot_of(f"root.sg_{number}") * 10 // SLOTS for number in range(count))
        assert max(tenths.values()) <= count / 10 + 4
        assert min(tenths.values()) >= count / 10 - 4
    assert [slots.schema_slot_of(f"root.sg_{number}") for number in range(6)] == [0, 5000, 3090, 8090, 1180, 6180]


@given(st.lists(TIMES, max_size=20), st.integers(1, 10**12), st.sampled_from([">i8", "<i8"]))
@settings(deadline=None)
def test_partitions_are_floors(times: list[int], interval: int, dtype: str) -> None:
    found = partition_of(np.array(times, dtype), interval)
    for time, partition in zip(times, found.tolist(), strict=True):
        assert partition == partition_of(time, interval)
        first, last = partition_bounds(partition, interval)
        assert first <= time <= last
        assert last - first + 1 == interval


@given(NODES, st.integers(1, 6))
@settings(deadline=None)
def test_ring_members(nodes: set[int], replication: int) -> None:
    ring = Ring(nodes)
    clockwise = sorted(nodes) * 3
    for header in nodes:
        at = clockwise.index(header)
        expected = clockwise[at : at + min(replication, len(nodes))]
        assert list(ring.members(header, replication)) == expected
    for node in nodes:
        groups = ring.groups_of(node, replication)
        assert len(groups) == min(replication, len(nodes))
        assert all(node in ring.members(header, replication) for header in groups)


def test_ring_knows_its_nodes() -> None:
    with pytest.raises(InvariantViolation):
        Ring([1, 2]).members(3, 2)
    with pytest.raises(InvariantViolation):
        Ring([0, 1])


@given(NODES)
@settings(deadline=None)
def test_initial_table_is_even_and_deterministic(nodes: set[int]) -> None:
    table = PartitionTable.initial(nodes)
    assert table == PartitionTable.initial(sorted(nodes, reverse=True))
    counts = table.counts()
    assert set(counts) == nodes
    assert max(counts.values()) - min(counts.values()) <= 1
    assert sum(counts.values()) == SLOTS
    assert sum(len(table.slots_of(node)) for node in nodes) == SLOTS
    assert {table.owner(slot)[1] for slot in range(SLOTS)} == {1}


@given(st.lists(st.tuples(st.integers(0, SLOTS - 1), st.integers(1, 3)), max_size=30))
@settings(deadline=None)
def test_decisions_against_a_dict(decisions: list[tuple[int, int]]) -> None:
    table = PartitionTable.initial([1, 2, 3])
    model = {slot: table.owner(slot) for slot in range(SLOTS)}
    for slot, group in decisions:
        epoch = model[slot][1] + 1
        with pytest.raises(InvariantViolation):
            table.decide(slot, group, epoch - 1)
        table.decide(slot, group, epoch)
        model[slot] = (group, epoch)
    assert all(table.owner(slot) == owner for slot, owner in model.items())
    assert PartitionTable.load(table.dump()) == table
