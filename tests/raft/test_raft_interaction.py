"""The scripts, whose expected text etcd's own harness wrote, and what the runner must get right itself."""

from __future__ import annotations

import shutil
from pathlib import Path
from types import ModuleType

import pytest

SCRIPTS = sorted((Path(__file__).parent / "scripts").glob("*.txt"))


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.stem)
def test_script(interaction: ModuleType, path: Path) -> None:
    script = interaction.parse_script(path.read_text())
    assert script.cases
    assert interaction.difference(script, interaction.run_script(script)) == ""


def test_there_are_scripts_enough() -> None:
    assert len(SCRIPTS) >= 25


def test_a_script_is_rewritten_to_itself(interaction: ModuleType, tmp_path: Path) -> None:
    path = tmp_path / "copy.txt"
    original = SCRIPTS[0].read_text()
    path.write_text(original)
    assert interaction.main(["--rewrite", str(path)]) == 0
    assert path.read_text() == original


def test_a_difference_is_found(interaction: ModuleType, tmp_path: Path) -> None:
    path = tmp_path / "wrong.txt"
    path.write_text("add-nodes 1 voters=(1) index=2\n----\nINFO some words\nok\n\nraft-state\n----\n1: StateLeader\n")
    assert interaction.main([str(path)]) == 1


def test_directives_are_parsed(interaction: ModuleType) -> None:
    directive = interaction.parse_directive("add-nodes 3 voters=(1, 2,3) learners=(4) prevote=true index=2")
    assert directive.command == "add-nodes"
    assert directive.ids == [3]
    assert directive.values("voters") == ["1", "2", "3"]
    assert directive.values("learners") == ["4"]
    assert directive.values("prevote") == ["true"]
    assert interaction.parse_directive("stabilize 1 2 log-level=none").ids == [1, 2]


def test_against_etcd(oracle: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A short run of the differential program; the long one is `python tests/raft/oracle.py`."""
    if shutil.which("go") is None:
        pytest.skip("Go is not installed")
    try:
        binary = oracle.find_oracle(None, tmp_path)
    except oracle.Missing as exception:
        pytest.skip(str(exception))
    monkeypatch.setattr(oracle.leader, "_fits", oracle.leader._fits)  # the program replaces it
    figures = oracle.compare(binary, seed=20, total=5000, steps=60)
    assert figures["differences"] == 0
    assert figures["directives"] >= 4900
