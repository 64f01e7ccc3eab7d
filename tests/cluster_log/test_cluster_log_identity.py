"""The node's identity: all directories or none, one incarnation, and starts that are counted through any crash."""

from __future__ import annotations

import random

import pytest

from iotdb_cluster.cluster.log import Identity, open_identity, read_identity, set_identifier
from iotdb_cluster.errors import CorruptData, InvariantViolation, SystemFault
from iotdb_cluster.simulation import PowerCut, SimulatedDisk

LOG = "/node/log"
DATA = ("/node/data1", "/mnt/data2")


def disk_of(seed: int = 0) -> SimulatedDisk:
    return SimulatedDisk(random.Random(seed), directories=("/node", "/mnt"))


def test_starts_are_counted_and_the_rest_stays() -> None:
    disk = disk_of()
    assert read_identity(disk, LOG) is None
    first = open_identity(disk, LOG, DATA, disk.random)
    assert first.identifier == 0
    assert first.incarnation > 0
    assert first.start_number == 1
    given = set_identifier(disk, LOG, first, 3)
    disk.power_cut()
    again = open_identity(disk, LOG, DATA, disk.random)
    assert again == Identity(3, first.incarnation, 2)
    assert set_identifier(disk, LOG, again, 3) == again
    with pytest.raises(InvariantViolation):
        set_identifier(disk, LOG, given, 4)
    assert read_identity(disk, LOG) == again


def test_all_directories_or_none() -> None:
    disk = disk_of()
    open_identity(disk, LOG, DATA, disk.random)
    disk.remove(f"{DATA[1]}/incarnation")
    with pytest.raises(SystemFault, match="/mnt/data2 is without the mark"):
        open_identity(disk, LOG, DATA, disk.random)
    with pytest.raises(SystemFault, match="/node/data3"):
        open_identity(disk, LOG, (DATA[0], "/node/data3"), disk.random)
    disk.remove(f"{LOG}/identity")
    with pytest.raises(SystemFault, match="/node/data1 belongs to a node"):
        open_identity(disk, LOG, DATA, disk.random)


def test_mixed_up_and_damaged_directories() -> None:
    disk = disk_of()
    open_identity(disk, LOG, DATA, disk.random)
    open_identity(disk, "/node/other", ("/node/other-data",), disk.random)
    with pytest.raises(SystemFault, match="mixed up"):
        open_identity(disk, LOG, ("/node/other-data",), disk.random)
    disk.flip(f"{LOG}/identity", 10, 2)
    with pytest.raises(CorruptData, match=f"{LOG}/identity offset 0"):
        open_identity(disk, LOG, DATA, disk.random)


def test_start_numbers_never_repeat_whatever_call_the_power_goes_at() -> None:
    for call in range(1, 150):
        disk = SimulatedDisk(random.Random(call))
        call = 1 + call % 75
        highest = 0
        incarnation = 0
        disk.cut_at = call
        disk.cut_power = bool(call % 3)
        for _ in range(6):
            try:
                identity = open_identity(disk, LOG, DATA, disk.random)
                assert identity.start_number > highest
                assert incarnation in (0, identity.incarnation)
                highest, incarnation = identity.start_number, identity.incarnation
                if identity.identifier == 0:
                    set_identifier(disk, LOG, identity, 5)
            except PowerCut:
                disk.power_on()
            else:
                disk.power_cut(random.Random(call))
        assert highest >= 5
        assert open_identity(disk, LOG, DATA, disk.random).identifier == 5
