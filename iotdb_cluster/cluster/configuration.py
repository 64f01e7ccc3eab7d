"""From the text of the property files to `Settings`: what each line does, and a notice for each that does nothing."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from typing import Any

from iotdb_cluster.auth import NAME_CHARS_MIN
from iotdb_cluster.cluster.keys import CLUSTER_FILE, ENGINE_FILE, KEYS, Key
from iotdb_cluster.cluster.settings import NodeAddress, Settings, parse_seed
from iotdb_cluster.columns import DataType
from iotdb_cluster.limits import MIB
from iotdb_cluster.schema.inference import InferenceRules

__all__ = ["BadConfiguration", "Loaded", "PropertyFile", "load", "parse_properties"]

SEGMENT_BYTES_MIN = 16 * MIB  # what one Ready can hold, several entries of 4 MiB, must fit
_PATHS = {"log_directory", "system_directory", "data_directories"}
SEGMENT_BYTES_MAX = 256 * MIB


class BadConfiguration(Exception):
    """A key has a value that cannot be used; the message names key, value, file and line. Exit code 1."""


@dataclass(frozen=True, slots=True)
class PropertyFile:
    """The text of a property file and where it was found."""

    name: str  # CLUSTER_FILE or ENGINE_FILE
    path: str
    text: str


@dataclass(frozen=True, slots=True)
class Loaded:
    """The settings, and a line for the log for each key that has no effect or is not known."""

    settings: Settings
    notices: tuple[str, ...]


@dataclass(slots=True)
class _Value:
    text: str
    where: str


@dataclass(slots=True)
class _Reader:
    values: dict[str, _Value] = field(default_factory=dict)
    notices: list[str] = field(default_factory=list)

    def take(self, setting: str, default: Any) -> Any:
        """The setting's value: of the key that is honoured for it, else of one that was renamed to it."""
        for fate in ("honoured", "renamed"):
            for keys in KEYS.values():
                for key in keys:
                    if key.setting == setting and key.fate == fate and key.name in self.values:
                        return self.read(key)
        return default

    def read(self, key: Key) -> Any:
        value = self.values[key.name]
        try:
            return _KINDS[key.kind](value.text)
        except ValueError as error:
            raise BadConfiguration(f"{value.where}: {key.name}={value.text}: {error}") from None


def parse_properties(text: str) -> list[tuple[int, str, str]]:
    """(line number, key, value) of each assignment; `#` and `!` begin a comment, a backslash escapes, blanks go."""
    found = []
    lines = text.splitlines()
    at = 0
    while at < len(lines):
        number = at + 1
        line = lines[at].strip()
        at += 1
        while line.endswith("\\") and not line.endswith("\\\\") and at < len(lines):
            line = line[:-1] + lines[at].strip()
            at += 1
        if not line or line[0] in "#!":
            continue
        key, equals, value = line.partition("=")
        if not equals:
            key, _, value = line.partition(":")
        found.append((number, key.strip(), _unescape(value.strip())))
    return found


def _unescape(text: str) -> str:
    pieces = text.split("\\\\")
    return "\\".join(piece.replace("\\", "") for piece in pieces)


def load(files: list[PropertyFile], overrides: Mapping[str, str], home: str) -> Loaded:
    """The settings that the files and the command line give; the command line wins.

    `overrides` is by key name; `home` is the parent of `data/` and of every relative path. Raises BadConfiguration.
    """
    reader = _Reader()
    for file in files:
        for number, name, value in parse_properties(file.text):
            _accept(reader, file, number, name, value)
    for name, value in overrides.items():
        reader.values[name] = _Value(value, "command line")
    return Loaded(_settings(reader, home), tuple(reader.notices))


def _accept(reader: _Reader, file: PropertyFile, number: int, name: str, value: str) -> None:
    where = f"{file.path}:{number}"
    keys = [key for key in KEYS.get(name, []) if key.file == file.name] or KEYS.get(name, [])
    if not keys:
        near = difflib.get_close_matches(name, KEYS, 1)
        hint = f"; did you mean {near[0]}?" if near else ""
        reader.notices.append(f"{where}: {name} is not a key of this server{hint}")
        return
    key = keys[0]
    if key.fate == "refused":
        only = key.refuse[1:] if key.refuse.startswith("!") else None
        bad = value.lower() != only.lower() if only is not None else value.lower() == key.refuse
        if bad:
            raise BadConfiguration(f"{where}: {name}={value} is refused: {key.about}")
    elif key.fate == "accepted":
        reader.notices.append(f"{where}: {name} has no effect here: {key.about}")
    elif value or key.kind == "text":
        reader.values[name] = _Value(value, where)


def _settings(reader: _Reader, home: str) -> Settings:
    take = reader.take

    def below(path: str) -> str:
        return path if path.startswith("/") else f"{home}/{path}"

    host = str(take("host", "127.0.0.1"))
    address = NodeAddress(host, take("meta_port", 9003), take("data_port", 40010), take("client_port", 55560))
    directory = f"{home}/data"
    own = Settings(address, (), directory)
    seeds = take("seeds", _seeds(next(key.default for key in KEYS["seed_nodes"])))
    special = {"address", "seeds", "directory", "client_listen_host", "inference"} | _PATHS
    simple = {
        item.name: take(item.name, getattr(own, item.name)) for item in fields(Settings) if item.name not in special
    }
    inference = InferenceRules(
        **{name: take(f"infer_{name}", getattr(own.inference, name)) for name in own.inference.__dataclass_fields__}
    )
    paths: dict[str, Any] = {}
    if "wal_dir" in reader.values:
        paths["log_directory"] = below(take("log_directory", ""))
    if "system_dir" in reader.values:
        paths["system_directory"] = below(take("system_directory", ""))
    if "data_dirs" in reader.values:
        paths["data_directories"] = tuple(below(path) for path in take("data_directories", ()))
    listen = take("client_listen_host", "")
    return Settings(address, seeds, directory, client_listen_host=listen, inference=inference, **simple, **paths)


# --- how a value is read: each raises ValueError saying what is wanted ------------------------------------------------


def _integer(low: int, high: int, what: str) -> Callable[[str], int]:
    def read(text: str) -> int:
        try:
            number = int(text)
        except ValueError:
            raise ValueError(f"a whole number is wanted ({what})") from None
        if not low <= number <= high:
            raise ValueError(f"{what} is wanted")
        return number

    return read


def _proportion(text: str) -> float:
    try:
        number = float(text)
    except ValueError:
        number = -1.0
    if not 0 <= number <= 1:
        raise ValueError("a number from 0 to 1 is wanted")
    return number


def _bool(text: str) -> bool:
    if text.lower() not in ("true", "false"):
        raise ValueError("true or false is wanted")
    return text.lower() == "true"


def _choice(*names: str) -> Callable[[str], str]:
    def read(text: str) -> str:
        if text.lower() not in names:
            raise ValueError(f"one of {', '.join(names)} is wanted")
        return text.lower()

    return read


def _type(text: str) -> DataType:
    if text.upper() not in DataType.__members__:
        raise ValueError(f"one of {', '.join(DataType.__members__)} is wanted")
    return DataType[text.upper()]


def _user(text: str) -> str:
    if len(text) < NAME_CHARS_MIN or any(letter.isspace() for letter in text):
        raise ValueError(f"a name of at least {NAME_CHARS_MIN} characters without blanks is wanted")
    return text


def _seeds(text: str) -> tuple[NodeAddress, ...]:
    seeds = tuple(parse_seed(item) for item in text.split(",") if item.strip())
    if not seeds:
        raise ValueError("at least one node is wanted")
    names = [seed.name for seed in seeds]
    if len(set(names)) != len(names):
        raise ValueError("a node stands there twice")
    return seeds


_POSITIVE = _integer(1, (1 << 63) - 1, "a number above 0")
_KINDS: dict[str, Callable[[str], Any]] = {
    "text": str,
    "bool": _bool,
    "port": _integer(1, 65_535, "a port from 1 to 65535"),
    "positive": _POSITIVE,
    "count": _integer(0, (1 << 63) - 1, "a number from 0"),
    "seconds": lambda text: _POSITIVE(text) * 1000,
    "megabytes": lambda text: _POSITIVE(text) * MIB,
    "proportion": _proportion,
    "segment": lambda text: min(max(_POSITIVE(text), SEGMENT_BYTES_MIN), SEGMENT_BYTES_MAX),
    "consistency": _choice("strong", "mid", "weak"),
    "precision": _choice("ms", "us", "ns"),
    "slot_strategy": _choice("hash", "round_robin"),
    "type": _type,
    "seeds": _seeds,
    "user": _user,
    "listen": lambda text: "" if text in ("0.0.0.0", "::") else text,
    "directory": str,
    "directories": lambda text: tuple(item.strip() for item in text.split(",") if item.strip()),
}
FILES = (CLUSTER_FILE, ENGINE_FILE)
