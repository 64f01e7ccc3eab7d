"""The repository lints itself: sizes, words that must not stand in it, one heading a document."""

import ast
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PYTHON = sorted(ROOT.glob("iotdb_cluster/**/*.py"))
FUNCTION_LINES_MAX = 70
MODULE_LINES_MAX = 600


def tracked() -> list[Path]:
    names = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    return [ROOT / name for name in names.split("\n") if name]


@pytest.mark.parametrize("path", PYTHON, ids=lambda path: str(path.relative_to(ROOT)))
def test_sizes(path: Path) -> None:
    text = path.read_text()
    assert text.count("\n") <= MODULE_LINES_MAX, "a room that wants two modules"
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            lines = (node.end_lineno or node.lineno) - node.lineno + 1
            assert lines <= FUNCTION_LINES_MAX, f"{path.name}:{node.lineno} {node.name} has {lines} lines"


@pytest.mark.parametrize("path", PYTHON, ids=lambda path: str(path.relative_to(ROOT)))
def test_no_assert_and_a_docstring(path: Path) -> None:
    tree = ast.parse(path.read_text())
    assert ast.get_docstring(tree) or not tree.body, f"{path.name} does not say what it is"
    for node in ast.walk(tree):
        assert not isinstance(node, ast.Assert), f"{path.name}:{node.lineno}: use errors.check, which stays on"
        if isinstance(node, ast.ExceptHandler):
            silent = all(isinstance(item, ast.Pass) for item in node.body)
            assert not (silent and node.type is None), f"{path.name}:{node.lineno} swallows every exception"


def test_documents_have_one_title() -> None:
    for path in ROOT.glob("docs/**/*.md"):
        inside, titles = False, 0
        for line in path.read_text().splitlines():
            inside ^= line.startswith("```")
            titles += not inside and line.startswith("# ")
        assert titles == 1, path


def test_no_left_over_marks() -> None:
    marks = ["TO" + "DO", "FIX" + "ME"]
    for path in tracked():
        if path.suffix in {".py", ".md", ".sh", ".lark", ".thrift"} and path.exists():
            text = path.read_text()
            assert not any(mark in text for mark in marks), path


def test_public_names_exist() -> None:
    for path in ROOT.glob("iotdb_cluster/*/__init__.py"):
        names = set()
        exported: list[str] = []
        for node in ast.parse(path.read_text()).body:
            if isinstance(node, ast.ImportFrom):
                names |= {alias.asname or alias.name for alias in node.names}
            elif isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__":
                exported = ast.literal_eval(node.value)
            elif isinstance(node, ast.FunctionDef | ast.ClassDef):
                names.add(node.name)
        assert set(exported) <= names | {"__version__"}, f"{path}: {set(exported) - names}"


def test_generated_documents_are_current() -> None:
    from iotdb_cluster.tools.documents import generated

    for path, text in generated().items():
        assert path.read_text() == text, f"run python -m iotdb_cluster.tools.documents: {path}"
