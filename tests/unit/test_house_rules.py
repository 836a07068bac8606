"""The rules of the house that no linter knows."""

import ast
from collections import Counter
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
SOURCES = sorted([*(ROOT / "mentor").rglob("*.py"), *(ROOT / "tools").rglob("*.py")])
TESTS = sorted((ROOT / "tests").rglob("*.py"))


def test_files_are_under_400_lines() -> None:
    lengths = {
        str(path.relative_to(ROOT)): len(path.read_text(encoding="utf-8").splitlines()) for path in [*SOURCES, *TESTS]
    }
    assert {name: length for name, length in lengths.items() if length >= 400} == {}


def test_functions_are_under_80_lines() -> None:
    long = {}
    for path in [*SOURCES, *TESTS]:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                length = (node.end_lineno or node.lineno) - node.lineno + 1
                if length >= 80:
                    long[f"{path.relative_to(ROOT)}:{node.name}"] = length
    assert long == {}


def test_no_module_is_called_utils() -> None:
    assert [path for path in SOURCES if "util" in path.stem or "helper" in path.stem] == []


def test_checkpoints_are_read_as_weights_only() -> None:
    unsafe = []
    for path in SOURCES:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and ast.unparse(node.func) == "torch.load":
                settings = {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords}
                if settings.get("weights_only") != "True":
                    unsafe.append(f"{path.relative_to(ROOT)}:{node.lineno}")
    assert unsafe == []


def test_names_of_test_files_are_unique() -> None:
    counts = Counter(path.name for path in TESTS if path.name.startswith("test_"))
    assert [name for name, count in counts.items() if count > 1] == []
