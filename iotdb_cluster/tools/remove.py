"""`remove-node.sh`, and `-r` of the node itself: asks any member to remove a node, and shows how far that is."""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from iotdb_cluster.cluster.configuration import BadConfiguration
from iotdb_cluster.cluster.members import CHANGE_CALL, LEAVE_CALL
from iotdb_cluster.cluster.peers import NodePeers
from iotdb_cluster.cluster.settings import NodeAddress
from iotdb_cluster.errors import CallerError, Status
from iotdb_cluster.packing import pack, unpack
from iotdb_cluster.rpc.peer_messages import PeerIdentity
from iotdb_cluster.tools.arguments import parse_arguments, read_settings
from iotdb_cluster.tools.exits import BAD_ARGUMENTS, DONE, REFUSED, UNREACHABLE
from iotdb_cluster.world import World, real_world

__all__ = ["main"]

USAGE = """usage: remove-node.sh IP META_PORT [--accept-loss] [-c CONF_DIR] [-seed_nodes LIST] [-t SECONDS]
       IP META_PORT may also be IP:META_PORT, IP with the data or client port, or the identifier of the node"""
CONNECT_MS = 2_000
LEAVE_MS = 20_000
ASK_MS = 5_000
POLL_S = 0.5
SILENCE_S_MAX = 60.0  # no member has answered for so long: it ends
LIMIT_S = 86_400.0


@dataclass(slots=True)
class _Arguments:
    target: str = ""
    conf: list[str] = field(default_factory=list)  # words that say where the seeds stand
    limit_s: float = LIMIT_S
    accept_loss: bool = False


def _parse(words: Sequence[str]) -> _Arguments:
    found, plain, rest = _Arguments(), [], list(words)
    while rest:
        word = rest.pop(0)
        if word in ("-c", "-home", "-seed_nodes", "-t"):
            if not rest:
                raise BadConfiguration(f"{word} needs a value\n{USAGE}")
            value = rest.pop(0)
            if word != "-t":
                found.conf += [word, value]
                continue
            try:
                found.limit_s = float(value)
            except ValueError:
                raise BadConfiguration(f"-t {value}: a number of seconds is wanted\n{USAGE}") from None
        elif word == "--accept-loss":
            found.accept_loss = True
        elif word.startswith("-"):
            raise BadConfiguration(f"{word} is not an option of this command\n{USAGE}")
        else:
            plain.append(word)
    if len(plain) == 2 and plain[1].isdigit():
        found.target = f"{plain[0]}:{plain[1]}"
    elif len(plain) == 1:
        found.target = plain[0]
    else:
        raise BadConfiguration(f"which node is to be removed?\n{USAGE}")
    return found


def main(words: Sequence[str] | None = None) -> int:
    """The exit code; see `exits`."""
    try:
        arguments = _parse(sys.argv[1:] if words is None else words)
        settings = read_settings(parse_arguments(arguments.conf)).settings
    except (BadConfiguration, OSError) as error:
        print(error, file=sys.stderr)
        return BAD_ARGUMENTS
    try:
        return asyncio.run(_remove(settings.seeds, arguments))
    except KeyboardInterrupt:
        print("not waited for: the change goes on in the cluster; nodetool migration shows how far it is")
        return 130


class _Cluster:
    """Whoever of the members answers; at first the seeds are known."""

    def __init__(self, world: World, seeds: Sequence[NodeAddress]) -> None:
        self._peers = NodePeers(world, PeerIdentity(0, b"", ""), lambda _: None, CONNECT_MS)
        self._known = list(seeds)

    async def ask(self, method: str, head: Any, timeout_ms: float) -> dict[str, Any]:
        """The first answer; raises CallerError where the cluster refuses, or with the reasons where nobody answers."""
        failures = []
        for address in list(self._known):
            try:
                answer, _ = unpack(await self._peers.call_stranger(address, method, pack(head), timeout_ms))
            except CallerError as error:
                if error.code in (Status.START_UP_ERROR, Status.ILLEGAL_PARAMETER):
                    raise
                failures.append(f"{address.name}: {error.message}")
                self._known = [*(one for one in self._known if one != address), address]
                continue
            self._learn(answer)
            return dict(answer)
        raise CallerError(Status.NO_CONNECTION, "; ".join(failures))

    def _learn(self, answer: dict[str, Any]) -> None:
        names = {address.name for address in self._known}
        for _, text, *_ in answer.get("nodes", ()):
            host, meta, data, client = text.rsplit(":", 3)
            address = NodeAddress(host, int(meta), int(data), int(client))
            if address.name not in names:
                self._known.append(address)

    async def close(self) -> None:
        await self._peers.close()


async def _remove(seeds: Sequence[NodeAddress], arguments: _Arguments) -> int:
    world = real_world(1)
    cluster = _Cluster(world, seeds)
    try:
        try:
            await cluster.ask(CHANGE_CALL, None, ASK_MS)  # from now on every member is known, not the seeds alone
            wish = {"target": arguments.target, "accept_loss": arguments.accept_loss}
            left = await cluster.ask(LEAVE_CALL, wish, LEAVE_MS)
        except CallerError as error:
            if error.code in (Status.START_UP_ERROR, Status.ILLEGAL_PARAMETER):
                print(f"refused: {error.message}", file=sys.stderr)
                return REFUSED
            print(f"no member of the cluster could begin it: {error.message}", file=sys.stderr)
            return UNREACHABLE
        how = "nobody reaches it: it is removed as dead" if left["dead"] else "it hands over what it has first"
        print(f"node {left['node']} ({left['name']}) is to be removed; {how}", flush=True)
        if left.get("lost"):
            print(f"{left['lost']} slots of which it had the only copy begin anew, empty", flush=True)
            print(f"storage groups that are dropped: {', '.join(left['dropped']) or 'none'}", flush=True)
        return await _follow(cluster, left, arguments.limit_s)
    finally:
        await cluster.close()
        world.workers.close()


async def _follow(cluster: _Cluster, left: dict[str, Any], limit_s: float) -> int:
    """Print what changes until the node is no member any more."""
    began = heard = time.monotonic()
    said = ""
    while True:
        now = time.monotonic()
        try:
            told = await cluster.ask(CHANGE_CALL, None, ASK_MS)
            heard = now
            if left["node"] not in [node for node, *_ in told["nodes"]]:
                print(f"node {left['node']} ({left['name']}) is successfully removed ({1000 * (now - began):.0f} ms)")
                return DONE
            line = _line(told)
            if line != said:
                said = line
                print(line, flush=True)
        except CallerError as error:
            if now - heard > SILENCE_S_MAX:
                print(f"no member has answered for {SILENCE_S_MAX:.0f} s: {error.message}", file=sys.stderr)
                return UNREACHABLE
        if now - began > limit_s:
            print(f"not removed within {limit_s:.0f} s; the change goes on: nodetool migration", file=sys.stderr)
            return UNREACHABLE
        await asyncio.sleep(POLL_S)


def _line(told: dict[str, Any]) -> str:
    parts = [f"{told['slots_left']} slots left"]
    if told["steps"]:
        parts.append(f"next: {told['steps'][0]}")
    parts += told["waiting"][:3]
    return "; ".join(parts)


if __name__ == "__main__":
    sys.exit(main())
