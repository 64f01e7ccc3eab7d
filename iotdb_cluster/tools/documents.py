"""Documents and sample property files that are generated from the code: `python -m iotdb_cluster.tools.documents`.

With `--check` nothing is written; exit 1 where a file is not what it would be.
"""

from __future__ import annotations

import sys
import textwrap
from pathlib import Path

from iotdb_cluster.cluster.keys import CLUSTER_FILE, ENGINE_FILE, KEYS, Key

__all__ = ["generated", "main"]

ROOT = Path(__file__).parents[2]


def _keys(file: str, *fates: str) -> list[Key]:
    return [key for keys in KEYS.values() for key in keys if key.file == file and key.fate in fates]


def _configuration() -> str:
    lines = [
        "# Configuration",
        "",
        "Generated from `iotdb_cluster/cluster/keys.py` by `python -m iotdb_cluster.tools.documents`.",
        "",
        *textwrap.wrap(
            "Two property files in `conf/` (or the directory that `-c` names) are read at the start: `key=value`, `#` "
            "begins a comment, a backslash escapes or continues a line, the last assignment of a key wins, the command "
            "line wins over both. A key that is not known is named in the log, with the nearest one that is. *Common* "
            "keys must be equal on all nodes: the first start compares them and names each that differs.",
            118,
        ),
        "",
        *textwrap.wrap(
            "*Hot* keys change while the node runs: edit the file and say `LOAD CONFIGURATION`. Its answer, and the "
            "log, name what changed and what needs a restart; a file that cannot be used changes nothing. `LOAD "
            "CONFIGURATION -GLOBAL` gives the asked node's hot values to all nodes, until their own next reload or "
            "start: their files are not touched.",
            118,
        ),
    ]
    for file in (CLUSTER_FILE, ENGINE_FILE):
        lines += ["", f"## {file}", "", "| key | default | | meaning |", "|---|---|---|---|"]
        for key in _keys(file, "honoured"):
            default = f"`{key.default}`" if key.default else "none"
            lines.append(f"| `{key.name}` | {default} | {_marks(key)} | {key.about} |")
        lines += ["", "Honoured under another name:", ""]
        lines += [f"- `{key.name}`: {key.about}" for key in _keys(file, "renamed")]
        lines += ["", "Refused, with the reason, where the value breaks a promise:", ""]
        for key in _keys(file, "refused"):
            value = f"any value but `{key.refuse[1:]}`" if key.refuse[0] == "!" else f"`{key.refuse}`"
            lines.append(f"- `{key.name}` = {value if key.refuse != '!' else 'any value'}: {key.about}")
        lines += ["", "Accepted without effect, with one line in the log:", ""]
        reasons: dict[str, list[str]] = {}
        for key in _keys(file, "accepted"):
            reasons.setdefault(key.about, []).append(f"`{key.name}`")
        lines += [f"- {about}: {', '.join(names)}" for about, names in reasons.items()]
    return "\n".join(lines) + "\n"


def _marks(key: Key) -> str:
    return ", ".join(mark for mark, holds in (("common", key.common), ("hot", key.reload)) if holds)


def _sample(file: str) -> str:
    lines = [f"# {file}: every key that has an effect, with its default. All keys: docs/configuration.md", ""]
    for key in _keys(file, "honoured"):
        lines += textwrap.wrap(key.about, 110, initial_indent="# ", subsequent_indent="# ")
        if key.name in ("wal_dir", "system_dir", "data_dirs") or not key.default:
            lines += [f"# {key.name}={key.default}", ""]
        else:
            lines += [f"{key.name}={key.default}", ""]
    return "\n".join(lines).rstrip() + "\n"


def generated() -> dict[Path, str]:
    """Each generated file and its text."""
    return {
        ROOT / "docs" / "configuration.md": _configuration(),
        ROOT / "conf" / CLUSTER_FILE: _sample(CLUSTER_FILE),
        ROOT / "conf" / ENGINE_FILE: _sample(ENGINE_FILE),
    }


def main() -> int:
    stale = [path for path, text in generated().items() if not path.exists() or path.read_text() != text]
    if "--check" in sys.argv[1:]:
        for path in stale:
            print(
                f"{path.relative_to(ROOT)} is not what the code generates: run python -m iotdb_cluster.tools.documents"
            )
        return 1 if stale else 0
    for path in stale:
        path.write_text(generated()[path])
        print(f"wrote {path.relative_to(ROOT)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
