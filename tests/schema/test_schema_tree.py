"""The tree of timeseries against a dict of paths."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, invariant, rule

from iotdb_cluster.columns import Compressor, DataType, Encoding
from iotdb_cluster.errors import CallerError, CorruptData, Status
from iotdb_cluster.schema import (
    Alter,
    PathPattern,
    SchemaTree,
    Series,
    SeriesSpec,
    TagFilter,
    check_spec,
    default_encoding,
    split_path,
)

SG = "root.a.sg"
NAMES = ["a", "a-b", "ab", "b", '"a.b"']
PATHS = st.lists(st.sampled_from(NAMES), min_size=1, max_size=4).map(lambda nodes: ".".join((SG, *nodes)))
PATTERNS = st.builds(
    lambda nodes, below, stars: PathPattern(("root", *nodes), below, stars),
    st.one_of(
        st.lists(st.sampled_from(["a", "sg", "*", "s*"]), max_size=2),
        st.lists(st.sampled_from([*NAMES, "*", "a*"]), max_size=4).map(lambda nodes: ["a", "sg", *nodes]),
        st.lists(st.sampled_from([*NAMES, "*", "a*"]), max_size=4).map(lambda nodes: ["*", "*", *nodes]),
    ),
    st.booleans(),
    st.booleans(),
)
KINDS = st.sampled_from(list(DataType))


class TreeMachine(RuleBasedStateMachine):
    """Every answer of the tree, after any history, is that of a dict of the series."""

    paths = Bundle("paths")

    def __init__(self) -> None:
        super().__init__()
        self.tree = SchemaTree(SG)
        self.model: dict[str, SeriesSpec] = {}

    @rule(target=paths, path=PATHS, kind=KINDS, tag=st.sampled_from(["", "x", "y"]))
    def create(self, path: str, kind: DataType, tag: str) -> str:
        spec = SeriesSpec(path, kind, default_encoding(kind), tags={tag: path[-1]} if tag else None)
        if path in self.model:
            with pytest.raises(CallerError) as caught:
                self.tree.create_series(spec)
            assert (caught.value.code, caught.value.message) == (
                Status.PATH_ALREADY_EXIST,
                f"Path [{path}] already exist",
            )
        else:
            assert self.tree.create_series(spec).type is kind
            self.model[path] = spec
        return path

    @rule(path=PATHS, kind=KINDS)
    def ensure(self, path: str, kind: DataType) -> None:
        (found,) = self.tree.ensure_series([SeriesSpec.default(path, kind)])
        expected = self.model.setdefault(path, SeriesSpec.default(path, kind))
        assert isinstance(found, Series)
        assert found.type is expected.type

    @rule(path=paths)
    def delete_one(self, path: str) -> None:
        expected = [path] if path in self.model else []
        assert self.tree.delete(PathPattern.exact(path)) == expected
        self.model.pop(path, None)

    @rule(pattern=PATTERNS)
    def delete(self, pattern: PathPattern) -> None:
        expected = sorted(path for path in self.model if pattern.matches_path(path))
        assert self.tree.delete(pattern) == expected
        for path in expected:
            del self.model[path]

    @rule()
    def reload(self) -> None:
        data = self.tree.dump()
        self.tree = SchemaTree.load(data)
        assert self.tree.dump() == data

    @rule(pattern=PATTERNS, offset=st.integers(0, 3), limit=st.integers(0, 3) | st.none())
    def match(self, pattern: PathPattern, offset: int, limit: int | None) -> None:
        expected = sorted(path for path in self.model if pattern.matches_path(path))
        assert [series.path for series in self.tree.match(pattern)] == expected
        assert self.tree.count(pattern) == len(expected)
        end = None if limit is None else offset + limit
        assert [series.path for series in self.tree.match(pattern, limit=limit, offset=offset)] == expected[offset:end]
        wanted = TagFilter("x", "b", contains=bool(offset))
        expected = [path for path in expected if wanted.matches(self.model[path].tags or {})]
        assert [series.path for series in self.tree.match(pattern, tag=wanted)] == expected

    @rule(pattern=PATTERNS, level=st.integers(0, 7))
    def levels(self, pattern: PathPattern, level: int) -> None:
        matching = [split_path(path) for path in self.model if pattern.matches_path(path)]
        counts = Counter(".".join(nodes[: level + 1]) for nodes in matching if len(nodes) > level)
        assert self.tree.count_by_level(pattern, level) == counts
        every = {split_path(path)[:end] for path in self.model for end in range(1, 9)} | {
            split_path(SG)[:end] for end in range(1, 4)
        }
        assert self.tree.nodes_at_level(PathPattern(pattern.nodes), level) == sorted(
            ".".join(nodes) for nodes in every if len(nodes) == level + 1 and PathPattern(pattern.nodes).matches(nodes)
        )
        exact = PathPattern(pattern.nodes, below=False)
        children = {nodes for nodes in every if len(nodes) > 1 and exact.matches(nodes[:-1])}
        assert self.tree.child_paths(PathPattern(pattern.nodes)) == sorted({".".join(nodes) for nodes in children})
        assert self.tree.child_nodes(PathPattern(pattern.nodes)) == sorted({nodes[-1] for nodes in children})

    @rule(pattern=PATTERNS)
    def devices(self, pattern: PathPattern) -> None:
        devices = {split_path(path)[:-1] for path in self.model}
        expected = sorted(".".join(device) for device in devices if pattern.matches(device))
        assert self.tree.devices(pattern) == expected
        assert self.tree.devices(pattern, limit=2, offset=1) == expected[1:3]
        assert self.tree.count_devices(pattern) == len(expected)

    @rule(path=PATHS)
    def lookup(self, path: str) -> None:
        found = self.tree.get(path)
        assert (found is not None) == (path in self.model)
        *device, name = split_path(path)
        assert self.tree.resolve(".".join(device), [name, "nothing"]) == [found, None]
        nodes = split_path(path)
        reached = max([sum(1 for _ in _common(nodes, split_path(other))) for other in (*self.model, SG)])
        assert self.tree.reach(nodes) == reached

    @invariant()
    def size(self) -> None:
        assert len(self.tree) == len(self.model)

    @invariant()
    def dumps_are_canonical(self) -> None:
        fresh = SchemaTree(SG)
        for _, spec in sorted(self.model.items()):
            fresh.create_series(spec)
        assert fresh.dump() == self.tree.dump()


def _common(left: tuple[str, ...], right: tuple[str, ...]) -> list[str]:
    common = []
    for mine, theirs in zip(left, right, strict=False):
        if mine != theirs:
            break
        common.append(mine)
    return common


TestTree = TreeMachine.TestCase
TestTree.settings = settings(max_examples=60, stateful_step_count=25, deadline=None)


# --- what is declared -------------------------------------------------------------------------------------------------


def spec_of(path: str, **declared: object) -> SeriesSpec:
    return SeriesSpec(path, DataType.FLOAT, Encoding.RLE, **declared)  # type: ignore[arg-type]


@pytest.mark.parametrize("kind", list(DataType))
@pytest.mark.parametrize("encoding", list(Encoding))
def test_legal_encodings(kind: DataType, encoding: Encoding) -> None:
    legal = {
        DataType.BOOLEAN: "PLAIN RLE",
        DataType.INT32: "PLAIN RLE TS_2DIFF GORILLA",
        DataType.INT64: "PLAIN RLE TS_2DIFF GORILLA",
        DataType.FLOAT: "PLAIN RLE TS_2DIFF GORILLA GORILLA_V1",
        DataType.DOUBLE: "PLAIN RLE TS_2DIFF GORILLA GORILLA_V1",
        DataType.TEXT: "PLAIN",
    }[kind].split()
    spec = SeriesSpec("root.a.b", kind, encoding)
    if encoding.name in legal:
        check_spec(spec)
        return
    with pytest.raises(CallerError) as caught:
        check_spec(spec)
    assert caught.value.message == f"encoding {encoding.name} does not support {kind.name}"
    assert caught.value.code is Status.METADATA_ERROR


@pytest.mark.parametrize(
    ("declared", "code", "message"),
    [
        ({"compressor": Compressor.LZO}, 303, "compressor LZO is not supported"),
        ({"properties": {"max_point_number": "x"}}, 318, "MAX_POINT_NUMBER should be"),
        ({"properties": {"loss": "sdt"}}, 318, "SDT compression deviation is required. Failed to create timeseries"),
        ({"properties": {"loss": "sdt", "compdev": "-1"}}, 318, "SDT compression deviation cannot be negative."),
        ({"properties": {"loss": "sdt", "compdev": "q"}}, 318, "SDT compression deviation formatting error."),
        ({"properties": {"loss": "SDT", "compdev": "1", "compmintime": "9", "compmaxtime": "8"}}, 318, "SDT"),
        ({"tags": {"k": "v" * 700}}, 303, "the tags and attributes of TimeSeries [root.a.sg.d.s] take 701 bytes"),
        ({"tags": {"k": "1"}, "attributes": {"k": "1"}}, 411, "Tag and attribute shouldn't have the same property key"),
    ],
)
def test_refused_declarations(declared: Mapping[str, object], code: int, message: str) -> None:
    tree = SchemaTree(SG)
    with pytest.raises(CallerError) as caught:
        tree.create_series(spec_of(f"{SG}.d.s", **declared))
    assert caught.value.code == code
    assert caught.value.message.startswith(message)
    assert len(tree) == 0


def test_decimals_at_read() -> None:
    tree = SchemaTree(SG)
    assert tree.create_series(spec_of(f"{SG}.a")).decimals() == 2
    assert tree.create_series(spec_of(f"{SG}.b", properties={"max_point_number": "5"})).decimals() == 5
    assert tree.create_series(SeriesSpec.default(f"{SG}.c", DataType.DOUBLE)).decimals() is None
    assert tree.create_series(SeriesSpec.default(f"{SG}.d", DataType.INT32)).decimals() is None


@pytest.mark.parametrize("path", ["root.a.sg", "root.a", "root.b.c.d", "root.a.sg.time", "root.a.sg.a;b"])
def test_paths_that_make_no_series_here(path: str) -> None:
    tree = SchemaTree(SG)
    (found,) = tree.ensure_series([SeriesSpec.default(path, DataType.INT32)])
    assert isinstance(found, CallerError)
    assert found.code is Status.PATH_ILLEGAL


# --- aliases ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def turbine() -> SchemaTree:
    tree = SchemaTree("root.turbine")
    tree.create_series(
        spec_of(
            "root.turbine.d1.s1",
            alias="temperature",
            tags={"tag1": "v1", "tag2": "v2"},
            attributes={"attr1": "v1", "attr2": "v2"},
        )
    )
    tree.create_series(spec_of("root.turbine.d1.s2", alias="status", tags={"tag1": "v1", "tag3": "v3"}))
    tree.create_series(spec_of("root.turbine.d2.s1", alias="temperature", tags={"tag1": "v2", "unit": "c"}))
    return tree


def test_alias_finds_its_series(turbine: SchemaTree) -> None:
    found = turbine.get("root.turbine.d1.temperature")
    assert found is not None
    assert (found.path, found.by_alias, found.shown) == ("root.turbine.d1.s1", True, "root.turbine.d1.temperature")
    by_pattern = turbine.match(PathPattern.parse("root.turbine.*.temperature"))
    assert [(series.path, series.by_alias) for series in by_pattern] == [
        ("root.turbine.d1.s1", True),
        ("root.turbine.d2.s1", True),
    ]
    assert turbine.count(PathPattern.parse("root.turbine.*.temperature")) == 2
    assert [series.by_alias for series in turbine.match(PathPattern.parse("root.turbine"))] == [False] * 3
    (ensured,) = turbine.ensure_series([SeriesSpec.default("root.turbine.d1.status", DataType.TEXT)])
    assert isinstance(ensured, Series)
    assert (ensured.path, ensured.type) == ("root.turbine.d1.s2", DataType.FLOAT)


@pytest.mark.parametrize(
    ("path", "alias", "code", "message"),
    [
        ("root.turbine.d1.s3", "status", 299, "Alias [status] for Path [root.turbine.d1.s3] already exist"),
        ("root.turbine.d1.s3", "s1", 299, "Alias [s1] for Path [root.turbine.d1.s3] already exist"),
        ("root.turbine.d1.s3", "s3", 299, "Alias [s3] for Path [root.turbine.d1.s3] already exist"),
        ("root.turbine.d1.status", None, 300, "Path [root.turbine.d1.status] already exist"),
    ],
)
def test_alias_conflicts(turbine: SchemaTree, path: str, alias: str | None, code: int, message: str) -> None:
    before = turbine.dump()
    with pytest.raises(CallerError) as caught:
        turbine.create_series(spec_of(path, alias=alias))
    assert (caught.value.code, caught.value.message) == (code, message)
    assert turbine.dump() == before


def test_alias_goes_with_its_series(turbine: SchemaTree) -> None:
    turbine.delete(PathPattern.parse("root.turbine.d1.temperature"))
    assert turbine.get("root.turbine.d1.temperature") is None
    turbine.create_series(spec_of("root.turbine.d1.temperature"))
    assert not turbine.match(PathPattern.parse("root.turbine.d1.temperature"))[0].by_alias


# --- ALTER ------------------------------------------------------------------------------------------------------------


def test_alter_as_in_the_recorded_session(turbine: SchemaTree) -> None:
    path = "root.turbine.d1.s1"
    for change in (
        Alter.rename("tag1", "tagNew1"),
        Alter.set({"tagNew1": "newV1", "attr1": "newV1"}),
        Alter.drop("tag2", "attr2", "nothere"),
        Alter.add_tags({"tag3": "v3", "tag4": "v4"}),
        Alter.add_attributes({"attr3": "v3"}),
        Alter.upsert("heat", {"tag3": "v3new", "tag5": "v5"}, {"attr3": "v3new"}),
    ):
        turbine.alter(path, Alter.from_json(change.to_json()))
    found = turbine.get("root.turbine.d1.heat")
    assert found is not None
    assert found.tags == {"tagNew1": "newV1", "tag3": "v3new", "tag4": "v4", "tag5": "v5"}
    assert found.attributes == {"attr1": "newV1", "attr3": "v3new"}
    assert turbine.get("root.turbine.d1.temperature") is None
    assert [series.path for series in turbine.match(PathPattern.parse("root"), tag=TagFilter("tag1", "v1"))] == [
        "root.turbine.d1.s2"
    ]
    assert turbine.has_tag("tagNew1")
    assert not turbine.has_tag("tag2")
    assert SchemaTree.load(turbine.dump()).get("root.turbine.d1.heat") == found


P = "TimeSeries [root.turbine.d1.s1]"


@pytest.mark.parametrize(
    ("change", "code", "message"),
    [
        (Alter.rename("x", "y"), 303, f"{P} does not have tag/attribute [x]."),
        (Alter.rename("tag1", "attr1"), 303, f"{P} already has a tag/attribute named [attr1]."),
        (Alter.set({"tag1": "1", "x": "y"}), 303, f"{P} does not have tag/attribute [x]."),
        (Alter.add_tags({"tag1": "y"}), 303, f"{P} already has the tag [tag1]."),
        (Alter.add_tags({"attr1": "y"}), 303, f"{P} already has the attribute [attr1]."),
        (Alter.add_attributes({"attr1": "y"}), 303, f"{P} already has the attribute [attr1]."),
        (Alter.upsert(alias="status", tags={"z": "1"}), 303, "The alias already exists."),
        (Alter.upsert(alias="s2"), 303, "The alias already exists."),
        (Alter.upsert(tags={"z": "1"}, attributes={"z": "1"}), 411, "Tag and attribute shouldn't have the same"),
        (Alter.add_tags({"z": "v" * 800}), 303, f"the tags and attributes of {P} take"),
    ],
)
def test_refused_alterations_change_nothing(turbine: SchemaTree, change: Alter, code: int, message: str) -> None:
    before = turbine.dump()
    with pytest.raises(CallerError) as caught:
        turbine.alter("root.turbine.d1.s1", change)
    assert caught.value.code == code
    assert caught.value.message.startswith(message)
    assert turbine.dump() == before


def test_alter_of_what_is_not_there() -> None:
    tree = SchemaTree(SG)
    with pytest.raises(CallerError) as caught:
        tree.alter(f"{SG}.d.s", Alter.drop("x"))
    assert (caught.value.code, caught.value.message) == (304, f"Path [{SG}.d.s] does not exist")
    tree.create_series(spec_of(f"{SG}.d.s"))
    with pytest.raises(CallerError) as caught:
        tree.alter(f"{SG}.d.s", Alter.rename("x", "y"))
    assert caught.value.message == f"TimeSeries [{SG}.d.s] does not have any tag/attribute."


# --- checkpoints ------------------------------------------------------------------------------------------------------


@given(st.data())
@settings(max_examples=60)
def test_damaged_checkpoints_are_refused(data: st.DataObject) -> None:
    tree = SchemaTree(SG)
    for name in "abc":
        tree.create_series(spec_of(f"{SG}.d.{name}", alias=f"alias_{name}"))
    saved = bytearray(tree.dump())
    at = data.draw(st.integers(0, len(saved) - 1))
    saved[at] ^= data.draw(st.integers(1, 255))
    with pytest.raises(CorruptData):
        SchemaTree.load(bytes(saved))
    with pytest.raises(CorruptData):
        SchemaTree.load(tree.dump()[:at])


def test_specs_and_series_travel_as_json() -> None:
    spec = spec_of(f"{SG}.d.s", alias="x", tags={"t": "1"}, attributes={"a": "2"}, properties={"p": "3"})
    assert SeriesSpec.from_json(spec.to_json()) == spec
    plain = SeriesSpec.default(f"{SG}.d.s2", DataType.TEXT)
    assert SeriesSpec.from_json(plain.to_json()).to_json() == plain.to_json()
    tree = SchemaTree(SG)
    for one in (spec, plain):
        series = tree.create_series(one)
        assert Series.from_json(series.to_json()) == series


@pytest.mark.parametrize(
    "value",
    [None, [], ["p", 9, 0, 1], ["p", 0, 0, 1, None, {}], [1, 0, 0, 1], ["p", 0, 0, 1, 5, {}, {}, {}],
     ["p", 0, 0, 1, None, {"a": 1}, {}, {}], ["p", 0, 0, 1, None, [], {}, {}]],
)  # fmt: skip
def test_broken_specs_are_refused(value: object) -> None:
    with pytest.raises(CorruptData):
        SeriesSpec.from_json(value)


@pytest.mark.parametrize("changed", [{"action": "x"}, {"keys": ["a"]}, {"keys": [1, 2]}, {"alias": 3}, {"tags": []}])
def test_broken_changes_are_refused(changed: dict[str, object]) -> None:
    with pytest.raises(CorruptData):
        Alter.from_json({**Alter.rename("a", "b").to_json(), **changed})
    with pytest.raises(CorruptData):
        Alter.from_json({})
