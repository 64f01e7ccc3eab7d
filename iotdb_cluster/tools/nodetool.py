"""`nodetool.sh`: looks at a running cluster through the nodetool port of any member."""

from __future__ import annotations

import json
import sys
import time
from typing import Any

import click

from iotdb_cluster.limits import MIB
from iotdb_cluster.tools import nodetool_archive, nodetool_members
from iotdb_cluster.tools.admin_client import AdminUnreachable, ask
from iotdb_cluster.tools.exits import BAD_ARGUMENTS, UNREACHABLE
from iotdb_cluster.tools.raft_log import show_log

__all__ = ["main"]

ANSWER_S = 10.0
DIGEST_S = 3_600.0  # all data are read
COMMANDS = {
    **nodetool_archive.COMMANDS,
    **nodetool_members.COMMANDS,
    "digest": "Compare the replicas' digests of each group's content",
    "groups": "Print leader, term, commit, applied index and lag of each member of each Raft group",
    "help": "Display help information",
    "host": "Print partitions information which a specific host belongs to",
    "log": "Print raft logs from a log directory or a segment file",
    "partition": "Print the hosts information of specific storage group and time range",
    "ring": "Print information about the hash ring of nodes",
    "snapshots": "Print the snapshots that members are being sent",
    "status": "Print status of all nodes",
}


class _Asker:
    """Where to ask, and how to answer."""

    def __init__(self, host: str, port: int, as_json: bool) -> None:
        self.host = host
        self.port = port
        self.as_json = as_json

    def __call__(self, command: str, *, timeout_s: float = ANSWER_S, **arguments: Any) -> dict[str, Any]:
        try:
            answer = ask(self.host, self.port, {"command": command, **arguments}, timeout_s)
        except AdminUnreachable as error:
            click.echo(f"nodetool: Failed to connect to '{self.host}:{self.port}' - {error}.", err=True)
            sys.exit(BAD_ARGUMENTS)
        nodetool_members.refused(answer)
        if "error" in answer:
            click.echo(f"error: {answer['error']}", err=True)
            sys.exit(UNREACHABLE)
        return answer

    def show(self, answer: dict[str, Any], lines: list[str]) -> None:
        if self.as_json:
            click.echo(json.dumps(answer, sort_keys=True))
            return
        if answer.get("forming"):
            click.echo("The cluster is being created.")
            return
        for line in lines:
            click.echo(line)


@click.group(
    invoke_without_command=True,
    add_help_option=False,
    context_settings={"help_option_names": [], "ignore_unknown_options": False},
)
@click.option("-h", "--host", default="127.0.0.1")
@click.option("-p", "--port", type=int, default=31999)
@click.option("-u", "--user", default="root", hidden=True)
@click.option("-pw", "--password", default="root", hidden=True)
@click.option("--json", "as_json", is_flag=True)
@click.pass_context
def main(context: click.Context, host: str, port: int, user: str, password: str, as_json: bool) -> None:
    """Looks at a cluster."""
    del user, password  # reading is open on loopback
    context.obj = _Asker(host, port, as_json)
    if context.invoked_subcommand is None:
        context.invoke(help_)


@main.command("help")
@click.argument("command", required=False)
def help_(command: str | None = None) -> None:
    """Display help information"""
    if command in COMMANDS:
        click.echo(f"nodetool {command}: {COMMANDS[command]}")
        return
    click.echo("usage: nodetool [(-h <host> | --host <host>)] [(-p <port> | --port <port>)] [--json]")
    click.echo("        <command> [<args>]\n")
    click.echo("The most commonly used nodetool commands are:")
    for name, about in sorted(COMMANDS.items()):
        click.echo(f"    {name:<16}{about}")
    click.echo("\nSee 'nodetool help <command>' for more information on a specific command.")


@main.command()
@click.pass_obj
def ring(asker: _Asker) -> None:
    """Print information about the hash ring of nodes"""
    answer = asker("ring")
    lines = [f"{'Node Identifier':<20}  {'Node':>30}"]
    lines += [
        f"{identifier:<20d}->{text:>30}{'' if state == 'normal' else f' ({state})'}"
        for identifier, text, state in answer.get("nodes", [])
    ]
    asker.show(answer, lines)


@main.command()
@click.pass_obj
def status(asker: _Asker) -> None:
    """Print status of all nodes"""
    answer = asker("status")
    lines = [f"{'Node':<30}  {'Status':>10}"]
    lines += [f"{text:<30}->{state:>10}" for text, state in answer.get("nodes", [])]
    asker.show(answer, lines)


@main.command()
@click.option("-a", "--all", "everywhere", is_flag=True)
@click.pass_obj
def host(asker: _Asker, everywhere: bool) -> None:
    """Print partitions information which a specific host belongs to"""
    answer = asker("host", all=everywhere)
    lines = [f"{'Raft group':<50}  {'Slot Number':>20}"]
    for members, slots in answer.get("groups", []):
        text = f"({', '.join(members)})"
        lines.append(f"{text:<50}->{slots:>20}")
    asker.show(answer, lines)


@main.command()
@click.option("-path", "--path", required=True)
@click.option("-st", "--starttime", type=int)
@click.option("-et", "--endtime", type=int)
@click.option("-m", "--metadata", is_flag=True)
@click.pass_obj
def partition(asker: _Asker, path: str, starttime: int | None, endtime: int | None, metadata: bool) -> None:
    """Print the hosts information of specific storage group and time range"""
    now = time.time_ns() // 1_000_000
    start = now if starttime is None else starttime
    end = max(start, now if endtime is None else endtime)
    answer = asker("partition", path=path, start=start, end=end, metadata=metadata)
    if not answer.get("forming") and not answer.get("known"):
        asker.show(answer, [f"The storage group of path <{path}> doesn't exist."])
        return
    lines = []
    for low, high, members in answer.get("partitions", []):
        what = f"META<{path}>" if metadata else f"DATA<{path}, {low}, {high}>"
        lines.append(f"{what}\t->\t[{', '.join(members)}]")
    asker.show(answer, lines)


@main.command()
@click.pass_obj
def groups(asker: _Asker) -> None:
    """Print leader, term, commit, applied index and lag of each member of each Raft group"""
    answer = asker("groups")
    lines = [f"{'Group':<8}{'Node':<32}{'Role':<12}{'Term':>8}{'Commit':>12}{'Applied':>12}{'Lag':>10}"]
    lines += [
        f"{row['group']:<8}{row['node']:<32}{row['role']:<12}{row['term']:>8}{row['commit']:>12}{row['applied']:>12}"
        f"{row['lag']:>10}"
        for row in answer.get("groups", [])
    ]
    for row in answer.get("groups", []):
        lines += [f"damaged on {row['node']}, group {row['group']}: {text}" for text in row.get("damaged", ())]
        if row.get("waits"):
            lines.append(f"the change of members of group {row['group']} waits: {row['waits']}")
    asker.show(answer, lines)


@main.command()
@click.pass_obj
def snapshots(asker: _Asker) -> None:
    """Print the snapshots that members are being sent"""
    answer = asker("snapshots")
    lines = [f"{'Group':<8}{'From':<32}{'To':<32}{'MiB':>10}{'of':>10}{'MiB/s':>8}"]
    lines += [
        f"{row['group']:<8}{row['from']:<32}{row['to']:<32}"
        f"{row['done'] / MIB:>10.1f}{row['total'] / MIB:>10.1f}{row['bytes_per_s'] / MIB:>8.1f}"
        for row in answer.get("snapshots", [])
    ]
    asker.show(answer, lines)


@main.command()
@click.pass_obj
def digest(asker: _Asker) -> None:
    """Compare the replicas' digests of each group's content"""
    answer = asker("digest", timeout_s=DIGEST_S)
    lines = [f"{'Group':<8}{'Applied':>12}  {'Replicas':>8}  {'Equal':>6}  Digest"]
    lines += [_digest_line(row) for row in answer.get("groups", [])]
    asker.show(answer, lines)
    if not answer.get("forming") and not all(row["equal"] for row in answer["groups"]):
        sys.exit(UNREACHABLE)


def _digest_line(row: dict[str, Any]) -> str:
    values = " ".join(sorted(set(row["digests"].values())))
    equal = "yes" if row["equal"] else "NO"
    return f"{row['group']:<8}{row['applied']:>12}  {len(row['digests']):>8}  {equal:>6}  {values}"


@main.command()
@click.option("-path", "--path", required=True)
@click.option("-d", "--detail", is_flag=True)
@click.pass_obj
def log(asker: _Asker, path: str, detail: bool) -> None:
    """Print raft logs from a log directory or a segment file (only reads it)"""
    sys.exit(show_log(path, detail, asker.as_json))


main.add_command(nodetool_archive.backup)
main.add_command(nodetool_archive.restore)
main.add_command(nodetool_archive.content)
for _command in (
    nodetool_members.force_group,
    nodetool_members.force_meta,
    nodetool_members.header,
    nodetool_members.migration,
    nodetool_members.pause,
    nodetool_members.rebalance,
    nodetool_members.resume,
    nodetool_members.set_replication,
    nodetool_members.slot,
):
    main.add_command(_command)


def run() -> int:
    """Usage errors in the words that scripts around the original know; exit 1."""
    try:
        main.main(standalone_mode=False)
    except click.ClickException as error:
        click.echo(f"nodetool: {error.format_message()}")
        click.echo("See 'nodetool help' or 'nodetool help <command>'.")
        return BAD_ARGUMENTS
    except click.exceptions.Exit as error:
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(run())
