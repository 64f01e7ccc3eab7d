"""A snapshot that is walked while the tree changes is the tree as it was; the index of tags stays right."""

from __future__ import annotations

import random

import pytest

from iotdb_cluster.columns import DataType, Encoding
from iotdb_cluster.errors import CallerError, InvariantViolation
from iotdb_cluster.schema import Alter, PathPattern, SchemaTree, SeriesSpec, TagFilter

NAMES = ["a", "b", "a-b", "c"]


def change(rng: random.Random, tree: SchemaTree) -> None:
    path = ".".join(["root.sg", *(rng.choice(NAMES) for _ in range(rng.randint(1, 4)))])
    step = rng.random()
    try:
        if step < 0.6:
            tags = {key: rng.choice("xy") for key in rng.sample(["k", "l"], rng.randrange(3))}
            alias = f"alias{rng.randrange(30)}" if rng.random() < 0.3 else None
            tree.create_series(SeriesSpec(path, DataType.INT32, Encoding.PLAIN, alias=alias, tags=tags))
        elif step < 0.8:
            tree.alter(path, Alter.upsert(alias=f"alias{rng.randrange(30)}", tags={"k": rng.choice("xyz")}))
        elif step < 0.97:
            tree.delete(PathPattern.parse(path, below=False))
        else:
            tree.delete(PathPattern.parse(path))
    except CallerError:
        pass


@pytest.mark.parametrize("seed", range(60))
def test_what_changes_meanwhile_is_not_in_it(seed: int) -> None:
    rng = random.Random(seed)
    tree = SchemaTree("root.sg")
    for _ in range(rng.choice([0, 5, 80])):
        change(rng, tree)
    for _ in range(3):
        before = tree.dump()
        snapshot = tree.snapshot()
        more = True
        while more:
            for _ in range(rng.choice([0, 0, 1, 10])):
                change(rng, tree)
            more = snapshot.step(rng.choice([1, 1, 3, 100]))
        for _ in range(5):
            change(rng, tree)
        assert snapshot.encode() == before
        assert SchemaTree.load(tree.dump()).dump() == tree.dump()


@pytest.mark.parametrize("seed", range(20))
def test_several_may_be_walked_at_once(seed: int) -> None:
    """Each is of its own moment; one that nobody walks to its end is forgotten with its last user."""
    rng = random.Random(seed)
    tree = SchemaTree("root.sg")
    walked = []
    for _ in range(6):
        for _ in range(rng.choice([1, 10, 40])):
            change(rng, tree)
            for _, snapshot in walked:
                snapshot.step(rng.choice([0, 0, 1, 3]))
        walked.append((tree.dump(), tree.snapshot()))
    for before, snapshot in walked:
        while snapshot.step():
            change(rng, tree)
        assert snapshot.encode() == before
    tree.snapshot()
    assert not tree._snapshots


@pytest.mark.parametrize("seed", range(20))
def test_tags_find_what_a_walk_finds(seed: int) -> None:
    rng = random.Random(seed)
    tree = SchemaTree("root.sg")
    everything = PathPattern.parse("root.sg")
    for _ in range(120):
        change(rng, tree)
        key, value = rng.choice("klm"), rng.choice("xyz")
        pattern = rng.choice([everything, PathPattern.parse("root.sg.a"), PathPattern.parse("root.sg.*.b")])
        walked = [series.path for series in tree.match(pattern) if series.tags.get(key) == value]
        assert [series.path for series in tree.match(pattern, tag=TagFilter(key, value))] == walked
        assert tree.has_tag(key) == any(key in series.tags for series in tree.match(everything))


def test_a_snapshot_that_was_not_walked_is_our_mistake() -> None:
    tree = SchemaTree("root.sg")
    tree.create_series(SeriesSpec.default("root.sg.d.s", DataType.INT32))
    snapshot = tree.snapshot()
    with pytest.raises(InvariantViolation):
        snapshot.encode()
