"""The planted bugs can be used: each applies to the present tree, its suite exists. `make mutants` runs them."""

from __future__ import annotations

import importlib.util
import sys
import time
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).parents[2]
PATCHES = sorted(Path(__file__).parent.glob("*.patch"))


@pytest.fixture(scope="module")
def runner() -> ModuleType:
    spec = importlib.util.spec_from_file_location("iotdb_tests_mutants_run", Path(__file__).parent / "run.py")
    assert spec is not None
    assert spec.loader is not None
    module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("path", PATCHES, ids=lambda path: path.stem)
def test_it_applies_and_its_suite_exists(runner: ModuleType, path: Path) -> None:
    mutant = runner.load(path)
    assert mutant.files
    assert all(name.startswith("iotdb_cluster/") for name in mutant.files), "a bug of the product, not of a test"
    assert runner.git_apply(ROOT, mutant, "--check") == ""
    tests = [word.partition("::")[0] for word in mutant.suite if word.startswith("tests/")]
    assert all((ROOT / name).exists() for name in tests)


def test_there_are_bugs_enough() -> None:
    assert len(PATCHES) >= 29


def test_a_patch_without_its_head_is_refused(runner: ModuleType, tmp_path: Path) -> None:
    path = tmp_path / "headless.patch"
    path.write_text("--- a/x\n+++ b/x\n")
    with pytest.raises(runner.Broken):
        runner.load(path)


@pytest.mark.parametrize(
    ("change", "outcome"),
    [
        ("return 2", "found"),
        ("return 1 + 0", "NOT FOUND"),
        ("raise SystemExit(3)", "exit 3"),
        ("return 1 +", "exit"),  # a program that cannot start has found nothing
    ],
)
def test_only_a_suite_that_fails_has_found_a_bug(runner: ModuleType, tmp_path: Path, change: str, outcome: str) -> None:
    tree = tmp_path / "tree"
    tree.mkdir()
    (tree / "product.py").write_text("def one():\n    return 1\n")
    (tree / "suite.py").write_text(
        "try:\n    import product\nexcept SyntaxError:\n    raise SystemExit(2)\nraise SystemExit(product.one() != 1)\n"
    )
    patch = tmp_path / "bug.patch"
    patch.write_text(
        "Bug: one is not one\nSuite: python suite.py\n\ndiff --git a/product.py b/product.py\n--- a/product.py\n"
        f"+++ b/product.py\n@@ -1,2 +1,2 @@\n def one():\n-    return 1\n+    {change}\n"
    )
    mutant = runner.load(patch)
    assert runner.try_mutant(tree, mutant, {}).startswith(outcome)
    assert (tree / "product.py").read_text() == "def one():\n    return 1\n"
    assert runner.try_mutant(tree, mutant, {mutant.suite: False}) == "the suite is not green without the patch"
    (tree / "product.py").write_text("def two():\n    return 2\n")
    assert runner.try_mutant(tree, mutant, {mutant.suite: True}).startswith("the patch does not apply")


def test_what_a_suite_leaves_behind_is_ended(runner: ModuleType, tmp_path: Path) -> None:
    """Also in a session of its own, as the nodes of a cluster are."""
    program = (
        "import subprocess, sys; print(subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)'],"
        " start_new_session=True).pid); sys.exit(1)"
    )
    code, said = runner.run_suite(tmp_path, ("python", "-c", program))
    assert code == 1
    deadline = time.monotonic() + 30
    while _runs(int(said)) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not _runs(int(said))


def _runs(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return False
    return state != "Z"
