"""The scripts, whose expected text etcd's own harness wrote; what the runner must get right itself; the oracle."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from random import Random
from types import ModuleType

import pytest

HERE = Path(__file__).parent
SCRIPTS = sorted((HERE / "scripts").glob("*.txt"))
UPSTREAM_TICKS = 3  # election timeout of upstream's own files


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.stem)
def test_script(interaction: ModuleType, path: Path) -> None:
    script = interaction.parse_script(path.read_text())
    assert script.cases
    assert interaction.difference(script, interaction.run_script(script)) == ""


def test_the_scripts_cover_the_format(interaction: ModuleType) -> None:
    """Every command, every option of `add-nodes` and `propose-conf-change`, in scripts enough."""
    assert len(SCRIPTS) >= 60
    directives = [case.directive for path in SCRIPTS for case in interaction.parse_script(path.read_text()).cases]
    assert {directive.command for directive in directives} - {"juggle", "no-such-command"} == set(
        interaction.commands()
    )
    used = {(directive.command, key) for directive in directives for key, values in directive.arguments if values}
    options = [
        "voters",
        "learners",
        "index",
        "content",
        "inflight",
        "prevote",
        "checkquorum",
        "async-storage-writes",
        "read-only",
        "step-down-on-removal",
        "disable-conf-change-validation",
        "max-committed-size-per-ready",
    ]
    assert {("add-nodes", option) for option in options} <= used
    wanted = {
        ("deliver-msgs", "drop"),
        ("deliver-msgs", "type"),
        ("stabilize", "log-level"),
        ("propose-conf-change", "v1"),
    }
    assert wanted <= used
    transitions = {value for directive in directives for value in directive.values("transition")}
    assert {"auto", "implicit", "explicit"} <= transitions
    letters = {
        word[0]
        for directive in directives
        if directive.command == "propose-conf-change"
        for word in directive.input.split()
    }
    assert letters == set("vlru")


def test_all_but_a_few_scripts_are_recorded(interaction: ModuleType) -> None:
    by_hand = [path.stem for path in SCRIPTS if interaction.parse_script(path.read_text()).by_hand]
    assert by_hand == ["content_travels_in_a_snapshot"]


def test_a_script_is_rewritten_to_itself(interaction: ModuleType, tmp_path: Path) -> None:
    path = tmp_path / "copy.txt"
    original = SCRIPTS[0].read_text()
    path.write_text(original)
    assert interaction.main(["--rewrite", str(path)]) == 0
    assert path.read_text() == original


def test_a_difference_is_found_and_rewritten(interaction: ModuleType, tmp_path: Path) -> None:
    path = tmp_path / "wrong.txt"
    path.write_text(
        "# why\nadd-nodes 1 \\\n  voters=(1) index=2\n----\nINFO some words\nok\n\nraft-state\n----\n1: StateLeader\n"
    )
    assert interaction.main([str(path)]) == 1
    assert interaction.main(["--rewrite", str(path)]) == 0
    assert interaction.main([str(path)]) == 0
    rewritten = path.read_text()
    assert rewritten.startswith("# why\nadd-nodes 1 \\\n  voters=(1) index=2\n----\nok\n\n")
    assert rewritten.endswith("raft-state\n----\n1: StateFollower (Voter) Term:0 Lead:0\n")


def test_directives_are_parsed(datadriven: ModuleType) -> None:
    directive = datadriven.parse_directive("add-nodes 3 voters=(1, 2,3) learners=(4) prevote=true content= index=2")
    assert directive.command == "add-nodes"
    assert directive.ids == [3]
    assert directive.values("voters") == ["1", "2", "3"]
    assert directive.values("learners") == ["4"]
    assert directive.values("prevote") == ["true"]
    assert directive.values("content") == [""]
    assert datadriven.parse_directive("stabilize 1 2 log-level=none").ids == [1, 2]
    assert datadriven.parse_directive("x a=(b, c(d, e), f) g").arguments == [("a", ["b", "c(d, e)", "f"]), ("g", [])]
    for wrong in ("x a=(b", "x =b"):
        with pytest.raises(datadriven.Malformed):
            datadriven.parse_directive(wrong)


def test_files_are_parsed(datadriven: ModuleType) -> None:
    text = "# one\n\nx a\nfirst\n\nsecond\n----\n----\nsome\n\ntext\n----\n----\n\ny\n----\nplain\n\n# the end\n"
    script = datadriven.parse_script(text)
    assert [case.directive.command for case in script.cases] == ["x", "y"]
    assert script.cases[0].input == "first\n\nsecond"
    assert [case.expected for case in script.cases] == ["some\n\ntext", "plain"]
    assert datadriven.render_script(script, ["some\n\ntext", "plain"]) == text
    assert datadriven.render_script(script, ["flat", "a\n\nb"]).endswith(
        "y\n----\n----\na\n\nb\n----\n----\n\n# the end\n"
    )
    for wrong in ("x\n", "x\n----\n----\nopen\n", "x\n----\n----\na\n----\n----\nb\n"):
        with pytest.raises(datadriven.Malformed):
            datadriven.parse_script(wrong)


def test_copies_of_editors_are_no_scripts(datadriven: ModuleType, tmp_path: Path) -> None:
    for name in ("b.txt", "a.txt", ".c.txt", "#d.txt#", "e.txt~", "#f.txt"):
        (tmp_path / name).write_text("")
    assert [path.name for path in datadriven.script_paths(tmp_path)] == ["a.txt", "b.txt"]


# --- etcd -------------------------------------------------------------------------------------------------------------
def test_against_etcd(oracle: ModuleType, harness: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """20,000 random directives; `make raft-oracle` runs any number."""
    monkeypatch.setattr(oracle.leader, "_fits", oracle.leader._fits)  # the program replaces it
    figures = oracle.compare(harness, seed=20, total=20_000, steps=60)
    assert figures.differences == 0
    assert figures.directives >= 20_000
    assert figures.missing(timeouts=True) == []
    assert min(figures.elections, figures.changes, figures.snapshots) > 10


def test_the_recorded_text_is_etcds(oracle: ModuleType, harness: Path, tmp_path: Path) -> None:
    copies = []
    for path in SCRIPTS:
        copies.append(tmp_path / path.name)
        copies[-1].write_text(path.read_text())
    assert oracle.record(harness, copies) == len(SCRIPTS) - 1
    assert [copy.name for copy, path in zip(copies, SCRIPTS, strict=True) if copy.read_text() != path.read_text()] == []


@pytest.mark.usefixtures("harness")
def test_upstreams_own_files(interaction: ModuleType, oracle: ModuleType) -> None:
    """The files come with the Go module that the harness is built from."""
    paths = sorted((oracle.module_directory() / "testdata").glob("*.txt"))
    assert len(paths) == 28
    for path in paths:
        script = interaction.parse_script(path.read_text())
        assert interaction.difference(script, interaction.run_script(script, UPSTREAM_TICKS)) == "", path.name


def test_the_command_says_what_it_will_do_and_ends_with_figures(harness: Path) -> None:
    command = [sys.executable, str(HERE / "oracle.py"), "--n", "300", "--seed", "5", "--oracle", str(harness.parent)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    lines = done.stdout.splitlines()
    assert lines[0].startswith("300 random directives of seed 5")
    assert "at most 60 s" in lines[0]
    figures = json.loads(lines[-1])
    assert figures["target"] == "raft-oracle"
    assert figures["ok"] is True
    assert figures["directives"] >= 300
    assert {"seed", "commit", "seconds", "differences"} <= set(figures)


def test_without_go_the_command_says_that_nothing_was_compared(tmp_path: Path) -> None:
    environment = {**os.environ, "PATH": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, str(HERE / "oracle.py")], env=environment, capture_output=True, text=True, check=False
    )
    figures = json.loads(done.stdout.splitlines()[-1])
    assert done.returncode != 0
    assert figures["ok"] is False
    assert "Go is not installed" in figures["skipped"]


def test_random_scripts_depend_on_the_seed_alone(oracle: ModuleType) -> None:
    a, b = ([list(oracle.random_script(Random(seed), 60, True)) for seed in range(20)] for _ in range(2))
    assert a == b
    plain = [
        line for script in (list(oracle.random_script(Random(seed), 60)) for seed in range(20)) for line, _ in script
    ]
    assert {line for line in plain if line.startswith("reset")} == {"reset"}  # all that a harness need understand
    assert not any(line.startswith(("tick-election", "set-randomized")) for line in plain)
