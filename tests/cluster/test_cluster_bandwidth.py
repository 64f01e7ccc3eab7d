"""Copies within a bandwidth: however narrow it is, and however many copy, no piece's time is up before it comes."""

from __future__ import annotations

import asyncio
import random
from types import SimpleNamespace
from typing import Any

import pytest
from crc32c import crc32c

from iotdb_cluster.cluster.bandwidth import Bandwidth
from iotdb_cluster.cluster.calls import Calls, Deadline
from iotdb_cluster.cluster.copying import Fetcher, GivenCopies, ListedFile, Listing, _Target
from iotdb_cluster.cluster.outbox import Channel
from iotdb_cluster.errors import OutcomeUnknown
from iotdb_cluster.limits import COPY_UNSYNCED_BYTES, COPY_UNSYNCED_BYTES_BUSY, KIB, MIB
from iotdb_cluster.simulation import SimulatedDisk
from iotdb_cluster.simulation.disk import _SimulatedFile
from iotdb_cluster.storage import FileInfo, PinnedUnit, UnitId
from tests.cluster.shell import run_virtual, world_of

GIVER, FILE_BYTES = 1, 10 * MIB


class Network:
    """Calls reach the giver, and are given up when their time is up."""

    def __init__(self, world: Any) -> None:
        self.world = world
        self.giver = Calls(GIVER, self)  # type: ignore[arg-type]

    async def call(self, node: int, channel: Channel, method: str, body: bytes, timeout_ms: float) -> memoryview:
        assert node == GIVER
        try:
            async with asyncio.timeout(timeout_ms / 1000):
                return await self.giver.call(node, method, body, Deadline(self.world, timeout_ms), channel)
        except TimeoutError:
            raise OutcomeUnknown(f"no answer to {method} within {timeout_ms:.0f} ms") from None


@pytest.mark.parametrize(("megabytes", "busy"), [(1, False), (1, True), (64, False), (64, True)])
def test_five_voters_of_two_moves_copy_at_once(megabytes: int, busy: bool) -> None:
    async def main() -> None:
        world = world_of(1)
        loop = asyncio.get_running_loop()
        settings: Any = SimpleNamespace(migration_bytes_per_s=megabytes * MIB)

        def operations() -> int:
            return int(loop.time() * 50) if busy else 0

        network = Network(world)
        data = random.Random(1).randbytes(FILE_BYTES)
        world.files.make_directories("/giver")
        file = world.files.open("/giver/f", create=True)
        file.write(0, data)
        file.close()
        info = FileInfo("f", "/giver/f", FILE_BYTES, crc32c(data), (0, 0), (0, 0), (0, 0), 0, 0)
        given = GivenCopies(world, Bandwidth(world, settings, operations))
        given.register(network.giver)

        async def voter(number: int) -> None:
            mine = world_of(number, SimulatedDisk(random.Random(number)))
            mine.files.make_directories("/v")
            released: list[int] = []
            pinned = PinnedUnit("u", (0, 0), b"", (info,), lambda: released.append(1))
            answer = given.give_units(None, [(UnitId(1, 0), pinned)])  # type: ignore[arg-type]
            listing = Listing.load(answer)
            fetcher = Fetcher(mine, Calls(number, network), Bandwidth(mine, settings, operations))  # type: ignore[arg-type]
            await fetcher.fetch(GIVER, listing.number, [(listing.files[0], "/v/f")])
            await fetcher.end(GIVER, listing.number)
            assert released
            assert mine.files.open("/v/f").read(0, FILE_BYTES) == data

        began = loop.time()
        await asyncio.gather(*(voter(number) for number in range(2, 12)))
        wanted_s = 10 * FILE_BYTES / MIB / (min(megabytes, 8) if busy else megabytes)
        assert loop.time() - began < 1.2 * wanted_s + 1
        assert busy or loop.time() - began > 0.8 * wanted_s - 1
        given.close()

    run_virtual(main, limit_s=1_000)


def test_who_is_served_is_noticed_within_a_tenth_of_a_second_and_forgotten_within_a_second() -> None:
    async def main() -> None:
        world = world_of(1)
        count = [1_000]  # of the time before
        settings: Any = SimpleNamespace(migration_bytes_per_s=64 * MIB)
        bandwidth = Bandwidth(world, settings, lambda: count[0])

        async def after(seconds: float) -> bool:
            for _ in range(round(seconds * 10)):
                await asyncio.sleep(0.1)
                bandwidth.look()
            return bandwidth.busy

        assert not await after(5)
        count[0] += 2  # as a move does by itself
        assert not await after(0.2)
        assert not await after(2)
        count[0] += 3
        assert await after(0.2)
        assert await after(0.7)
        assert not await after(0.4)
        for _ in range(20):
            count[0] += 1
            busy = await after(0.2)
        assert busy
        assert not await after(1.2)

    run_virtual(main)


@pytest.mark.parametrize(("busy", "syncs"), [(False, 1), (True, 10)], ids=["idle", "busy"])
def test_while_clients_are_served_little_waits_for_a_sync_at_once(
    monkeypatch: pytest.MonkeyPatch, busy: bool, syncs: int
) -> None:
    """A log on the same disk waits for what others have written: all of a file at once is too much."""
    found: list[int] = []
    sync = _SimulatedFile.sync

    def counted(file: _SimulatedFile) -> None:
        found.append(1)
        sync(file)

    monkeypatch.setattr(_SimulatedFile, "sync", counted)

    async def main() -> None:
        world = world_of(1)
        world.files.make_directories("/v")
        data = random.Random(1).randbytes(FILE_BYTES)
        target = _Target(world, ListedFile(0, "f", FILE_BYTES, crc32c(data)), "/v/f")
        most = COPY_UNSYNCED_BYTES_BUSY if busy else COPY_UNSYNCED_BYTES
        for offset in range(0, FILE_BYTES, 256 * KIB):
            target.write(offset, memoryview(data)[offset : offset + 256 * KIB], most)
        target.finish()
        assert world.files.open("/v/f").read(0, FILE_BYTES) == data

    run_virtual(main)
    assert abs(len(found) - syncs) <= 1
