"""The interaction-test text format of etcd's raft: its commands, carried out by this core.

Scripts are data-driven test files (`datadriven.py`). The comments `# heartbeat-tick: N` and `# election-tick: N` set
those times, otherwise 1 and 1000 ticks. Log lines (`INFO ...`) are not part of the expected text.

    python tests/raft/interaction.py [--rewrite] [--election-tick N] [script ...]

checks the scripts, or rewrites their expected text from this core. (`oracle.py --record` writes it from etcd's.)
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from random import Random

sys.path[:0] = [str(Path(__file__).parents[2]), str(Path(__file__).parent)]

from datadriven import (  # noqa: E402 - the directories above must be on the path first
    Directive,
    Script,
    difference,
    parse_directive,
    parse_script,
    render_script,
    script_paths,
    without_log_lines,
)
from describe import (  # noqa: E402
    CHANGE_LETTERS,
    MESSAGE_TYPES,
    ROLE_NAMES,
    describe_entries,
    describe_member,
    describe_message,
    describe_ready,
    quoted,
)

from iotdb_cluster.errors import InvariantViolation  # noqa: E402
from iotdb_cluster.raft import (  # noqa: E402
    LOCAL_APPEND,
    LOCAL_APPLY,
    NO_LIMIT,
    Compacted,
    ConfChange,
    ConfChangeSingle,
    ConfChangeTransition,
    Config,
    ConfState,
    Entries,
    EntryKind,
    HardState,
    MemoryLog,
    Message,
    MessageType,
    ProposalDropped,
    RawNode,
    Snapshot,
    UnknownPeer,
    decode_conf_change,
)

__all__ = [
    "SCRIPTS",
    "Endless",
    "Environment",
    "commands",
    "difference",
    "main",
    "parse_directive",
    "parse_script",
    "render_script",
    "run_script",
    "script_paths",
    "without_log_lines",
]

SCRIPTS = Path(__file__).parent / "scripts"
ELECTION_TICK = 1000
ROUNDS_MAX = 500  # of one `stabilize`
LEVELS = ("debug", "info", "warn", "error", "fatal", "none")


class Refused(Exception):
    """The harness, not the core, has an objection; its text is part of the output."""


class Endless(Exception):
    """`stabilize` finds no fixed point."""


def parse_changes(text: str) -> tuple[ConfChangeSingle, ...]:
    changes = []
    for word in text.split():
        if len(word) < 2:
            raise Refused(f"unknown token {word}")
        if word[0] not in CHANGE_LETTERS:
            raise Refused(f"unknown input: {word}")
        changes.append(ConfChangeSingle(CHANGE_LETTERS[word[0]], int(word[1:])))
    return tuple(changes)


def flag(text: str) -> bool:
    """As Go's strconv.ParseBool."""
    if text in ("1", "t", "T", "TRUE", "true", "True"):
        return True
    if text in ("0", "f", "F", "FALSE", "false", "False"):
        return False
    raise Refused(f'strconv.ParseBool: parsing "{text}": invalid syntax')


# --- the environment --------------------------------------------------------------------------------------------------
class HarnessLog(MemoryLog):
    """Its snapshot is the newest state of the node's machine, which appends the payloads of what it applies."""

    def __init__(self) -> None:
        super().__init__()
        self.history: list[Snapshot] = []

    def snapshot(self) -> Snapshot:
        return self.history[-1]


@dataclass
class Node:
    raw: RawNode
    log: HarnessLog
    config: Config
    append_work: list[Message] = field(default_factory=list)
    apply_work: list[Message] = field(default_factory=list)

    def append(self, hard: HardState | None, entries: Entries, snapshot: Snapshot | None) -> None:
        if hard is not None and hard != HardState():
            self.log.hard_state = hard
        if snapshot is None:
            self.log.append(entries)
            return
        if entries:
            raise Refused("can't apply snapshot and entries at the same time")
        try:
            self.log.install(snapshot)
        except Compacted:
            raise Refused("requested index is older than the existing snapshot") from None

    def apply(self, entries: Entries) -> None:
        for at, (term, kind, payload) in enumerate(zip(entries.terms, entries.kinds, entries.data, strict=True)):
            last = self.log.history[-1]
            state, update = last.conf_state, payload
            if kind != EntryKind.NORMAL:
                change = decode_conf_change(payload)
                state, update = self.raw.apply_conf_change(change), change.context
            self.log.history.append(Snapshot(entries.first + at, term, state, last.data + update))


class Environment:
    """`handle` takes one directive and returns its text without the final newline."""

    def __init__(self, heartbeat_tick: int = 1, election_tick: int = ELECTION_TICK) -> None:
        self.heartbeat_tick = heartbeat_tick
        self.election_tick = election_tick
        self.nodes: list[Node] = []
        self.messages: list[Message] = []
        self.level = 0
        self.out: list[str] = []

    def handle(self, directive: Directive) -> str:
        self.out = []
        error = ""
        handler = getattr(self, "do_" + directive.command.replace("-", "_"), None)
        try:
            if handler is None:
                raise Refused("unknown command")
            handler(directive)
        except ProposalDropped:
            error = "raft proposal dropped"
        except Refused as exception:
            error = str(exception)
        except InvariantViolation:
            return "panic"
        text = "" if self.quiet else "".join(self.out)
        return (text + error).rstrip("\n") or "ok"

    @property
    def quiet(self) -> bool:
        return LEVELS[self.level] == "none"

    def node(self, directive: Directive) -> Node:
        return self.nodes[directive.ids[0] - 1]

    def write(self, text: str) -> None:
        self.out.append(text)

    def indented(self) -> _Indented:
        return _Indented(self)

    # --- set-up ---------------------------------------------------------------------------------------------------
    def do__breakpoint(self, directive: Directive) -> None:
        pass

    def do_add_nodes(self, directive: Directive) -> None:
        def switch(key: str) -> bool:
            return flag(directive.values(key)[-1]) if directive.values(key) else False

        def number(key: str, default: int) -> int:
            return int((directive.values(key) or [str(default)])[-1])

        for option in directive.values("read-only"):
            if option not in ("safe", "lease-based"):
                raise Refused(f"invalid read-only option {quoted(option.encode())}")
        members = ConfState(tuple(map(int, directive.values("voters"))), tuple(map(int, directive.values("learners"))))
        index = number("index", 0)
        content = "".join(directive.values("content")).encode()
        first = Snapshot(index, 0, members, content)
        for _ in range(directive.ids[0]):
            log = HarnessLog()
            if first != Snapshot():
                if index <= 1:
                    raise Refused("index must be specified as > 1 due to bootstrap")
                first = Snapshot(index, 1, members, content)
                log.install(first)
            log.history.append(first)
            config = Config(
                len(self.nodes) + 1,
                log,
                Random(len(self.nodes)),
                applied=index,
                election_tick=self.election_tick,
                heartbeat_tick=self.heartbeat_tick,
                pre_vote=switch("prevote"),
                check_quorum=switch("checkquorum"),
                lease_reads=directive.values("read-only")[-1:] == ["lease-based"],
                async_storage_writes=switch("async-storage-writes"),
                disable_conf_change_validation=switch("disable-conf-change-validation"),
                step_down_on_removal=switch("step-down-on-removal"),
                message_bytes_max=NO_LIMIT,
                inflight_messages_max=number("inflight", 1 << 31),
                inflight_bytes_max=0,
                uncommitted_bytes_max=NO_LIMIT,
                check_single_leader=False,
                committed_bytes_per_ready_max=number("max-committed-size-per-ready", NO_LIMIT),
            )
            if config.lease_reads and not config.check_quorum:
                raise Refused("CheckQuorum must be enabled when ReadOnlyOption is ReadOnlyLeaseBased")
            self.nodes.append(Node(RawNode(config), log, config))

    def do_log_level(self, directive: Directive) -> None:
        name = directive.arguments[0][0].lower()
        if name not in LEVELS:
            raise Refused("log levels must be either of [DEBUG INFO WARN ERROR FATAL NONE]")
        self.level = LEVELS.index(name)

    # --- input ----------------------------------------------------------------------------------------------------
    def do_campaign(self, directive: Directive) -> None:
        self.node(directive).raw.campaign()

    def do_propose(self, directive: Directive) -> None:
        self.nodes[int(directive.arguments[0][0]) - 1].raw.propose([directive.arguments[1][0].encode()])

    def do_propose_conf_change(self, directive: Directive) -> None:
        names = {
            "auto": ConfChangeTransition.AUTO,
            "implicit": ConfChangeTransition.JOINT_IMPLICIT,
            "explicit": ConfChangeTransition.JOINT_EXPLICIT,
        }
        transition, single = "auto", False
        for key, values in directive.arguments[1:]:
            for value in values:
                if key == "v1":
                    single = flag(value)
                elif key != "transition":
                    raise Refused(f"unknown command {key}")
                elif value not in names:
                    raise Refused(f"unknown transition {value}")
                else:
                    transition = value
        changes = parse_changes(directive.input)
        if single and (len(changes) > 1 or transition != "auto"):
            raise Refused("v1 conf change can only have one operation and no transition")
        kind = EntryKind.CONF_CHANGE_SINGLE if single else EntryKind.CONF_CHANGE
        self.node(directive).raw.propose_conf_change(ConfChange(changes, names[transition]), kind)

    def do_tick_election(self, directive: Directive) -> None:
        self._tick(directive, self.election_tick)

    def do_tick_heartbeat(self, directive: Directive) -> None:
        self._tick(directive, self.heartbeat_tick)

    def _tick(self, directive: Directive, count: int) -> None:
        for _ in range(count):
            self.node(directive).raw.tick()

    def do_set_randomized_election_timeout(self, directive: Directive) -> None:
        self.node(directive).raw._raft.election_timeout = int(directive.values("timeout")[0])

    def do_transfer_leadership(self, directive: Directive) -> None:
        source, to = (int(directive.values(key)[0]) for key in ("from", "to"))
        self.nodes[source - 1].raw.transfer_leader(to)

    def do_forget_leader(self, directive: Directive) -> None:
        self.node(directive).raw.forget_leader()

    def do_report_unreachable(self, directive: Directive) -> None:
        if len(directive.ids) != 2:
            raise Refused("must specify exactly two node indexes: node on which to report, and reported node")
        self.node(directive).raw.report_unreachable(directive.ids[1])

    def do_send_snapshot(self, directive: Directive) -> None:
        source, to = directive.ids
        node = self.nodes[source - 1]
        message = Message(MessageType.SNAP, to, source, node.raw.term, snapshot=node.log.snapshot())
        self.messages.append(message)
        self.write(describe_message(message))

    def do_compact(self, directive: Directive) -> None:
        try:
            self.node(directive).log.compact(directive.ids[1])
        except Compacted:
            raise Refused("requested index is unavailable due to compaction") from None
        self.do_raft_log(directive)

    # --- questions ------------------------------------------------------------------------------------------------
    def do_raft_log(self, directive: Directive) -> None:
        log = self.node(directive).log
        first, last = log.first_index(), log.last_index()
        if last < first:
            self.write(f"log is empty: first index={first}, last index={last}")
            return
        for line in describe_entries(log.entries(first, last + 1, NO_LIMIT)):
            self.write(line + "\n")

    def do_raft_state(self, directive: Directive) -> None:
        del directive
        for number, node in enumerate(self.nodes, 1):
            raw = node.raw
            voter = "(Voter)" if number in raw.configuration.voters else "(Non-Voter)"
            self.write(f"{number}: {ROLE_NAMES[raw.role]} {voter} Term:{raw.term} Lead:{raw.leader}\n")

    def do_status(self, directive: Directive) -> None:
        for member, status in self.node(directive).raw.status().progress.items():
            self.write(f"{member}: {describe_member(status)}\n")

    # --- work -----------------------------------------------------------------------------------------------------
    def do_process_ready(self, directive: Directive) -> None:
        self._each(directive, "handling Ready", self._process_ready)

    def do_process_append_thread(self, directive: Directive) -> None:
        self._each(directive, "processing append thread", self._process_append)

    def do_process_apply_thread(self, directive: Directive) -> None:
        self._each(directive, "processing apply thread", self._process_apply)

    def _each(self, directive: Directive, title: str, action: Callable[[int], None]) -> None:
        if len(directive.ids) == 1:
            action(directive.ids[0])
            return
        for number in directive.ids:
            self.write(f"> {number} {title}\n")
            with self.indented():
                action(number)

    def _process_ready(self, number: int) -> None:
        node = self.nodes[number - 1]
        ready = node.raw.ready()
        self.write(describe_ready(ready))
        if not node.config.async_storage_writes:
            node.append(ready.hard_state, ready.entries, ready.snapshot)
            node.apply(ready.committed)
        for message in ready.messages:
            if message.to == LOCAL_APPEND:
                node.append_work.append(message)
            elif message.to == LOCAL_APPLY:
                node.apply_work.append(message)
            else:
                self.messages.append(message)
        if not node.config.async_storage_writes:
            node.raw.advance()

    def _process_append(self, number: int) -> None:
        node = self.nodes[number - 1]
        if not node.append_work:
            self.write("no append work to perform")
            return
        message = node.append_work.pop(0)
        self._work(message, "Processing:")
        node.append(HardState(message.term, message.vote, message.commit), message.entries, message.snapshot)
        self._respond(message)

    def _process_apply(self, number: int) -> None:
        node = self.nodes[number - 1]
        if not node.apply_work:
            self.write("no apply work to perform")
            return
        message = node.apply_work.pop(0)
        self._work(message, "Processing:")
        node.apply(message.entries)
        self._respond(message)

    def _work(self, message: Message, title: str) -> None:
        responses, message.responses = message.responses, ()
        self.write(f"{title}\n{describe_message(message)}\n")
        message.responses = responses

    def _respond(self, message: Message) -> None:
        self.write("Responses:\n")
        for response in message.responses:
            self.write(describe_message(response) + "\n")
        self.messages.extend(message.responses)

    def do_deliver_msgs(self, directive: Directive) -> None:
        only = None
        for name in directive.values("type"):
            only = MESSAGE_TYPES[name]
        recipients = []
        for key, values in directive.arguments:
            if not values:
                recipients.append((int(key), False))
            elif key == "drop":
                recipients.extend((int(value), True) for value in values)
        if not sum(self._deliver(number, drop, only) for number, drop in recipients):
            self.write("no messages\n")

    def _mail(self, number: int, drop: bool, only: MessageType | None) -> list[Message]:
        def is_local(message: Message) -> bool:
            return message.source == message.to or message.source >= LOCAL_APPLY or message.to >= LOCAL_APPLY

        return [
            message
            for message in self.messages
            if message.to == number and not (drop and is_local(message)) and only in (None, message.type)
        ]

    def _deliver(self, number: int, drop: bool, only: MessageType | None) -> int:
        mail = self._mail(number, drop, only)
        taken = {id(message) for message in mail}
        self.messages = [message for message in self.messages if id(message) not in taken]
        for message in mail:
            self.write(("dropped: " if drop else "") + describe_message(message) + "\n")
            if drop:
                continue
            raw = self.nodes[number - 1].raw
            if message.source == number and number not in raw._raft.progress and "RESP" in message.type.name:
                self.write("raft: cannot step as peer not found\n")  # this core does nothing, without an error
                continue
            try:
                raw.step(message)
            except ProposalDropped:
                self.write("raft proposal dropped\n")
            except UnknownPeer:
                self.write("raft: cannot step as peer not found\n")
        return len(mail)

    def do_stabilize(self, directive: Directive) -> None:
        level = self.level
        for name in directive.values("log-level"):
            self.level = LEVELS.index(name.lower())
        numbers = directive.ids or list(range(1, len(self.nodes) + 1))
        rounds = 0
        while self._round(numbers):
            rounds += 1
            if rounds > ROUNDS_MAX:
                raise Endless(f"no end after {rounds} rounds")
        # The level counts for this directive alone; what is written under "none" is lost at once.
        if self.quiet:
            self.out = []
        self.level = level

    def _round(self, numbers: list[int]) -> bool:
        busy = False

        def under(number: int, title: str, action: Callable[[], None]) -> None:
            nonlocal busy
            busy = True
            self.write(f"> {number} {title}\n")
            with self.indented():
                action()

        for number in numbers:
            if self.nodes[number - 1].raw.has_ready():
                under(number, "handling Ready", lambda n=number: self._process_ready(n))
        for number in numbers:
            if self._mail(number, False, None):
                under(number, "receiving messages", lambda n=number: self._deliver(n, False, None))
        for work, title, action in (
            ("append_work", "processing append thread", self._process_append),
            ("apply_work", "processing apply thread", self._process_apply),
        ):
            for number in numbers:
                if getattr(self.nodes[number - 1], work):
                    busy = True
                    self.write(f"> {number} {title}\n")
                    while getattr(self.nodes[number - 1], work):
                        with self.indented():
                            action(number)
        return busy


class _Indented:
    def __init__(self, environment: Environment) -> None:
        self.environment = environment

    def __enter__(self) -> None:
        self.before = self.environment.out
        self.environment.out = []

    def __exit__(self, *details: object) -> None:
        text = "".join(self.environment.out)
        self.environment.out = self.before
        self.environment.out.extend(f"  {line}\n" for line in text.splitlines())


def run_script(script: Script, election_tick: int = ELECTION_TICK) -> list[str]:
    """This core's text of each case."""
    environment = Environment(script.setting("heartbeat-tick", 1), script.setting("election-tick", election_tick))
    return [environment.handle(case.directive) for case in script.cases]


def commands() -> list[str]:
    """Every command of the format."""
    names = [name.removeprefix("do_") for name in vars(Environment) if name.startswith("do_")]
    return sorted(name[0] + name[1:].replace("_", "-") for name in names)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Checks interaction scripts against this core.")
    parser.add_argument("--rewrite", action="store_true", help="write this core's text as the expected one")
    parser.add_argument("--election-tick", type=int, default=ELECTION_TICK, help="where the script does not say it")
    parser.add_argument("scripts", nargs="*", type=Path, help="default: all in tests/raft/scripts")
    options = parser.parse_args(arguments)
    failed = 0
    paths = options.scripts or script_paths(SCRIPTS)
    for path in paths:
        script = parse_script(path.read_text())
        outputs = run_script(script, options.election_tick)
        if options.rewrite:
            path.write_text(render_script(script, outputs))
            continue
        changes = difference(script, outputs)
        if changes:
            failed += 1
            print(f"{path.name}:\n{changes}\n")
    print(f"{len(paths)} scripts, {failed} differ" if not options.rewrite else f"{len(paths)} scripts written")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
