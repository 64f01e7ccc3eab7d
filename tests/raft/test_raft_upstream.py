"""Upstream's own tables for majorities and for changes of the membership, which come with the Go module."""

from __future__ import annotations

import re
from pathlib import Path
from types import ModuleType

import pytest

from iotdb_cluster.raft import ChangeRefused, Configuration
from iotdb_cluster.raft.membership import Members, enter_joint, leave_joint, simple
from iotdb_cluster.raft.progress import Inflights, Progress
from iotdb_cluster.raft.quorum import VoteResult, joint_committed_index, joint_vote_result

NO_LIMIT = (1 << 64) - 1
WORDS = {VoteResult.WON: "VoteWon", VoteResult.LOST: "VoteLost", VoteResult.PENDING: "VotePending"}


def described(members: Members) -> str:
    def ids(name: str, nodes: tuple[int, ...]) -> str:
        return f" {name}=({' '.join(map(str, nodes))})" if nodes else ""

    configuration = members.configuration
    text = f"voters=({' '.join(map(str, configuration.incoming))})"
    if configuration.outgoing:
        text += f"&&({' '.join(map(str, configuration.outgoing))})"
    text += ids("learners", configuration.learners) + ids("learners_next", configuration.learners_next)
    text += " autoleave" if configuration.auto_leave else ""
    lines = [
        f"{node}: StateProbe match=0 next={progress.next}" + (" learner" if progress.learner else "")
        for node, progress in members.progress.items()
    ]
    return "\n".join([text, *lines])


def test_changes_of_the_membership(interaction: ModuleType, upstream: Path) -> None:
    cases = 0
    for path in sorted((upstream / "confchange/testdata").glob("*.txt")):
        members = Members(Configuration(), {})
        for number, case in enumerate(interaction.parse_script(path.read_text()).cases):
            directive = case.directive
            changes = interaction.parse_changes(directive.input)

            def newcomer(learner: bool, last: int = number) -> Progress:
                return Progress(0, max(last, 1), Inflights(10, 0), learner=learner)

            try:
                if directive.command == "simple":
                    changed = simple(members, changes, newcomer)
                elif directive.command == "enter-joint":
                    auto_leave = directive.values("autoleave") == ["true"]
                    changed = enter_joint(members, changes, newcomer, auto_leave=auto_leave)
                else:
                    assert directive.command == "leave-joint"
                    changed = leave_joint(members, newcomer)
            except ChangeRefused:
                assert not case.expected.startswith("voters="), f"{path.name}: {case.line} {case.input}"
            else:
                members = changed
                assert described(members) == case.expected, f"{path.name}: {case.line} {case.input}"
            cases += 1
    assert cases == 58


def test_majorities(interaction: ModuleType, upstream: Path) -> None:
    cases = 0
    for path in sorted((upstream / "quorum/testdata").glob("*.txt")):
        for case in interaction.parse_script(path.read_text()).cases:
            directive = case.directive
            ids = [int(one) for one in directive.values("cfg") if one]
            joint = [int(one) for one in directive.values("cfgj") if one and one != "zero"]
            given = directive.values("idx" if directive.command == "committed" else "votes")
            by_id = dict(zip(dict.fromkeys([*ids, *joint]), given, strict=False))
            known = {member: word for member, word in by_id.items() if word not in ("", "_")}
            if directive.command == "committed":
                index = joint_committed_index(ids, joint, {member: int(word) for member, word in known.items()})
                found = "∞" if index == NO_LIMIT else str(index)
            else:
                votes = {member: word == "y" for member, word in known.items()}
                found = WORDS[joint_vote_result(ids, joint, votes)]
            expected = case.expected.splitlines()[-1].removeprefix("<empty majority quorum>")
            assert found == expected, f"{path.name}: {case.line}"
            cases += 1
    assert cases == 127


@pytest.fixture(scope="module")
def upstream(oracle: ModuleType, harness: Path) -> Path:
    """Where the Go module lies that the harness is built from."""
    found = oracle.module_directory()
    assert re.search(r"raft/v3@v3\.\d+\.\d+$", str(found))
    del harness
    return found  # type: ignore[no-any-return]
