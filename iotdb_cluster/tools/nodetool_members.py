"""The commands of nodetool about members and slots: what moves, who owns what, and changes without a newcomer."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from typing import Any, Protocol

import click

from iotdb_cluster.limits import MIB
from iotdb_cluster.tools.exits import REFUSED

__all__ = [
    "COMMANDS",
    "force_group",
    "force_meta",
    "header",
    "migration",
    "pause",
    "rebalance",
    "resume",
    "set_replication",
    "slot",
]

COMMANDS = {
    "force-group": "Let a data group go on without its dead replicas, also with loss",
    "force-meta": "Begin the meta group anew without its dead members, on a survivor",
    "header": "Print information about the data group that a node heads",
    "migration": "Print the change of members under way, and the slots that move",
    "pause": "Begin no new step of the change under way",
    "rebalance": "Even out the slots, by number or by load",
    "resume": "Go on with a paused change",
    "set-replication": "Change how many replicas every slot has",
    "slot": "Print the slots of each data group",
}
LONG_S = 60.0
POLL_S = 0.3
NOTHING_MOVES = "No slots are in the state of data migration, users can change membership."


class Asker(Protocol):
    """Asks the node and shows its answer, as `nodetool` does."""

    as_json: bool

    def __call__(self, command: str, *, timeout_s: float = 10.0, **arguments: Any) -> dict[str, Any]: ...
    def show(self, answer: dict[str, Any], lines: list[str]) -> None: ...


def _runs(runs: Sequence[Sequence[int]]) -> str:
    return ", ".join(str(first) if first == last else f"{first}-{last}" for first, last in runs)


@click.command()
@click.option("--wait", is_flag=True, help="Show how it goes on, until no change is under way.")
@click.pass_obj
def migration(asker: Asker, wait: bool) -> None:
    """Print the change of members under way, and the slots that move"""
    answer = asker("migration")
    said: list[str] = []
    while wait and answer.get("change"):
        now = [f"{answer['slots_left']} slots left", *answer["waiting"][:3]]
        if now != said:
            said = now
            click.echo("; ".join(now), err=True)
        time.sleep(POLL_S)
        answer = asker("migration")
    asker.show(answer, [] if answer.get("forming") else _migration_lines(answer))


def _migration_lines(answer: dict[str, Any]) -> list[str]:
    change = answer["change"]
    if change is None:
        return [NOTHING_MOVES, *map(_loss_line, answer["losses"])]
    lines = [f"Some slots are in the state of data migration: {answer['slots_left']} are left."]
    paused = ", paused" if change["paused"] else ""
    lines.append(f"Change {change['id']}: {change['kind']} of node {change['node']}{paused}; replicas: "
                 f"{answer['replication']}")  # fmt: skip
    lines.append(f"{'Slot num':<20}  {'Data Group':>30}")
    lines += [f"{move['count']:<20}->{move['giver']:>14} to {move['receiver']:<12}" for move in answer["moves"]]
    for move in answer["moves"]:
        lines.append(f"move {move['move']}: slots {_runs(move['slots'])}{_how_far(move)}")
    lines += [f"to do: {step}" for step in answer["steps"]]
    lines += [f"waits: {text}" for text in answer["waiting"]]
    return [*lines, *map(_loss_line, answer["losses"])]


def _loss_line(loss: Sequence[Any]) -> str:
    at, node, groups, slots = loss
    if node:
        return (
            f"accepted loss (entry {at}): {slots} slots of which dead node {node} had the only copy began anew, empty"
        )
    return f"accepted loss (entry {at}): group {groups[0]} goes on without its majority; it had {slots} slots"


def _how_far(move: dict[str, Any]) -> str:
    """What the receiver's leader told of a move; empty where it told nothing."""
    if "phase" not in move:
        return ""
    parts = [f"; {move['phase']}"]
    if move["bytes_total"]:
        parts.append(f"{move['bytes_done'] / MIB:.1f} of {move['bytes_total'] / MIB:.1f} MiB")
    if move["bytes_per_s"]:
        parts.append(f"{move['bytes_per_s'] / MIB:.1f} MiB/s")
    if move["left_s"] is not None:
        parts.append(f"{move['left_s']:.0f} s left")
    if move["waits_for"]:
        parts.append(f"waits: {move['waits_for']}")
    return ", ".join(parts)


@click.command()
@click.pass_obj
def slot(asker: Asker) -> None:
    """Print the slots of each data group"""
    answer = asker("host", all=True)
    lines = [f"{'Raft group':<50}  {'Slot Number':>20}"]
    for (members, slots), number in zip(answer.get("groups", []), answer.get("ids", []), strict=True):
        text = f"({', '.join(members)}),id={number}"
        lines.append(f"{text:<50}->{slots:>20}")
    asker.show(answer, lines)


@click.command()
@click.option("-id", "--raftid", "group", type=int, default=0, help="Identifier of the node (default: the asked one).")
@click.pass_obj
def header(asker: Asker, group: int) -> None:
    """Print information about the data group that a node heads"""
    answer = asker("header", group=group)
    if not answer.get("forming") and not answer.get("known"):
        asker.show(answer, [f"There is no data group headed by node {answer['group']}."])
        return
    lines = [f"{'Node Identifier':<20}  {'Node':>30}"]
    for node, text, leads in answer.get("nodes", []):
        lines.append(f"{node:<20d}->{text:>30} ({'LEADER' if leads else 'FOLLOWER'})")
    asker.show(answer, lines)


@click.command("set-replication")
@click.argument("number", type=int)
@click.pass_obj
def set_replication(asker: Asker, number: int) -> None:
    """Change how many replicas every slot has"""
    _begun(asker, asker("set-replication", timeout_s=LONG_S, replication=number))


@click.command()
@click.option("--dry-run", is_flag=True, help="Only show what would be done.")
@click.option("--by", type=click.Choice(["slots", "bytes", "points"]), default="slots", show_default=True)
@click.pass_obj
def rebalance(asker: Asker, dry_run: bool, by: str) -> None:
    """Even out the slots, by number or by load"""
    answer = asker("rebalance", timeout_s=LONG_S, by=by, dry_run=dry_run)
    if asker.as_json or answer.get("forming"):
        asker.show(answer, [])
        return
    for move in answer["moves"]:
        click.echo(f"{move['slots']} slots from group {move['giver']} to group {move['receiver']}")
    if dry_run:
        for step in answer["steps"] or ["nothing is to be done"]:
            click.echo(f"to do: {step}")
        return
    _begun(asker, answer)


@click.command()
@click.pass_obj
def pause(asker: Asker) -> None:
    """Begin no new step of the change under way"""
    answer = asker("pause")
    asker.show(answer, [f"change {answer.get('change')} is paused: what is under way ends, nothing new begins"])


@click.command()
@click.pass_obj
def resume(asker: Asker) -> None:
    """Go on with a paused change"""
    answer = asker("resume")
    asker.show(answer, [f"change {answer.get('change')} goes on"])


@click.command("force-meta")
@click.option("--accept-loss", is_flag=True, help="Also where the dead may have decided what no survivor knows.")
@click.pass_obj
def force_meta(asker: Asker, accept_loss: bool) -> None:
    """Begin the meta group anew without its dead members, on a survivor"""
    answer = asker("force-meta", timeout_s=LONG_S, accept_loss=accept_loss)
    lines = [
        f"the meta group has begun generation {answer['generation']} with the log of node {answer['node']}, which ends "
        f"with entry {answer['last']} of term {answer['term']}",
        f"other members: {', '.join(f'node {node}' for node in answer['survivors']) or 'none'}",
        f"left out as dead: {', '.join(f'node {node}' for node in answer['left_out'])}; remove or replace each of them "
        "now: remove-node.sh, add-node.sh --replace",
    ]
    asker.show(answer, lines)


@click.command("force-group")
@click.argument("group", type=int)
@click.option("--accept-loss", is_flag=True, help="Also where the dead may have points that no survivor has.")
@click.pass_obj
def force_group(asker: Asker, group: int, accept_loss: bool) -> None:
    """Let a data group that lost its majority go on without its dead replicas"""
    answer = asker("force-group", timeout_s=LONG_S, group=group, accept_loss=accept_loss)
    left_out = ", ".join(f"node {node}" for node in answer["left_out"])
    lines = [
        f"group {group} begins generation {answer['generation']} without its replicas on {left_out}",
        "remove or replace these nodes: remove-node.sh, add-node.sh --replace; for one that comes back say "
        "set-replication with the present number, then it gets replicas again",
    ]
    asker.show(answer, lines)


def _begun(asker: Asker, answer: dict[str, Any]) -> None:
    if not answer.get("change"):
        asker.show(answer, ["nothing is to be done"])
    else:
        asker.show(answer, [f"change {answer['change']} has begun: nodetool.sh migration shows how far it is"])


def refused(answer: dict[str, Any]) -> None:
    """End with the exit code of a refusal where the answer is one."""
    if answer.get("code") == 504:
        click.echo(f"refused: {str(answer['error']).removeprefix('504: ')}", err=True)
        sys.exit(REFUSED)
