"""Random scripts in the interaction-test format, made along with this core's answers.

The choice depends on the core's state, because some directives make etcd's harness itself fail, and because nothing may
depend on the jitter of elections: where ticks could reach a random timeout it is set first.
"""

from __future__ import annotations

from collections.abc import Iterator
from random import Random

from datadriven import parse_directive
from describe import MESSAGE_TYPES
from interaction import ELECTION_TICK, Endless, Environment

OPTIONS = (
    "",
    "prevote=true",
    "prevote=true checkquorum=true",
    "checkquorum=true",
    "inflight=2",
    "inflight=1 max-committed-size-per-ready=1",
    "async-storage-writes=true",
    "async-storage-writes=true prevote=true inflight=3",
    "async-storage-writes=true max-committed-size-per-ready=1",
    "async-storage-writes=true inflight=1 checkquorum=true",
    "step-down-on-removal=true",
    "step-down-on-removal=true prevote=true checkquorum=true async-storage-writes=true",
    "checkquorum=true read-only=lease-based",
    "disable-conf-change-validation=true read-only=safe",
)
TYPES = [name for name in MESSAGE_TYPES if "Storage" not in name]


def reset(heartbeat_tick: int) -> str:
    """The line that begins a new environment; a harness that knows no options understands the plain one."""
    return "reset" if heartbeat_tick == 1 else f"reset heartbeat-tick={heartbeat_tick}"


def random_script(random: Random, steps: int, timeouts: bool = False) -> Iterator[tuple[str, str]]:
    """(directive, this core's text) of one script, after a `reset`; it ends early where this core fails.

    `timeouts`: also ticks up to elections, whose timeouts are set before.
    """
    heartbeat_tick = random.choice((1, 1, 1, 400)) if timeouts else 1
    yield reset(heartbeat_tick), ""
    environment = Environment(heartbeat_tick)
    choose = _Choice(random, environment, timeouts, changes=random.random() < 0.5)
    number = 0
    lines = choose.opening()
    last = [*choose.silence_ends(), "stabilize", "raft-state"]
    last += [f"raft-log {node}" for node in range(1, choose.total + 1)]
    while number < len(lines) + steps + len(last):
        if number < len(lines):
            taken = [lines[number]]
        elif number < len(lines) + steps:
            taken = choose.directives(number)
        else:
            taken = [last[number - len(lines) - steps]]
        number += 1
        for line in taken:
            directive, _, given = line.partition("|")
            try:
                text = environment.handle(parse_directive(directive, given))
            except Endless:
                return  # the harness would not come back
            yield line, text
            if text == "panic":
                return


class _Choice:
    def __init__(self, random: Random, environment: Environment, timeouts: bool, changes: bool) -> None:
        self.random = random
        self.environment = environment
        self.timeouts = timeouts
        self.changes = changes
        self.count = random.choice((1, 3, 3, 3, 5))
        self.spare = random.choice((0, 1, 2))
        self.total = self.count + self.spare
        self.options = random.choice(OPTIONS)

    def opening(self) -> list[str]:
        random = self.random
        learners = random.choice((0, 0, 1)) if self.count > 1 else 0
        voters = ",".join(str(i + 1) for i in range(self.count - learners))
        names = f"voters=({voters})" + (f" learners=({self.count})" if learners else "")
        lines = [f"add-nodes {self.count} {names} index={random.randint(2, 9)} {self.options}".strip()]
        if self.spare:
            lines.append(f"add-nodes {self.spare} {self.options}".strip())
        if random.random() < 0.7:
            lines += ["campaign 1", "stabilize log-level=none"]
        return lines

    def silence_ends(self) -> list[str]:
        return ["log-level debug"]

    def directives(self, step: int) -> list[str]:
        """The next one, with what has to come before it."""
        random = self.random
        if self.environment.quiet and random.random() < 0.5:
            return self.silence_ends()
        words = self._words(step)
        line = random.choices(list(words), list(words.values()))[0]
        if line.startswith("tick-"):
            return [*self._timeout(line), line]
        return [line]

    def _words(self, step: int) -> dict[str, int]:
        random = self.random
        a, b = random.randint(1, self.total), random.randint(1, self.total)
        node = self.environment.nodes[a - 1]
        words = {
            f"campaign {a}": 9,
            f"propose {a} p{step}": 20,
            f"deliver-msgs {a}": 15,
            f"deliver-msgs {a} type={random.choice(TYPES)}": 3,
            f"deliver-msgs {a} type=MsgApp": 2,
            f"deliver-msgs drop={a}": 6,
            f"process-ready {a}": 10,
            f"tick-heartbeat {a}": 7,
            f"status {a}": 4,
            "raft-state": 2,
            f"raft-log {a}": 3,
            f"forget-leader {a}": 2,
            "stabilize": 7,
            "stabilize log-level=none": 1,
            "_breakpoint": 1,
            f"log-level {random.choice(('none', 'error', 'DEBUG'))}": 1,
        }
        if node.raw.applied >= node.log.first_index():
            # All of it, so that who lags needs a snapshot.
            index = random.choice((node.raw.applied, random.randint(node.log.first_index(), node.raw.applied)))
            words[f"compact {a} {index}"] = 15 if node.raw.is_leader else 4
        if a != b:
            words[f"stabilize {a} {b}"] = 9
            words[f"process-ready {a} {b}"] = 3
            words[f"deliver-msgs {a} drop=({b})"] = 2
            words[f"report-unreachable {a} {b}"] = 2
            words[f"transfer-leadership from={a} to={b}"] = 3
            if node.raw.term:  # the harness would send a message that no replica sends
                words[f"send-snapshot {a} {b}"] = 1
        if "async" in self.options:
            words[f"process-append-thread {a}"] = 8
            words[f"process-apply-thread {a}"] = 6
            if a != b:
                words[f"process-append-thread {a} {b}"] = 2
                words[f"process-apply-thread {a} {b}"] = 2
        if self.changes:
            words[self._change(a)] = 10
        # A leader's ticks are a heartbeat each: too much text where heartbeats are near to each other.
        if self.timeouts and (not node.raw.is_leader or self.environment.heartbeat_tick > 1):
            words[f"tick-election {a}"] = 5
        return words

    def _timeout(self, line: str) -> list[str]:
        """Where the ticks of this directive may reach the election timeout: the directive that sets it."""
        command, number = line.split()
        core = self.environment.nodes[int(number) - 1].raw._raft
        ticks = ELECTION_TICK if command == "tick-election" else self.environment.heartbeat_tick
        if core.election_elapsed + ticks < ELECTION_TICK:
            return []
        # Near enough to fire at these ticks, or far enough not to.
        timeout = self.random.choice((core.election_elapsed + ticks, 2 * core.election_elapsed + 2 * ticks, ticks))
        return [f"set-randomized-election-timeout {number} timeout={max(1, timeout)}"]

    def _change(self, node: int) -> str:
        random = self.random
        single = random.random() < 0.3
        parts = [
            random.choice("vvlrrvlu") + str(random.randint(1, self.total))
            for _ in range(1 if single else random.choice((0, 1, 1, 2, 3)))
        ]
        extra = (
            " v1=true"
            if single
            else random.choice(("", "", " transition=auto", " transition=implicit", " transition=explicit"))
        )
        return f"propose-conf-change {node}{extra}|{' '.join(parts)}"
