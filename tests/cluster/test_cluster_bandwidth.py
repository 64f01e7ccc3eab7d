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
from iotdb_cluster.cluster.copying import Fetcher, GivenCopies, Listing
from iotdb_cluster.cluster.outbox import Channel
from iotdb_cluster.errors import OutcomeUnknown
from iotdb_cluster.limits import MIB
from iotdb_cluster.simulation import SimulatedDisk
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
            answer = given.give(None, [(UnitId(1, 0), pinned)])  # type: ignore[arg-type]
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
