"""What the documents name exists: linked files, scripts, make targets, status codes."""

import os
import re
from pathlib import Path

import pytest

from iotdb_cluster.errors import Status
from iotdb_cluster.tools.nodetool import main as nodetool

ROOT = Path(__file__).parents[2]
DOCUMENTS = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
LINK = re.compile(r"\]\(([^)#\s]+)(?:#[^)]*)?\)")
SCRIPT = re.compile(r"\bsbin/[\w.-]+\.sh\b")
MAKE = re.compile(r"(?:^|`)make ([a-z][a-z-]*)", re.MULTILINE)
TARGET = re.compile(r"^([a-z][a-z-]*):", re.MULTILINE)
CODE_ROW = re.compile(r"^\| (\d{3}(?:, \d{3})*) \| ([A-Z_]+(?:, [A-Z_]+)*) \|", re.MULTILINE)
NODETOOL = re.compile(r"\bnodetool\.sh(?: -[hp] \S+)* ([a-z][a-z-]*)")
COMMAND_ROW = re.compile(r"^\| (`[a-z](?:\\\||[^|])*) \|", re.MULTILINE)
COMMAND = re.compile(r"`([a-z][a-z-]*)")
PROGRAM = re.compile(r"\b(?:bench|examples|tests)/[\w/]+\.(?:py|transcript)\b")


def name_of(path: Path) -> str:
    return str(path.relative_to(ROOT))


@pytest.mark.parametrize("path", DOCUMENTS, ids=name_of)
def test_links_lead_somewhere(path: Path) -> None:
    targets = [target for target in LINK.findall(path.read_text()) if "://" not in target]
    missing = [target for target in targets if not (path.parent / target).exists()]
    assert not missing


@pytest.mark.parametrize("path", DOCUMENTS, ids=name_of)
def test_scripts_and_programs_exist(path: Path) -> None:
    text = path.read_text()
    for script in sorted(set(SCRIPT.findall(text))):
        assert os.access(ROOT / script, os.X_OK), f"{script} does not exist or cannot be executed"
    for program in sorted(set(PROGRAM.findall(text))):
        assert (ROOT / program).is_file(), program


@pytest.mark.parametrize("path", DOCUMENTS, ids=name_of)
def test_make_targets_exist(path: Path) -> None:
    targets = set(TARGET.findall((ROOT / "Makefile").read_text()))
    assert set(MAKE.findall(path.read_text())) <= targets


def test_every_make_target_is_described() -> None:
    told = set(MAKE.findall((ROOT / "docs" / "testing.md").read_text())) | {"help", "env", "format"}
    assert set(TARGET.findall((ROOT / "Makefile").read_text())) <= told


def test_the_commands_of_nodetool_are_described() -> None:
    rows = COMMAND_ROW.findall((ROOT / "docs" / "tools.md").read_text().partition("## nodetool.sh")[2])
    described = {name for row in rows for name in COMMAND.findall(row)}
    assert set(nodetool.commands) <= described


@pytest.mark.parametrize("path", DOCUMENTS, ids=name_of)
def test_commands_of_nodetool_exist(path: Path) -> None:
    assert set(NODETOOL.findall(path.read_text())) <= set(nodetool.commands)


def test_every_script_is_described() -> None:
    text = (ROOT / "docs" / "tools.md").read_text()
    missing = [script.name for script in sorted((ROOT / "sbin").glob("*.sh")) if script.name not in text]
    assert not missing


def test_status_codes_are_those_of_the_program() -> None:
    rows = CODE_ROW.findall((ROOT / "docs" / "status-codes.md").read_text())
    assert len(rows) > 30
    seen: list[int] = []
    for codes, names in rows:
        for code, name in zip(codes.split(", "), names.split(", "), strict=True):
            assert Status(int(code)).name == name
            seen.append(int(code))
    assert len(seen) == len(set(seen)), "a code stands in two tables"


def test_every_status_that_the_program_uses_is_described() -> None:
    described = {
        int(code)
        for codes, _ in CODE_ROW.findall((ROOT / "docs" / "status-codes.md").read_text())
        for code in codes.split(", ")
    }
    used: set[str] = set()
    for path in (ROOT / "iotdb_cluster").rglob("*.py"):
        used |= set(re.findall(r"\bStatus\.([A-Z_]+)", path.read_text()))
    internal = {Status.START_UP_ERROR}  # between nodes only
    missing = sorted(name for name in used & set(Status.__members__) if Status[name] not in described | internal)
    assert not missing
