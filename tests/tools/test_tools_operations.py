"""docs/operations.md: its commands do what stands there, one after another, on ports and data of their own."""

import os
import re
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).parents[2]
BLOCK = re.compile(r"^```sh\n(.*?)^```", re.MULTILINE | re.DOTALL)
PORT = re.compile(r"(?<![\d.])(9009|32099)(?!\d)")
TOOL_PORT = 31_999
BLOCK_S_MAX = 300


class Shell:
    """Runs commands of the document in an empty directory; every port is `offset` from the default."""

    def __init__(self, directory: Path, offset: int) -> None:
        self.directory = directory
        self.offset = offset

    def translated(self, line: str) -> str:
        """A command of the document with the ports and the properties of tests."""
        line = PORT.sub(lambda found: str(int(found[1]) + self.offset), line)
        words = line.split()
        if words[0] == "sbin/nodetool.sh" and "-p" not in words:
            line = line.replace("sbin/nodetool.sh", f"sbin/nodetool.sh -p {TOOL_PORT + self.offset}")
        elif words[0] == "sbin/start-cli.sh":
            line = line.replace("sbin/start-cli.sh", f"sbin/start-cli.sh -p {55_560 + self.offset}")
        elif words[:2] == ["sbin/start-cluster.sh", "3"]:
            line += f" --port-offset {self.offset}"
        line = line.replace("--port-offset 100", f"--port-offset {self.offset + 100}")
        return re.sub(r"\bsbin/", f"{ROOT}/sbin/", line)

    def run(self, block: str) -> subprocess.CompletedProcess[str]:
        lines = [self.translated(line) for line in block.splitlines() if line]
        return subprocess.run(
            ["bash", "-euo", "pipefail", "-c", "\n".join(lines)],
            cwd=self.directory, capture_output=True, text=True, timeout=BLOCK_S_MAX, check=False,
        )  # fmt: skip

    def close(self) -> None:
        """End whatever a failure has left, by the pid files."""
        for file in self.directory.glob("*/node*/node.pid"):
            try:
                os.kill(int(file.read_text()), signal.SIGKILL)
            except (ProcessLookupError, ValueError):
                continue


@pytest.fixture
def shell(tmp_path: Path, processes: ModuleType) -> Iterator[Shell]:
    made = Shell(tmp_path, processes.free_offset())
    yield made
    made.close()


def test_the_commands_of_the_document(shell: Shell) -> None:
    blocks = BLOCK.findall((ROOT / "docs" / "operations.md").read_text())
    assert len(blocks) >= 10
    said: list[str] = []
    for block in blocks:
        run = shell.run(block)
        assert run.returncode == 0, f"{block}\n{run.stdout}\n{run.stderr}"
        said.append(run.stdout)
    everything = "\n".join(said)
    assert everything.count("has joined and has its data") == 1
    assert "node 4 (" in everything
    assert "is successfully removed" in everything
    assert "content equal to the backup's: yes" in everything
    assert " NO " not in everything  # digests
    assert not list(shell.directory.glob("*/node*/node.pid"))
