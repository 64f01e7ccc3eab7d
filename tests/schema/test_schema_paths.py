"""Paths, names and patterns; patterns against a second, slower computation."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from iotdb_cluster.errors import CallerError, Status
from iotdb_cluster.schema import (
    PathPattern,
    check_measurement,
    check_series_path,
    check_storage_group_path,
    join_path,
    parent_path,
    split_device,
    split_path,
    storage_group_for,
)

NAMES = st.sampled_from(["a", "ab", "abc", "b", '"a.b"', '"a"', "a-b", "汉", '"x\\".y"'])
PATHS = st.lists(NAMES, min_size=0, max_size=4).map(lambda nodes: ("root", *nodes))
PATTERN_NODES = st.one_of(NAMES, st.sampled_from(["*", "a*", "ab*", "b*"]))
PATTERNS = st.builds(
    lambda nodes, below, stars: PathPattern(("root", *nodes), below, stars),
    st.lists(PATTERN_NODES, max_size=4),
    st.booleans(),
    st.booleans(),
)


def naive_match(pattern: PathPattern, path: tuple[str, ...]) -> bool:
    if not pattern.nodes:
        return pattern.below or not path
    if not path:
        return False
    head, name = pattern.nodes[0], path[0]
    fits = head in ("*", name) or (pattern.prefix_stars and head[-1] == "*" and name[: len(head) - 1] == head[:-1])
    return fits and naive_match(PathPattern(pattern.nodes[1:], pattern.below, pattern.prefix_stars), path[1:])


ALL_PATHS = [("root",)]
for _ in range(3):
    ALL_PATHS += [
        (*path, name)
        for path in ALL_PATHS
        for name in ("a", "ab", "abc", "b", '"a.b"')
        if (*path, name) not in ALL_PATHS
    ]


@given(PATTERNS, PATHS)
def test_match_and_regex_agree_with_the_naive_matcher(pattern: PathPattern, path: tuple[str, ...]) -> None:
    expected = naive_match(pattern, path)
    assert pattern.matches(path) is expected
    assert pattern.matches_path(join_path(path)) is expected
    assert bool(re.fullmatch(pattern.regex(), join_path(path))) is expected


@given(PATTERNS, PATTERNS)
def test_overlap_is_symmetric_and_covers_every_common_path(left: PathPattern, right: PathPattern) -> None:
    assert left.overlaps(right) == right.overlaps(left)
    if any(naive_match(left, path) and naive_match(right, path) for path in ALL_PATHS):
        assert left.overlaps(right)


@given(
    st.lists(st.sampled_from(["a", "b", "*", "a*", "ab*"]), max_size=3),
    st.lists(st.sampled_from(["a", "b", "*", "a*", "ab*"]), max_size=3),
    st.booleans(),
    st.booleans(),
)
def test_overlap_has_a_witness(left: list[str], right: list[str], left_below: bool, right_below: bool) -> None:
    one = PathPattern(("root", *left), left_below)
    two = PathPattern(("root", *right), right_below)
    assert one.overlaps(two) == any(naive_match(one, path) and naive_match(two, path) for path in ALL_PATHS)


@given(PATTERNS, PATHS, st.lists(NAMES, max_size=3))
def test_touches_whatever_can_match_below(pattern: PathPattern, prefix: tuple[str, ...], more: list[str]) -> None:
    if naive_match(pattern, (*prefix, *more)):
        assert pattern.touches(prefix)


@given(PATHS)
def test_split_and_join_are_inverse(path: tuple[str, ...]) -> None:
    assert split_path(join_path(path)) == path
    if len(path) > 1:
        assert split_device(join_path(path)) == (join_path(path[:-1]), path[-1])
    assert parent_path(join_path(path)) == join_path(path[:-1])


@given(st.text(alphabet='ab."\\*', max_size=12))
def test_any_text_splits_into_itself_or_is_refused(text: str) -> None:
    refused = re.fullmatch(r'(?:(?:[^."]+|"(?:[^"\\]|\\.)+")(?:\.(?!$)|$))+', text) is None
    if refused:
        with pytest.raises(CallerError) as caught:
            split_path(text)
        assert caught.value.code is Status.EXECUTE_STATEMENT_ERROR
        assert caught.value.message.endswith("is not a legal path")
        return
    nodes = split_path(text)
    assert join_path(nodes) == text
    assert all(nodes)


@pytest.mark.parametrize("path", ["", ".", "root..x", "root.", ".root", 'root."a', 'root.a"b"', 'root."a"b', 'root.""'])
def test_illegal_paths(path: str) -> None:
    with pytest.raises(CallerError) as caught:
        split_path(path)
    assert caught.value.code is Status.EXECUTE_STATEMENT_ERROR


def test_too_many_nodes() -> None:
    with pytest.raises(CallerError):
        split_path("root" + ".a" * 256)


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("root.x", "root.x is not a legal path"),
        ("ROOT.a.b", "ROOT.a.b is not a legal path"),
        ("root.sg.d.time", "root.sg.d.time is not a legal path"),
        ("root.sg.d.TimeStamp", "root.sg.d.TimeStamp is not a legal path"),
        ("root.sg.d.a;b", "The timeseries name contains unsupported character. root.sg.d.a;b is not a legal path"),
        ("root.sg.d.a\nb", "The timeseries name contains unsupported character. root.sg.d.a\nb is not a legal path"),
    ],
)
def test_illegal_series_paths(path: str, message: str) -> None:
    with pytest.raises(CallerError) as caught:
        check_series_path(path)
    assert (caught.value.code, caught.value.message) == (Status.PATH_ILLEGAL, message)


@pytest.mark.parametrize(
    "path", ["root.a.b", 'root.a."x.y;z"', "root.a.b c,d", "root.a.*", "root.汉.字", "root.sg.timer"]
)
def test_legal_series_paths(path: str) -> None:
    assert join_path(check_series_path(path)) == path


@pytest.mark.parametrize("path", ["root.ln", "root.a-b", "root.größe", "root.汉字", "root.1", "root.a.b_c"])
def test_legal_storage_groups(path: str) -> None:
    check_storage_group_path(path)


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("root", "root is not a legal path"),
        ("ln.a", "ln.a is not a legal path"),
        (
            "root.a b",
            "The storage group name can only be characters, numbers and underscores. root.a b is not a legal path",
        ),
        (
            "root.*",
            "The storage group name can only be characters, numbers and underscores. root.* is not a legal path",
        ),
    ],
)
def test_illegal_storage_groups(path: str, message: str) -> None:
    with pytest.raises(CallerError) as caught:
        check_storage_group_path(path)
    assert (caught.value.code, caught.value.message) == (Status.PATH_ILLEGAL, message)


@pytest.mark.parametrize("name", ["a.b", "", '"a', "a..b"])
def test_illegal_measurements(name: str) -> None:
    with pytest.raises(CallerError) as caught:
        check_measurement(name)
    assert caught.value.code is Status.METADATA_ERROR
    assert caught.value.message == f"{name} is an illegal measurementId"


def test_legal_measurements() -> None:
    for name in ("s1", '"a.b"', "a b", "*"):
        check_measurement(name)


def test_storage_group_of_automatic_creation() -> None:
    assert storage_group_for(("root", "sg1", "d1")) == "root.sg1"
    assert storage_group_for(("root", "a", "b", "c"), 2) == "root.a.b"
    for nodes in (("root",), ("root", "a b", "d")):
        with pytest.raises(CallerError):
            storage_group_for(nodes)


def test_parse_refuses_the_wildcard_of_later_versions() -> None:
    with pytest.raises(CallerError):
        PathPattern.parse("root.**")


def test_literal_prefix() -> None:
    assert PathPattern.parse("root.a.*.b").literal_prefix == ("root", "a")
    assert PathPattern.parse("root.a.b*").literal_prefix == ("root", "a")
    assert PathPattern.parse("root.a.b*", prefix_stars=False).literal_prefix == ("root", "a", "b*")
    assert not PathPattern.exact("root.a.b").has_wildcard
