"""The command line of a node, and the settings that it and the property files make."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from iotdb_cluster.cluster.configuration import FILES, BadConfiguration, Loaded, PropertyFile, load
from iotdb_cluster.tools.homes import home_of
from iotdb_cluster.tools.memory import default_memtable_mb

__all__ = ["Arguments", "parse_arguments", "read_settings"]

USAGE = """usage: start-node.sh [-s | -a [--replace NODE]] [printgc] [-c CONF_DIR] [-internal_meta_port N]
                     [-internal_data_port N] [-cluster_rpc_port N] [-cluster_rpc_ip HOST] [-seed_nodes LIST]
                     [-nodetool_port N] [-web_port N] [-home DIR] [--accept-loss]
       start-node.sh -r IP META_PORT [-c CONF_DIR] [-seed_nodes LIST]"""
OVERRIDES = {
    "-internal_meta_port",
    "-internal_data_port",
    "-cluster_rpc_port",
    "-cluster_rpc_ip",
    "-seed_nodes",
    "-nodetool_port",
    "-web_port",
    "-default_replica_num",
}


@dataclass(slots=True)
class Arguments:
    """The command line: where the property files are, and what it overrides."""

    conf: Path | None = None
    given_home: Path | None = None
    overrides: dict[str, str] = field(default_factory=dict)
    print_gc: bool = False
    accept_loss: bool = False
    joins: bool = False
    replaces: int = 0

    @property
    def home(self) -> Path:
        """Where `logs/`, `node.pid` and, unless the files say otherwise, `data/` are."""
        return self.given_home or home_of(self.conf)


def parse_arguments(words: Sequence[str]) -> Arguments:
    """Raises BadConfiguration for an unknown word or a missing value."""
    found = Arguments()
    rest = list(words)
    while rest:
        word = rest.pop(0)
        if word == "printgc":
            found.print_gc = True
        elif word == "--accept-loss":
            found.accept_loss = True
        elif word in ("-h", "-help", "--help"):
            raise BadConfiguration(USAGE)
        elif word in ("-s", "-sc"):
            continue
        elif word == "-a":
            found.joins = True
        elif word == "--replace":
            value = rest.pop(0) if rest else ""
            if not value.isdigit() or not int(value):
                raise BadConfiguration(
                    f"--replace needs the identifier of the member that is dead, not {value!r}\n{USAGE}"
                )
            found.joins, found.replaces = True, int(value)
        elif word in {"-c", "-home", *OVERRIDES}:
            if not rest:
                raise BadConfiguration(f"{word} needs a value\n{USAGE}")
            value = rest.pop(0)
            if word == "-c":
                found.conf = Path(value)
            elif word == "-home":
                found.given_home = Path(value)
            else:
                found.overrides[word[1:]] = value
        elif not word.startswith("-") and found.conf is None:
            found.conf = Path(word)
        else:
            raise BadConfiguration(f"{word} is not an option of this command\n{USAGE}")
    return found


def read_settings(arguments: Arguments) -> Loaded:
    """Read the property files; a directory that was named must hold at least one of them. Raises BadConfiguration."""
    conf = arguments.conf or arguments.home / "conf"
    files = [
        PropertyFile(name, str(conf / name), (conf / name).read_text()) for name in FILES if (conf / name).exists()
    ]
    if arguments.conf is not None and not files:
        raise BadConfiguration(f"{conf} holds neither {FILES[0]} nor {FILES[1]}")
    usual = PropertyFile(FILES[1], "memory of this machine", f"memtable_memory_mb={default_memtable_mb()}")
    loaded = load([usual, *files], arguments.overrides, str(arguments.home.resolve()))
    settings = replace(
        loaded.settings,
        accept_loss=arguments.accept_loss,
        joins=arguments.joins,
        replaces=arguments.replaces,
    )
    if settings.joins and all(seed.name == settings.address.name for seed in settings.seeds):
        raise BadConfiguration(
            f"seed_nodes names only this node, {settings.address.name}: a node that joins needs a member to ask"
        )
    return replace(loaded, settings=settings)
