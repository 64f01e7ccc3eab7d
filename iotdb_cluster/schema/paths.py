"""Paths of series and devices, patterns over them, and the rules for names.

A path is text: nodes joined by '.'. A node in double quotes keeps its quotes as part of its name and may hold dots;
within it a backslash keeps the next quote from ending it. The first node of every path is "root".

A pattern has the prefix semantics of 0.12: it matches every path whose first nodes match the pattern's nodes one by
one, so a short pattern matches everything below it. A node `*` matches any one node, a node that ends with `*` every
node that begins with the text before it.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache

from iotdb_cluster import limits
from iotdb_cluster.errors import CallerError, Status

__all__ = [
    "ROOT",
    "PathPattern",
    "check_measurement",
    "check_series_path",
    "check_storage_group_path",
    "illegal_path",
    "join_path",
    "parent_path",
    "path_does_not_exist",
    "split_device",
    "split_path",
    "storage_group_for",
]

ROOT = "root"
_ANY_NODE = r'(?:"(?:[^"\\]|\\.)*"|[^."]+)'
_CJK = "\u2e80-\u9fff"
_SERIES_NODE = re.compile(rf"[A-Za-z0-9{_CJK}/ ,:@#$%&{{}}()*=?!~\[\]\-+_]+")
_STORAGE_GROUP_NODE = re.compile(rf"[\w\-{_CJK}]+")
_RESERVED = frozenset({"time", "timestamp"})


def illegal_path(path: str, reason: str = "") -> CallerError:
    """315 "<path> is not a legal path", behind `reason` where one is given (a sentence with its full stop)."""
    return CallerError(Status.PATH_ILLEGAL, f"{reason} {path} is not a legal path".lstrip())


def _malformed_path(path: str) -> CallerError:
    """400: what a real server answers to text in a typed call that is no path at all (`root..x`)."""
    return CallerError(Status.EXECUTE_STATEMENT_ERROR, f"{path} is not a legal path")


def path_does_not_exist(*paths: str) -> CallerError:
    """304 "Path [<p1> ... <pn>] does not exist"."""
    return CallerError(Status.TIMESERIES_NOT_EXIST, f"Path [{' '.join(paths)}] does not exist")


def split_path(path: str) -> tuple[str, ...]:
    """The nodes of a path or pattern; 400 where a node is empty or a quote is open, 315 where a bound is passed."""
    if '"' in path:
        nodes = _split_quoted(path)
    else:
        nodes = tuple(path.split("."))
        if "" in nodes:
            raise _malformed_path(path)
    if len(nodes) > limits.PATH_NODES_MAX or len(path) > limits.PATH_CHARS_MAX:
        raise illegal_path(path[:200], f"A path has at most {limits.PATH_NODES_MAX} nodes.")
    return nodes


def _split_quoted(path: str) -> tuple[str, ...]:
    nodes = []
    at = 0
    while True:
        if path.startswith('"', at):
            end = at + 1
            while end < len(path) and path[end] != '"':
                end += 2 if path[end] == "\\" else 1
            end += 1
            if end > len(path) or end - at < 3:
                raise _malformed_path(path)
        else:
            end = path.find(".", at)
            end = len(path) if end < 0 else end
            if end == at or '"' in path[at:end]:
                raise _malformed_path(path)
        nodes.append(path[at:end])
        if end == len(path):
            return tuple(nodes)
        if path[end] != ".":
            raise _malformed_path(path)
        at = end + 1


def join_path(nodes: Sequence[str]) -> str:
    """The inverse of `split_path`."""
    return ".".join(nodes)


def split_device(path: str) -> tuple[str, str]:
    """(device, measurement) of a series' path; 315 where it has no device."""
    if not path.endswith('"'):
        device, _, measurement = path.rpartition(".")
    else:
        nodes = split_path(path)
        device, measurement = ".".join(nodes[:-1]), nodes[-1]
    if not device or not measurement:
        raise illegal_path(path)
    return device, measurement


def parent_path(path: str) -> str:
    """The path without its last node, "" for a path of one node."""
    return ".".join(split_path(path)[:-1])


def check_measurement(name: str) -> None:
    """A measurement that came by itself (not in SQL): 303 where it would be more than one node, or none."""
    try:
        single = len(split_path(name)) == 1
    except CallerError:
        single = False
    if not single:
        raise CallerError(Status.METADATA_ERROR, f"{name} is an illegal measurementId")


def check_series_path(path: str) -> tuple[str, ...]:
    """The nodes of a path under which a series may be created; 315 with the original's texts otherwise."""
    nodes = split_path(path)
    if nodes[0] != ROOT or len(nodes) < 3:
        raise illegal_path(path)
    _check_series_nodes(path, nodes[1:])
    return nodes


def _check_series_nodes(path: str, nodes: Sequence[str]) -> None:
    for node in nodes:
        if not _is_series_node(node):
            if node.lower() in _RESERVED:
                raise illegal_path(path)
            raise illegal_path(path, "The timeseries name contains unsupported character.")


@lru_cache(maxsize=65_536)
def _is_series_node(node: str) -> bool:
    if node.startswith('"'):
        return "\n" not in node and "\x00" not in node
    return node.lower() not in _RESERVED and _SERIES_NODE.fullmatch(node) is not None


def check_storage_group_path(path: str) -> tuple[str, ...]:
    """The nodes of a path that may become a storage group; 315 with the original's texts otherwise."""
    nodes = split_path(path)
    if nodes[0] != ROOT or len(nodes) < 2:
        raise illegal_path(path)
    if not all(_STORAGE_GROUP_NODE.fullmatch(node) for node in nodes):
        raise illegal_path(path, "The storage group name can only be characters, numbers and underscores.")
    return nodes


def storage_group_for(device_nodes: Sequence[str], level: int = 1) -> str:
    """The path of the storage group that automatic creation makes for a device: its nodes up to `level` (root is 0).

    315 where the device is not that deep, or where those nodes make no storage group.
    """
    if len(device_nodes) <= level:
        raise illegal_path(join_path(device_nodes))
    path = join_path(device_nodes[: level + 1])
    check_storage_group_path(path)
    return path


def _node_matches(pattern: str, node: str, prefix_stars: bool) -> bool:
    if pattern == node or pattern == "*":
        return True
    return prefix_stars and pattern.endswith("*") and node.startswith(pattern[:-1])


def _nodes_overlap(left: str, right: str, left_stars: bool, right_stars: bool) -> bool:
    """Whether some node matches both."""
    if left in ("*", right) or right == "*":
        return True
    left_open = left_stars and left.endswith("*")
    right_open = right_stars and right.endswith("*")
    if left_open and right_open:
        return left[:-1].startswith(right[:-1]) or right[:-1].startswith(left[:-1])
    if left_open:
        return right.startswith(left[:-1])
    return right_open and left.startswith(right[:-1])


@dataclass(frozen=True, slots=True)
class PathPattern:
    """A pattern over paths, as the module says.

    `below`: whether deeper paths match too (the semantics of 0.12); False matches paths of exactly this many nodes.
    `prefix_stars`: whether `d*` is a wildcard; some statements of 0.12 know `*` alone.
    """

    nodes: tuple[str, ...]
    below: bool = True
    prefix_stars: bool = True

    @classmethod
    def parse(cls, text: str, *, below: bool = True, prefix_stars: bool = True) -> PathPattern:
        """From text; 315 where it is no path, or holds `**`, which this version does not know."""
        nodes = split_path(text)
        if "**" in nodes:
            raise illegal_path(text, "The wildcard ** is not supported.")
        return cls(nodes, below, prefix_stars)

    @classmethod
    def exact(cls, path: str) -> PathPattern:
        """Matches the path alone (where its nodes hold no wildcard)."""
        return cls(split_path(path), below=False)

    @property
    def text(self) -> str:
        return ".".join(self.nodes)

    def __str__(self) -> str:
        return self.text

    @property
    def has_wildcard(self) -> bool:
        return any(self.is_wildcard(node) for node in self.nodes)

    def is_wildcard(self, node: str) -> bool:
        """Whether this node of the pattern matches more than itself."""
        return node == "*" or (self.prefix_stars and node.endswith("*"))

    @property
    def literal_prefix(self) -> tuple[str, ...]:
        """The nodes before the first wildcard."""
        for at, node in enumerate(self.nodes):
            if self.is_wildcard(node):
                return self.nodes[:at]
        return self.nodes

    def node_matches(self, at: int, node: str) -> bool:
        """Whether `node` may stand at place `at` (root is 0) of a matching path; beyond the pattern: `below`."""
        if at >= len(self.nodes):
            return self.below
        return _node_matches(self.nodes[at], node, self.prefix_stars)

    def matches(self, path_nodes: Sequence[str]) -> bool:
        """Whether the path with these nodes matches."""
        short = len(path_nodes) - len(self.nodes)
        if short < 0 or (short > 0 and not self.below):
            return False
        return all(
            _node_matches(mine, node, self.prefix_stars) for mine, node in zip(self.nodes, path_nodes, strict=False)
        )

    def matches_path(self, path: str) -> bool:
        return self.matches(split_path(path))

    def touches(self, prefix_nodes: Sequence[str]) -> bool:
        """Whether a path at or below this one can match: what a storage group or device must be asked."""
        if not self.below and len(prefix_nodes) > len(self.nodes):
            return False
        return all(
            _node_matches(mine, node, self.prefix_stars) for mine, node in zip(self.nodes, prefix_nodes, strict=False)
        )

    def overlaps(self, other: PathPattern) -> bool:
        """Whether some path matches both."""
        longer = len(self.nodes) - len(other.nodes)
        if (longer > 0 and not other.below) or (longer < 0 and not self.below):
            return False
        return all(
            _nodes_overlap(mine, theirs, self.prefix_stars, other.prefix_stars)
            for mine, theirs in zip(self.nodes, other.nodes, strict=False)
        )

    def regex(self) -> str:
        """A regular expression (of `re`) that fullmatches the texts of exactly those paths that match."""
        parts = []
        for node in self.nodes:
            if node == "*":
                parts.append(_ANY_NODE)
            elif self.prefix_stars and node.endswith("*"):
                parts.append(re.escape(node[:-1]) + r'[^."]*')
            else:
                parts.append(re.escape(node))
        return "(?s:" + r"\.".join(parts) + (r"(?:\..+)?" if self.below else "") + ")"

    def concat(self, nodes: Sequence[str]) -> PathPattern:
        """The pattern with these nodes behind its own: FROM prefix and SELECT suffix."""
        return replace(self, nodes=(*self.nodes, *nodes))
