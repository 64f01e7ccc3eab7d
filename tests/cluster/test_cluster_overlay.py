"""The overlay through which a backup is opened, against a real directory on which the same is done."""

from __future__ import annotations

import random
import shutil
from pathlib import Path

import pytest

from iotdb_cluster.cluster.overlay import Overlay
from iotdb_cluster.world import FileSystem, RealFileSystem

NAMES = ("a", "b", "c.new", "d")


def change(files: FileSystem, root: str, rng: random.Random) -> object:
    """One random operation, and what came of it."""
    path, other = (f"{root}/{rng.choice(NAMES)}" for _ in range(2))
    what = rng.randrange(7)
    offset, data = rng.randrange(12), rng.randbytes(rng.randrange(9))
    try:
        if what == 0:
            files.remove(path) if files.exists(path) else None
        elif what == 1 and path != other:
            files.rename(path, other)
        elif what == 2:
            return sorted(files.list(root))
        elif what == 3:
            return files.exists(path)
        else:
            file = files.open(path, create=what == 4)
            if what == 4:
                file.write(offset, data)
                file.sync()
            elif what == 5:
                file.truncate(offset)
            found = (file.size(), file.read(offset // 2, 7))
            file.close()
            return found
    except FileNotFoundError:
        return "not there"
    return None


@pytest.mark.parametrize("seed", range(100))
def test_it_does_as_a_real_directory_and_changes_nothing(seed: int, tmp_path: Path) -> None:
    below, twin = tmp_path / "below", tmp_path / "twin"
    below.mkdir()
    for name in NAMES[: seed % 5]:
        (below / name).write_bytes(random.Random(name).randbytes(10))
    shutil.copytree(below, twin)
    before = {path.name: path.read_bytes() for path in below.iterdir()}
    real, overlay = RealFileSystem(), Overlay(RealFileSystem())
    for step in range(60):
        told = change(real, str(twin), random.Random(f"{seed} {step}"))
        assert change(overlay, str(below), random.Random(f"{seed} {step}")) == told
    assert {path.name: path.read_bytes() for path in below.iterdir()} == before
