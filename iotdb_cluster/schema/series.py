"""A timeseries as a value: what is declared of it, which declarations are legal, how it is changed."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NoReturn

from iotdb_cluster.columns import Compressor, DataType, Encoding
from iotdb_cluster.errors import CallerError, CorruptData, Status
from iotdb_cluster.limits import TAG_BYTES_MAX
from iotdb_cluster.schema.paths import split_device

__all__ = [
    "DEFAULT_COMPRESSOR",
    "Alter",
    "Series",
    "SeriesSpec",
    "TagFilter",
    "check_spec",
    "check_tags",
    "check_type_and_encoding",
    "default_encoding",
]

DEFAULT_COMPRESSOR = Compressor.SNAPPY
_INTEGERS = frozenset({Encoding.PLAIN, Encoding.RLE, Encoding.TS_2DIFF, Encoding.GORILLA})
_FLOATS = _INTEGERS | {Encoding.GORILLA_V1}
_LEGAL: dict[DataType, frozenset[Encoding]] = {
    DataType.BOOLEAN: frozenset({Encoding.PLAIN, Encoding.RLE}),
    DataType.INT32: _INTEGERS,
    DataType.INT64: _INTEGERS,
    DataType.FLOAT: _FLOATS,
    DataType.DOUBLE: _FLOATS,
    DataType.TEXT: frozenset({Encoding.PLAIN}),
}
_DEFAULT_ENCODING: dict[DataType, Encoding] = {
    DataType.BOOLEAN: Encoding.RLE,
    DataType.INT32: Encoding.RLE,
    DataType.INT64: Encoding.RLE,
    DataType.FLOAT: Encoding.GORILLA,
    DataType.DOUBLE: Encoding.GORILLA,
    DataType.TEXT: Encoding.PLAIN,
}
_COMPRESSORS = frozenset({Compressor.UNCOMPRESSED, Compressor.SNAPPY, Compressor.GZIP, Compressor.LZ4})
_ROUNDING = frozenset({Encoding.RLE, Encoding.TS_2DIFF})
_MAX_POINT_NUMBER = "max_point_number"


def default_encoding(kind: DataType) -> Encoding:
    return _DEFAULT_ENCODING[kind]


def check_type_and_encoding(kind: DataType, encoding: Encoding) -> None:
    """303 "encoding <E> does not support <T>" where the pair is illegal."""
    if encoding not in _LEGAL[kind]:
        raise CallerError(Status.METADATA_ERROR, f"encoding {encoding.name} does not support {kind.name}")


def check_tags(tags: Mapping[str, str], attributes: Mapping[str, str]) -> None:
    """411 where a key is in both."""
    for key in tags:
        if key in attributes:
            raise CallerError(
                Status.QUERY_PROCESS_ERROR, f"Tag and attribute shouldn't have the same property key [{key}]"
            )


@dataclass(frozen=True, slots=True)
class SeriesSpec:
    """A series to be created: its full path and all that is declared of it. Property keys are in lower case."""

    path: str
    type: DataType
    encoding: Encoding
    compressor: Compressor = DEFAULT_COMPRESSOR
    alias: str | None = None
    tags: Mapping[str, str] | None = None
    attributes: Mapping[str, str] | None = None
    properties: Mapping[str, str] | None = None

    @classmethod
    def default(cls, path: str, kind: DataType) -> SeriesSpec:
        """As automatic creation declares it."""
        return cls(path, kind, _DEFAULT_ENCODING[kind])

    def to_json(self) -> list[Any]:
        plain = [self.path, int(self.type), int(self.encoding), int(self.compressor)]
        if self.alias is None and not (self.tags or self.attributes or self.properties):
            return plain
        return [*plain, self.alias, dict(self.tags or {}), dict(self.attributes or {}), dict(self.properties or {})]

    @classmethod
    def from_json(cls, value: Any) -> SeriesSpec:
        """CorruptData where it is none."""
        return cls(*_declared(value))


@dataclass(frozen=True, slots=True)
class Series:
    """A series that exists. `by_alias`: it was asked for by its alias, and results should show that."""

    path: str
    type: DataType
    encoding: Encoding
    compressor: Compressor
    alias: str | None = None
    tags: Mapping[str, str] = field(default_factory=dict)
    attributes: Mapping[str, str] = field(default_factory=dict)
    properties: Mapping[str, str] = field(default_factory=dict)
    by_alias: bool = False

    @property
    def device(self) -> str:
        return split_device(self.path)[0]

    @property
    def measurement(self) -> str:
        return split_device(self.path)[1]

    @property
    def shown(self) -> str:
        """The path by which the asker knows it: through the alias where it was asked for by that."""
        return f"{self.device}.{self.alias}" if self.by_alias else self.path

    def decimals(self, float_precision: int = 2) -> int | None:
        """To how many decimals its values are rounded when they are read; None: they are exact."""
        if self.type not in (DataType.FLOAT, DataType.DOUBLE) or self.encoding not in _ROUNDING:
            return None
        declared = self.properties.get(_MAX_POINT_NUMBER)
        return float_precision if declared is None else int(declared)

    def to_json(self) -> list[Any]:
        """Without `by_alias`."""
        plain = [self.path, int(self.type), int(self.encoding), int(self.compressor)]
        if self.alias is None and not (self.tags or self.attributes or self.properties):
            return plain
        return [*plain, self.alias, dict(self.tags), dict(self.attributes), dict(self.properties)]

    @classmethod
    def from_json(cls, value: Any, *, by_alias: bool = False) -> Series:
        """CorruptData where it is none."""
        return cls(*_declared(value), by_alias)


_Texts = dict[str, str]


def _declared(
    value: Any,
) -> tuple[str, DataType, Encoding, Compressor, str | None, _Texts, _Texts, _Texts]:
    """The fields of a series from JSON; CorruptData where it is none."""
    try:
        path, kind, encoding, compressor, *rest = value
        alias, tags, attributes, properties = rest or (None, {}, {}, {})
        names = (DataType(kind), Encoding(encoding), Compressor(compressor))
    except (TypeError, ValueError) as error:
        raise CorruptData(f"a series cannot be read: {error}") from None
    if not isinstance(path, str) or not isinstance(alias, str | None):
        raise CorruptData(f"a series has the path {path!r} and the alias {alias!r}")
    return path, *names, alias, _texts(tags), _texts(attributes), _texts(properties)


def _texts(value: Any) -> _Texts:
    if not isinstance(value, dict) or not all(isinstance(text, str) for pair in value.items() for text in pair):
        raise CorruptData(f"{value!r} does not map texts to texts")
    return value


def check_spec(spec: SeriesSpec) -> None:
    """What can be said of a spec without the tree: 303, 318, 411 (its path is checked by `check_series_path`)."""
    check_type_and_encoding(spec.type, spec.encoding)
    if spec.compressor not in _COMPRESSORS:
        raise CallerError(Status.METADATA_ERROR, f"compressor {spec.compressor.name} is not supported")
    tags, attributes = spec.tags or {}, spec.attributes or {}
    if tags or attributes:
        check_tags(tags, attributes)
        check_tag_bytes(spec.path, tags, attributes)
    if spec.properties:
        _check_properties(spec.path, spec.properties)


def check_tag_bytes(path: str, tags: Mapping[str, str], attributes: Mapping[str, str]) -> None:
    """303 where they take too much room."""
    taken = sum(len(part.encode()) for items in (tags, attributes) for pair in items.items() for part in pair)
    if taken > TAG_BYTES_MAX:
        raise CallerError(
            Status.METADATA_ERROR,
            f"the tags and attributes of TimeSeries [{path}] take {taken} bytes, the limit is {TAG_BYTES_MAX}",
        )


def _check_properties(path: str, properties: Mapping[str, str]) -> None:
    def refuse(reason: str) -> NoReturn:
        raise CallerError(Status.ILLEGAL_PARAMETER, f"{reason}. Failed to create timeseries for path {path}")

    declared = properties.get(_MAX_POINT_NUMBER)
    if declared is not None and not re.fullmatch(r"[0-9]{1,2}", declared):
        refuse("MAX_POINT_NUMBER should be a whole number of at most two digits")
    if properties.get("loss", "").lower() != "sdt":
        return
    if "compdev" not in properties:
        refuse("SDT compression deviation is required")
    try:
        deviation = float(properties["compdev"])
    except ValueError:
        refuse("SDT compression deviation formatting error")
    if not deviation >= 0:
        refuse("SDT compression deviation cannot be negative")
    bounds = []
    for key, default in (("compmintime", 0), ("compmaxtime", (1 << 63) - 1)):
        try:
            bounds.append(int(properties.get(key, str(default))))
        except ValueError:
            refuse(f"SDT compression {key} formatting error")
        if bounds[-1] < 0:
            refuse(f"SDT compression {key} cannot be negative")
    if bounds[0] >= bounds[1]:
        refuse("SDT compression maximum time needs to be greater than compression minimum time")


@dataclass(frozen=True, slots=True)
class TagFilter:
    """WHERE key = value, or key CONTAINS value; on tags alone."""

    key: str
    value: str
    contains: bool = False

    def matches(self, tags: Mapping[str, str]) -> bool:
        found = tags.get(self.key)
        return found is not None and (self.value in found if self.contains else self.value == found)


_ACTIONS = ("rename", "set", "drop", "add_tags", "add_attributes", "upsert")


@dataclass(frozen=True, slots=True)
class Alter:
    """ALTER TIMESERIES; made by the methods below, each of them one form of the statement, its `action`."""

    action: str
    keys: tuple[str, ...] = ()  # rename: (from, to); drop: the keys
    values: Mapping[str, str] = field(default_factory=dict)  # set
    tags: Mapping[str, str] = field(default_factory=dict)
    attributes: Mapping[str, str] = field(default_factory=dict)
    alias: str | None = None

    @classmethod
    def rename(cls, key: str, to: str) -> Alter:
        return cls("rename", keys=(key, to))

    @classmethod
    def set(cls, values: Mapping[str, str]) -> Alter:
        return cls("set", values=values)

    @classmethod
    def drop(cls, *keys: str) -> Alter:
        return cls("drop", keys=keys)

    @classmethod
    def add_tags(cls, tags: Mapping[str, str]) -> Alter:
        return cls("add_tags", tags=tags)

    @classmethod
    def add_attributes(cls, attributes: Mapping[str, str]) -> Alter:
        return cls("add_attributes", attributes=attributes)

    @classmethod
    def upsert(
        cls,
        alias: str | None = None,
        tags: Mapping[str, str] | None = None,
        attributes: Mapping[str, str] | None = None,
    ) -> Alter:
        return cls("upsert", tags=tags or {}, attributes=attributes or {}, alias=alias)

    def to_json(self) -> dict[str, Any]:
        return {
            "action": self.action,
            "keys": list(self.keys),
            "values": dict(self.values),
            "tags": dict(self.tags),
            "attributes": dict(self.attributes),
            "alias": self.alias,
        }

    @classmethod
    def from_json(cls, value: Any) -> Alter:
        """CorruptData where it is none."""
        try:
            action, keys, alias = value["action"], tuple(value["keys"]), value["alias"]
            made = cls(action, keys, _texts(value["values"]), _texts(value["tags"]), _texts(value["attributes"]), alias)
        except (KeyError, TypeError) as error:
            raise CorruptData(f"a change of a series cannot be read: {error}") from None
        known = action in _ACTIONS and all(isinstance(key, str) for key in keys) and isinstance(alias, str | None)
        if not known or (action == "rename" and len(keys) != 2):
            raise CorruptData(f"a change of a series cannot be read: {action!r} of {keys!r}, alias {alias!r}")
        return made

    def apply(
        self, path: str, tags: Mapping[str, str], attributes: Mapping[str, str]
    ) -> tuple[dict[str, str], dict[str, str]]:
        """The series' new (tags, attributes); 303 with the original's texts. The alias is the tree's affair."""
        new_tags, new_attributes = dict(tags), dict(attributes)
        if self.action == "rename":
            self._rename(path, new_tags, new_attributes)
        elif self.action == "set":
            self._set(path, new_tags, new_attributes)
        elif self.action == "drop":
            for key in self.keys:
                new_tags.pop(key, None)
                new_attributes.pop(key, None)
        elif self.action in ("add_tags", "add_attributes"):
            for key in (*self.tags, *self.attributes):
                if key in tags:
                    raise _refused(f"TimeSeries [{path}] already has the tag [{key}].")
                if key in attributes:
                    raise _refused(f"TimeSeries [{path}] already has the attribute [{key}].")
            new_tags.update(self.tags)
            new_attributes.update(self.attributes)
        elif self.action == "upsert":
            check_tags(self.tags, self.attributes)
            for key in self.tags:
                if key in attributes:
                    raise _refused(f"TimeSeries [{path}] already has the attribute [{key}].")
            for key in self.attributes:
                if key in tags:
                    raise _refused(f"TimeSeries [{path}] already has the tag [{key}].")
            new_tags.update(self.tags)
            new_attributes.update(self.attributes)
        else:
            raise _refused(f"TimeSeries [{path}] cannot be altered by {self.action}.")
        check_tag_bytes(path, new_tags, new_attributes)
        return new_tags, new_attributes

    def _rename(self, path: str, tags: dict[str, str], attributes: dict[str, str]) -> None:
        key, to = self.keys
        if not tags and not attributes:
            raise _refused(f"TimeSeries [{path}] does not have any tag/attribute.")
        if to in tags or to in attributes:
            raise _refused(f"TimeSeries [{path}] already has a tag/attribute named [{to}].")
        holder = tags if key in tags else attributes
        if key not in holder:
            raise _refused(f"TimeSeries [{path}] does not have tag/attribute [{key}].")
        holder[to] = holder.pop(key)

    def _set(self, path: str, tags: dict[str, str], attributes: dict[str, str]) -> None:
        if not tags and not attributes:
            raise _refused(f"TimeSeries [{path}] does not have any tag/attribute.")
        for key, value in self.values.items():
            holder = tags if key in tags else attributes
            if key not in holder:
                raise _refused(f"TimeSeries [{path}] does not have tag/attribute [{key}].")
            holder[key] = value


def _refused(text: str) -> CallerError:
    return CallerError(Status.METADATA_ERROR, text)
