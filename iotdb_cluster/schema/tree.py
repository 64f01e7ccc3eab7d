"""The timeseries of one storage group, as a tree of nodes.

All paths that go in and out are full ones ("root.sg.d1.s1"). Lists of paths are in the order of their texts. Nothing
here depends on the order of a set, and a call that raises has changed nothing.
"""

from __future__ import annotations

import gc
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from itertools import islice
from sys import intern
from weakref import WeakSet

from iotdb_cluster.errors import CallerError, Status
from iotdb_cluster.schema.facts import Facts, Pairs, load_tree
from iotdb_cluster.schema.paths import (
    ROOT,
    PathPattern,
    check_series_path,
    illegal_path,
    path_does_not_exist,
    split_path,
)
from iotdb_cluster.schema.series import Alter, Series, SeriesSpec, TagFilter, check_spec, check_tags
from iotdb_cluster.schema.snapshot import TreeSnapshot
from iotdb_cluster.schema.tag_index import TagIndex

__all__ = ["SchemaTree"]

RECENT_TAGS_MAX = 4_096  # different tags of series that are kept once


class Node:
    """A node of the tree: a series where `facts` is there, an inner node where `children` is; it may be both.

    `total` counts the series at and below it. `aliases`: alias -> measurement, of its children.
    """

    __slots__ = ("aliases", "children", "facts", "total")

    def __init__(self) -> None:
        self.children: dict[str, Node] | None = None
        self.aliases: dict[str, str] | None = None
        self.facts: Facts | None = None
        self.total = 0


def _pairs(items: Iterable[tuple[str, str]]) -> tuple[tuple[str, str], ...]:
    return tuple(sorted((intern(key), value) for key, value in items))


def _ordered(children: dict[str, Node]) -> list[tuple[str, str, Node, bool]]:
    """(sort key, name, child, whether it is taken as series or as what lies below it), in the order of path texts.

    "a", "a-b" and "a.b" stand in that order, so a child that is a series and has children comes twice.
    """
    found = []
    for name, child in children.items():
        if child.facts is not None:
            found.append((name, name, child, True))
        if child.children is not None:
            found.append((name + ".", name, child, False))
    found.sort(key=_first)
    return found


def _first(item: tuple[str, str, Node, bool]) -> str:
    return item[0]


class SchemaTree:
    """The series of one storage group; of "root": series anywhere, where the keeper does not know, or ask, the path."""

    def __init__(self, storage_group: str = ROOT) -> None:
        self._path = storage_group
        self._nodes = split_path(storage_group)
        self._root = Node()
        self._shared: dict[Facts, Facts] = {}
        self._tagged = TagIndex()
        self._recent_tags: dict[Pairs, Pairs] = {}  # equal tags are kept once
        self._snapshots: WeakSet[TreeSnapshot] = WeakSet()  # that are still being walked
        self.version = 0  # raised before each change: a walk on another thread is right if it is the same afterwards

    @property
    def storage_group(self) -> str:
        return self._path

    def __len__(self) -> int:
        return self._root.total

    # --- creating -----------------------------------------------------------------------------------------------------

    def create_series(self, spec: SeriesSpec) -> Series:
        """Creates it. 300 where it exists, 299 for its alias, 303, 315, 318, 411 for what is illegal in it."""
        nodes = self._check_place(spec.path)
        check_spec(spec)
        parent = self._find(nodes[:-1])
        name, alias = nodes[-1], spec.alias
        if parent is not None:
            known = parent.children.get(name) if parent.children else None
            if (known is not None and known.facts is not None) or name in (parent.aliases or ()):
                raise CallerError(Status.PATH_ALREADY_EXIST, f"Path [{spec.path}] already exist")
        if alias is not None and (alias == name or self._taken(parent, alias)):
            raise CallerError(Status.ALIAS_ALREADY_EXIST, f"Alias [{alias}] for Path [{spec.path}] already exist")
        facts = Facts(
            spec.type,
            spec.encoding,
            spec.compressor,
            alias,
            _pairs((spec.tags or {}).items()),
            _pairs((spec.attributes or {}).items()),
            _pairs((spec.properties or {}).items()),
        )
        self._insert(nodes, facts)
        return self._series(spec.path, facts)

    def ensure_series(self, specs: Sequence[SeriesSpec]) -> list[Series | CallerError]:
        """For each: the series that exists under that path (or alias), created as declared where none did.

        A CallerError stands where it could be neither found nor created; the others are not concerned.
        """
        found: list[Series | CallerError] = []
        for spec in specs:
            try:
                known = self.get(spec.path)
                found.append(self.create_series(spec) if known is None else known)
            except CallerError as error:
                found.append(error)
        return found

    def _check_place(self, path: str) -> tuple[str, ...]:
        """The nodes below the storage group of a path that may become a series."""
        nodes = check_series_path(path)
        depth = len(self._nodes)
        if len(nodes) <= depth or nodes[:depth] != self._nodes:
            raise illegal_path(path)
        return nodes[depth:]

    @staticmethod
    def _taken(parent: Node | None, alias: str) -> bool:
        return parent is not None and (alias in (parent.children or ()) or alias in (parent.aliases or ()))

    def _insert(self, nodes: Sequence[str], facts: Facts) -> None:
        """`nodes` are those below the storage group, and hold no series yet."""
        self.version += 1
        if self._snapshots:
            self._keep(nodes[:-1], self._find(nodes[:-1]))
        at = self._root
        at.total += 1
        for name in nodes:
            if at.children is None:
                at.children = {}
            below = at.children.get(name)
            if below is None:
                below = at.children[intern(name)] = Node()
            parent, at = at, below
            at.total += 1
        at.facts = self._shared_facts(facts)
        if facts.alias is not None:
            if parent.aliases is None:
                parent.aliases = {}
            parent.aliases[facts.alias] = nodes[-1]
        if facts.tags:
            self._tagged.add(self._full(nodes[:-1]), facts.tags)

    def _shared_facts(self, facts: Facts) -> Facts:
        if facts.plain:
            return self._shared.setdefault(facts, facts)
        if len(self._recent_tags) >= RECENT_TAGS_MAX:
            self._recent_tags.clear()
        return facts._replace(tags=self._recent_tags.setdefault(facts.tags, facts.tags))

    def _full(self, nodes: Sequence[str]) -> str:
        return ".".join((self._path, *nodes))

    # --- one series ---------------------------------------------------------------------------------------------------

    def get(self, path: str) -> Series | None:
        """The series with this path, or with this alias in place of the last node."""
        nodes = split_path(path)
        depth = len(self._nodes)
        if len(nodes) <= depth or nodes[:depth] != self._nodes:
            return None
        parent = self._find(nodes[depth:-1])
        return None if parent is None else self._child_series(parent, path, nodes[-1])

    def resolve(self, device: str, measurements: Sequence[str]) -> list[Series | None]:
        """The series of these measurements (or aliases) of a device, None for each that does not exist."""
        nodes = split_path(device)
        depth = len(self._nodes)
        parent = self._find(nodes[depth:]) if nodes[:depth] == self._nodes else None
        if parent is None:
            return [None] * len(measurements)
        return [self._child_series(parent, f"{device}.{name}", name) for name in measurements]

    def _child_series(self, parent: Node, path: str, name: str) -> Series | None:
        child = (parent.children or {}).get(name)
        if child is not None and child.facts is not None:
            return self._series(path, child.facts)
        real = (parent.aliases or {}).get(name)
        if real is None:
            return None
        facts = (parent.children or {})[real].facts
        return None if facts is None else self._series(path[: len(path) - len(name)] + real, facts, by_alias=True)

    def _find(self, nodes: Sequence[str]) -> Node | None:
        """The node under these names below the storage group."""
        at = self._root
        for name in nodes:
            below = None if at.children is None else at.children.get(name)
            if below is None:
                return None
            at = below
        return at

    @staticmethod
    def _series(path: str, facts: Facts, *, by_alias: bool = False) -> Series:
        return Series(
            path,
            facts.type,
            facts.encoding,
            facts.compressor,
            facts.alias,
            dict(facts.tags),
            dict(facts.attributes),
            dict(facts.properties),
            by_alias,
        )

    def alter(self, path: str, change: Alter) -> Series:
        """Changes tags, attributes or alias; 304 where there is no such series, 303 and 411 for the change."""
        series = self.get(path)
        if series is None:
            raise path_does_not_exist(path)
        tags, attributes = change.apply(series.path, series.tags, series.attributes)
        check_tags(tags, attributes)
        nodes = split_path(series.path)[len(self._nodes) :]
        parent, node = self._find(nodes[:-1]), self._find(nodes)
        if parent is None or node is None or node.facts is None:
            raise path_does_not_exist(path)
        facts, alias = node.facts, node.facts.alias
        self.version += 1
        if change.alias is not None and change.alias != alias:
            if change.alias == nodes[-1] or self._taken(parent, change.alias):
                raise CallerError(Status.METADATA_ERROR, "The alias already exists.")
            self._forget_alias(parent, alias)
            alias = change.alias
            if parent.aliases is None:
                parent.aliases = {}
            parent.aliases[alias] = nodes[-1]
        self._keep(nodes[:-1], parent)
        device = self._full(nodes[:-1])
        self._tagged.remove(device, facts.tags)
        node.facts = self._shared_facts(
            facts._replace(alias=alias, tags=_pairs(tags.items()), attributes=_pairs(attributes.items()))
        )
        self._tagged.add(device, node.facts.tags)
        return self._series(series.path, node.facts)

    @staticmethod
    def _forget_alias(parent: Node, alias: str | None) -> None:
        if alias is not None and parent.aliases is not None:
            del parent.aliases[alias]
            if not parent.aliases:
                parent.aliases = None

    # --- deleting -----------------------------------------------------------------------------------------------------

    def delete(self, pattern: PathPattern) -> list[str]:
        """Deletes every series that matches; their paths. Nodes that are empty then go too."""
        deleted = [series.path for series in self.match(pattern)]
        for path in deleted:
            self._remove(path)
        return deleted

    def _remove(self, path: str) -> None:
        nodes = split_path(path)[len(self._nodes) :]
        way = [self._root]
        for name in nodes:
            way.append((way[-1].children or {})[name])
        leaf, parent = way[-1], way[-2]
        facts = leaf.facts
        if facts is None:
            return
        self.version += 1
        self._keep(nodes[:-1], parent)
        leaf.facts = None
        self._forget_alias(parent, facts.alias)
        self._tagged.remove(self._full(nodes[:-1]), facts.tags)
        for node in way:
            node.total -= 1
        for at in range(len(nodes), 0, -1):
            children = way[at - 1].children
            if way[at].total or children is None:
                break
            del children[nodes[at - 1]]
            if not children:
                way[at - 1].children = None

    # --- many series --------------------------------------------------------------------------------------------------

    def match(
        self, pattern: PathPattern, *, tag: TagFilter | None = None, limit: int | None = None, offset: int = 0
    ) -> list[Series]:
        """The series that match, by path: at most `limit` of them, after the first `offset`.

        A literal last node of the pattern finds a series by its alias too (`by_alias` is set then).
        """
        end = None if limit is None else offset + limit
        return list(islice(self.iterate(pattern, tag), offset, end))

    def iterate(self, pattern: PathPattern, tag: TagFilter | None = None) -> Iterator[Series]:
        """As `match`, one by one; the tree must not change meanwhile."""
        if tag is None:
            for path, facts, by_alias in self._walk(pattern):
                yield self._series(path, facts, by_alias=by_alias)
            return
        found = []
        for device in self._tagged.devices(tag.key):
            nodes = split_path(device)
            parent = self._find(nodes[len(self._nodes) :])
            for name, child in list(((parent.children if parent is not None else None) or {}).items()):
                if child.facts is not None and tag.matches(dict(child.facts.tags)) and pattern.matches((*nodes, name)):
                    found.append((f"{device}.{name}", child.facts))
        for path, facts in sorted(found):
            yield self._series(path, facts)

    def has_tag(self, key: str) -> bool:
        """Whether some series has this tag."""
        return key in self._tagged

    def count(self, pattern: PathPattern) -> int:
        """How many series match."""
        return sum(node.total if all_below else 1 for _, node, all_below in self._roots(pattern))

    def is_quick(self, pattern: PathPattern, most: int) -> bool:
        """Whether what matches is found by looking at no more than `most` nodes."""
        rest = self._rest(pattern)
        if rest is None or self._root.total <= most:
            return True
        stack = [(0, self._root)]
        while stack:
            level, node = stack.pop()
            children = node.children or {}
            if level < len(rest.nodes) and not rest.is_wildcard(rest.nodes[level]):
                child = children.get(rest.nodes[level])
                found = [] if child is None else [child]
            elif level < len(rest.nodes):
                most -= len(children)
                found = [] if most < 0 else list(children.values())
            else:
                most -= node.total
                found = []
            if most < 0:
                return False
            stack.extend((level + 1, child) for child in found)
        return True

    def _rest(self, pattern: PathPattern) -> PathPattern | None:
        """The pattern for what lies below the storage group, None where nothing there can match."""
        if not pattern.touches(self._nodes):
            return None
        return replace(pattern, nodes=pattern.nodes[len(self._nodes) :])

    def _roots(self, pattern: PathPattern) -> Iterator[tuple[tuple[str, ...], Node, bool]]:
        """Where the pattern ends in the tree: (nodes below the storage group, node, whether all below it matches too).

        False: the node's own series matches, if it has one, and what lies below does not.
        """
        rest = self._rest(pattern)
        if rest is None:
            return
        if not rest.nodes and not rest.below:
            return
        stack: list[tuple[tuple[str, ...], Node]] = [((), self._root)]
        while stack:
            path, node = stack.pop()
            if len(path) == len(rest.nodes):
                if rest.below or node.facts is not None:
                    yield path, node, rest.below
                continue
            name = rest.nodes[len(path)]
            if not rest.is_wildcard(name):
                child = (node.children or {}).get(name)
                if child is None and len(path) + 1 == len(rest.nodes):
                    real = (node.aliases or {}).get(name)
                    if real is not None:
                        # An alias stands for the one series, not for what lies below it.
                        yield (*path, real), (node.children or {})[real], False
                elif child is not None:
                    stack.append(((*path, name), child))
                continue
            stack.extend(
                ((*path, below), child)
                for below, child in (node.children or {}).items()
                if rest.node_matches(len(path), below)
            )

    def _walk(self, pattern: PathPattern) -> Iterator[tuple[str, Facts, bool]]:
        """(path, facts, by alias) of all that matches, by path."""
        rest = self._rest(pattern)
        if rest is None or (not rest.nodes and not rest.below):
            return
        # An entry is (path, node, level): the node's children are still to be looked at; or, with level -1, a series.
        stack: list[tuple[str, Node, int]] = [(self._path, self._root, 0)]
        while stack:
            path, node, level = stack.pop()
            if level < 0:
                if node.facts is not None:
                    yield path, node.facts, level == _BY_ALIAS
                continue
            stack.extend(reversed(list(self._step(path, node, level, rest))))

    @staticmethod
    def _step(path: str, node: Node, level: int, rest: PathPattern) -> Iterator[tuple[str, Node, int]]:
        """What lies one level below and may match, in order."""
        children = node.children or {}
        last = len(rest.nodes) - 1
        if level <= last and not rest.is_wildcard(rest.nodes[level]):
            name = rest.nodes[level]
            child = children.get(name)
            if child is None:
                real = (node.aliases or {}).get(name) if level == last else None
                if real is not None:
                    yield f"{path}.{real}", children[real], _BY_ALIAS
                return
            if level >= last and child.facts is not None:
                yield f"{path}.{name}", child, _SERIES
            if child.children is not None and (level < last or rest.below):
                yield f"{path}.{name}", child, level + 1
            return
        for _, name, child, as_series in _ordered(children):
            if not rest.node_matches(level, name):
                continue
            if as_series:
                if level >= last:
                    yield f"{path}.{name}", child, _SERIES
            elif level < last or rest.below:
                yield f"{path}.{name}", child, level + 1

    # --- counts and lists of nodes ------------------------------------------------------------------------------------

    def count_by_level(self, pattern: PathPattern, level: int) -> dict[str, int]:
        """For each path of `level` + 1 nodes (root is level 0) the number of matching series at and below it.

        Series whose paths have fewer nodes do not count.
        """
        counts: dict[str, int] = {}
        depth = len(self._nodes)
        if level < depth:
            total = self.count(pattern)
            return {".".join(self._nodes[: level + 1]): total} if total else {}
        for path, node, all_below in self._roots(pattern):
            for name, total in _totals(path, node, all_below, level + 1 - depth):
                full = self._full(name)
                counts[full] = counts.get(full, 0) + total
        return dict(sorted(counts.items()))

    def devices(self, pattern: PathPattern, *, limit: int | None = None, offset: int = 0) -> list[str]:
        """The devices (nodes with a series right below) whose paths match, by path."""
        found = (self._full(path) for path, node in self._descend(pattern) if _is_device(node))
        return sorted(found)[offset : None if limit is None else offset + limit]

    def count_devices(self, pattern: PathPattern) -> int:
        return sum(1 for _, node in self._descend(pattern) if _is_device(node))

    def _descend(self, pattern: PathPattern) -> Iterator[tuple[tuple[str, ...], Node]]:
        """Every node at or below the storage group whose path matches, (nodes below the storage group, node)."""
        rest = self._rest(pattern)
        if rest is None:
            return
        stack: list[tuple[tuple[str, ...], Node]] = [((), self._root)]
        while stack:
            path, node = stack.pop()
            if len(path) >= len(rest.nodes) and (rest.below or len(path) + len(self._nodes) == len(pattern.nodes)):
                yield path, node
            if len(path) >= len(rest.nodes) and not rest.below:
                continue
            for name, child in (node.children or {}).items():
                if rest.node_matches(len(path), name):
                    stack.append(((*path, name), child))

    def child_paths(self, pattern: PathPattern) -> list[str]:
        """The paths of the nodes right below those that the pattern matches exactly, in order."""
        depth, exact = len(self._nodes), len(pattern.nodes)
        if exact < depth:
            above = replace(pattern, below=True).touches(self._nodes)
            return [".".join(self._nodes[: exact + 1])] if above else []
        strict = replace(pattern, below=False)
        return sorted(self._full((*path, name)) for path, node in self._descend(strict) for name in node.children or ())

    def child_nodes(self, pattern: PathPattern) -> list[str]:
        """The distinct names of those nodes, in order."""
        return sorted({split_path(path)[-1] for path in self.child_paths(pattern)})

    def nodes_at_level(self, pattern: PathPattern, level: int) -> list[str]:
        """The paths of the nodes of a level (root is 0) at and below what the pattern matches, in order.

        Levels of the storage group's own path count too, even if it has no series.
        """
        depth = len(self._nodes)
        if level + 1 < len(pattern.nodes) or not pattern.touches(self._nodes):
            return []
        if level < depth:
            return [".".join(self._nodes[: level + 1])]
        return sorted(self._full(path) for path, _ in self._descend(pattern) if len(path) == level + 1 - depth)

    def reach(self, nodes: Sequence[str]) -> int:
        """How many of these nodes, from root on, stand in the tree one below the other."""
        depth = len(self._nodes)
        reached = 0
        for mine, asked in zip(self._nodes, nodes, strict=False):
            if mine != asked:
                return reached
            reached += 1
        at = self._root
        for name in nodes[depth:]:
            below = None if at.children is None else at.children.get(name)
            if below is None:
                return reached
            at = below
            reached += 1
        return reached

    # --- checkpoints --------------------------------------------------------------------------------------------------

    def _keep(self, nodes: Sequence[str], device: Node | None) -> None:
        """Before a change of its series."""
        for snapshot in self._snapshots:
            snapshot.keep(self._full(nodes), device)

    def still(self) -> TreeSnapshot:
        """As `snapshot`, and beside it, of a tree that does not change while the caller walks it."""
        return TreeSnapshot(self._path, self._root, self._root.total, lambda _: None)

    def snapshot(self) -> TreeSnapshot:
        """The tree as it is now, which the caller walks; one that is dropped before costs nothing more."""
        snapshot = TreeSnapshot(self._path, self._root, self._root.total, self._snapshots.discard)
        self._snapshots.add(snapshot)
        return snapshot

    def dump(self) -> bytes:
        """The whole tree; equal trees give equal bytes."""
        snapshot = self.still()
        while snapshot.step():
            pass
        return snapshot.encode()

    @classmethod
    def load(cls, data: bytes | memoryview) -> SchemaTree:
        """The inverse of `dump`; CorruptData where bytes are damaged, or of a version not known to this program."""
        collecting = gc.isenabled()
        gc.disable()  # all that is made here stays: looking for cycles in it takes as long as making it
        try:
            storage_group, series = load_tree(data)
            tree = cls(storage_group)
            depth = len(tree._nodes)
            last = ""
            nodes: tuple[str, ...] = ()
            for device, name, facts in series:
                if device != last:
                    last, nodes = device, split_path(device)[depth:]
                tree._insert((*nodes, name), facts)
            return tree
        finally:
            if collecting:
                gc.enable()


_SERIES = -1
_BY_ALIAS = -2


def _is_device(node: Node) -> bool:
    return any(child.facts is not None for child in (node.children or {}).values())


def _totals(path: tuple[str, ...], node: Node, all_below: bool, length: int) -> Iterator[tuple[tuple[str, ...], int]]:
    """For each path of `length` nodes at, above or below this one the number of series counted here."""
    if len(path) >= length or not all_below:
        if len(path) >= length:
            yield path[:length], node.total if all_below else 1
        return
    stack = [(path, node)]
    while stack:
        at, node = stack.pop()
        if len(at) == length:
            yield at, node.total
            continue
        stack.extend(((*at, name), child) for name, child in (node.children or {}).items())
