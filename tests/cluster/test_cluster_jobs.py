"""Long work of operators: how it ends is always told, and what it pinned is let go."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from types import SimpleNamespace
from typing import Any

import crc32c
import pytest

from iotdb_cluster.cluster.backup import GIVEN_IDLE_MS_MAX, GIVEN_MAX, Backup
from iotdb_cluster.cluster.bandwidth import Bandwidth
from iotdb_cluster.cluster.calls import Calls
from iotdb_cluster.cluster.copying import Fetcher, GivenCopies
from iotdb_cluster.cluster.jobs import Job, Jobs
from iotdb_cluster.cluster.settings import NodeAddress, Settings
from iotdb_cluster.data import CopiedFile
from iotdb_cluster.errors import CallerError, CorruptData, InvariantViolation, Status
from iotdb_cluster.packing import pack, unpack
from tests.cluster.shell import run_virtual, world_of

HERE = NodeAddress("127.0.0.1", 9003, 40010, 55560)


@pytest.mark.parametrize(
    ("error", "told", "ends_node"),
    [
        (None, "", False),
        (CallerError(Status.ILLEGAL_PARAMETER, "not so"), "not so", False),
        (CorruptData("bad bytes"), "bad bytes", False),
        (KeyError("files"), "a bug of this program: KeyError('files')", False),
        (InvariantViolation("1 is not 2"), "a bug of this program: InvariantViolation('1 is not 2')", True),
    ],
)
def test_how_a_job_ended_is_told(error: Exception | None, told: str, ends_node: bool) -> None:
    async def main() -> None:
        faults: list[BaseException] = []
        jobs = Jobs(world_of(1), faults.append)

        async def work(job: Job) -> dict[str, Any]:
            job.enter("works", 2, "things")
            if error is not None:
                raise error
            return {"done": True}

        jobs.start("backup", work)
        with pytest.raises(CallerError, match="a backup runs on this node already"):
            jobs.start("restore", work)
        await asyncio.sleep(0.1)
        seen = jobs.progress()
        assert (seen["ended"], seen["failure"], seen["result"]) == (True, told, None if error else {"done": True})
        assert faults == ([error] if ends_node else [])
        await jobs.close()

    run_virtual(main)


class Giver(Backup):
    """The leader of group 7, whose copies are made at once, or when `made` says so."""

    def __init__(self, made: Callable[[], Awaitable[None]]) -> None:
        async def barrier(*_: Any, **__: Any) -> int:
            return 1

        group = SimpleNamespace(id=7, leads=True)
        state = SimpleNamespace(
            members_changed=1,
            table=SimpleNamespace(slots_of=lambda _: []),
            moves=(),
            move=lambda _: None,
        )
        data = SimpleNamespace(number=7, slots=dict, imports=dict, moves_away=list)
        world, settings = world_of(1), Settings(address=HERE, seeds=(HERE,), directory="/d")
        calls = Calls(1, None)  # type: ignore[arg-type]
        bandwidth = Bandwidth(world, settings, lambda: 0)
        self.world, self.copies = world, GivenCopies(world, bandwidth)
        parts: list[Any] = [
            world,
            SimpleNamespace(groups={7: group}, read_barrier=barrier),
            {7: SimpleNamespace(data=data)},
            SimpleNamespace(state=state, index=1, barrier=barrier),
            calls,
            SimpleNamespace(run=lambda _, attempt, deadline, **__: attempt(1, deadline)),
            self._made,
            self.copies,
            Fetcher(world, calls, bandwidth),
        ]
        super().__init__(*parts)
        self.register(calls)
        self.copies.register(calls)
        self.files: tuple[CopiedFile, ...] = ()
        self._wait = made
        self.released = 0

    async def _made(self, group: int) -> Any:
        assert group == 7
        await self._wait()

        def release() -> None:
            self.released += 1

        return None, SimpleNamespace(index=1, term=1, files=self.files, release=release)

    async def open(self) -> int:
        deadline: Any = SimpleNamespace(left_ms=5_000, check=lambda _: None)
        return int(unpack(await self._open_call(memoryview(pack({"group": 7})), deadline))[0]["copy"])


def test_a_copy_that_nobody_fetches_any_more_is_let_go() -> None:
    """Its taker is gone: what is pinned would keep its place on the disk until another backup is taken."""

    async def main() -> None:
        backup = Giver(lambda: asyncio.sleep(0))
        sweep = asyncio.ensure_future(backup.copies.run())
        await backup.open()
        await asyncio.sleep(GIVEN_IDLE_MS_MAX / 2000)
        assert not backup.released
        await asyncio.sleep(GIVEN_IDLE_MS_MAX / 1000)
        assert backup.released == 1
        sweep.cancel()
        await asyncio.wait([sweep])

    run_virtual(main, limit_s=3_600)


def test_a_copy_that_took_long_to_make_is_not_let_go_at_once() -> None:
    async def main() -> None:
        backup = Giver(lambda: asyncio.sleep(GIVEN_IDLE_MS_MAX / 1000 - 10))
        sweep = asyncio.ensure_future(backup.copies.run())
        await backup.open()
        await asyncio.sleep(60)
        assert not backup.released
        sweep.cancel()
        await asyncio.wait([sweep])

    run_virtual(main, limit_s=3_600)


def test_so_many_copies_are_given_at_once_also_while_they_are_made() -> None:
    async def main() -> None:
        backup = Giver(lambda: asyncio.sleep(1))
        outcomes = await asyncio.gather(*(backup.open() for _ in range(GIVEN_MAX + 3)), return_exceptions=True)
        refused = [one for one in outcomes if isinstance(one, CallerError)]
        assert len(refused) == 3
        assert all(one.code == Status.WRITE_PROCESS_REJECT for one in refused)
        backup.copies.close()
        assert backup.released == GIVEN_MAX

    run_virtual(main)


@pytest.mark.parametrize("broken", [False, True], ids=["whole", "broken"])
def test_a_group_is_copied_or_its_broken_file_is_named(broken: bool) -> None:
    async def main() -> None:
        backup = Giver(lambda: asyncio.sleep(0))
        data = b"some points"
        listed = crc32c.crc32c(b"other points" if broken else data)
        backup.files = (
            CopiedFile("checkpoint", 4, crc32c.crc32c(b"head"), data=b"head"),
            CopiedFile("units/1.0.7/1.chunk", len(data), listed, data=data),
        )
        job = Job(1, "backup", 0.0)
        if broken:
            with pytest.raises(CorruptData, match=r"node 1, group 7: units/1.0.7/1.chunk does not match its checksum"):
                await backup._copy_group(7, "/backup", job, "group 1 of 1")
        else:
            told = await backup._copy_group(7, "/backup", job, "group 1 of 1")
            assert (told["group"], told["index"], len(told["files"])) == (7, 1, 2)
            file = backup.world.files.open("/backup/group-7/units/1.0.7/1.chunk")
            assert file.read(0, 100) == data
            assert (job.done, job.total) == (15, 15)
        assert backup.released == 1

    run_virtual(main)
