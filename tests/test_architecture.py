"""ARCHITECTURE.md as a test: who may import whom, what is torch-free, how large things may be."""

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
SOURCE = ROOT / "src" / "crestline"
BANNED_NAMES = {"utils", "util", "helpers", "helper", "common", "misc", "base"}
MOST_LINES_OF_FILE = 400
MOST_LINES_OF_FUNCTION = 60

MODULES = sorted(path for path in SOURCE.rglob("*.py"))
PARTS = {path.relative_to(SOURCE).parts[0].removesuffix(".py") for path in MODULES}
PARTS -= {"__init__", "__main__"}


def table() -> dict[str, set[str]]:
    """Which parts a part may import, from the table of ARCHITECTURE.md."""
    allowed: dict[str, set[str]] = {}
    for line in (ROOT / "ARCHITECTURE.md").read_text().splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if len(cells) == 3 and re.fullmatch(r"`\w+`", cells[0]):
            allowed[cells[0].strip("`")] = set(re.findall(r"`(\w+)`", cells[2]))
            if cells[2].startswith(("all but", "anything")):
                allowed[cells[0].strip("`")] = PARTS - allowed[cells[0].strip("`")]
    return allowed


ALLOWED = table()


def name_of(path: Path) -> str:
    return str(path.relative_to(SOURCE))


def part_of(path: Path) -> str:
    return path.relative_to(SOURCE).parts[0].removesuffix(".py")


def tree_of(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def own_imports(nodes: Iterator[ast.AST]) -> Iterator[tuple[str, int]]:
    """(module of ours, line) for every import among the nodes."""
    for node in nodes:
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"relative import in line {node.lineno}"
            if node.module == "crestline":
                yield from ((f"crestline.{alias.name}", node.lineno) for alias in node.names)
            elif node.module and node.module.startswith("crestline."):
                yield node.module, node.lineno
        elif isinstance(node, ast.Import):
            for alias in node.names:
                if alias.name.split(".")[0] == "crestline":
                    yield alias.name, node.lineno


def test_the_table_names_every_part() -> None:
    assert set(ALLOWED) == PARTS


def test_no_two_parts_know_each_other() -> None:
    for part, known in ALLOWED.items():
        for other in known:
            assert part == other or part not in ALLOWED[other], f"{part} and {other}"


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_imports_follow_the_table(path: Path) -> None:
    part = part_of(path)
    if part == "__init__":  # hands names on
        return
    may = (ALLOWED["cli"] | {"cli"}) if part == "__main__" else ALLOWED[part] | {part}
    for module, line in own_imports(ast.walk(tree_of(path))):
        other = module.split(".")[1] if "." in module else ""
        if other == "__version__":
            continue
        assert other in may, f"{name_of(path)}:{line} imports {module}; it may know {sorted(may)}"


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_no_own_imports_inside_functions(path: Path) -> None:
    """Except in cli, which imports only the verb that was asked for."""
    if part_of(path) in ("cli", "__init__"):
        return
    for node in ast.walk(tree_of(path)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            for module, line in own_imports(ast.walk(node)):
                raise AssertionError(f"{name_of(path)}:{line} imports {module} inside a function")


def test_only_pipeline_cli_and_bench_know_worlds() -> None:
    """Gold is walled off."""
    for part, known in ALLOWED.items():
        assert ("worlds" in known) == (part in ("pipeline", "cli"))


TORCH_FREE = ("types", "data", "runs", "people", "worlds", "crest", "report")
TORCH_FREE_MODULES = (
    "crestline",
    "crestline.cli.main",
    "crestline.cli.checks",
    "crestline.cli.screen",
    "crestline.pipeline.best_of_n_files",
    "crestline.pipeline.configs",
    "crestline.pipeline.convert",
    "crestline.pipeline.reward_eval_configs",
    "crestline.pipeline.presets",
    "crestline.pipeline.rank",
    "crestline.pipeline.screen",
    "crestline.pipeline.who",
    "crestline.serve.address",
    "crestline.serve.configs",
    "crestline.training.configs",
)


def dotted(path: Path) -> str:
    parts = path.relative_to(SOURCE.parent).with_suffix("").parts
    return ".".join(part for part in parts if part != "__init__")


@pytest.mark.parametrize("part", [*TORCH_FREE, "configs"])
def test_torch_free(part: str) -> None:
    modules = [dotted(path) for path in MODULES if part_of(path) == part] or TORCH_FREE_MODULES
    code = (
        "import importlib, sys\n"
        f"for module in {list(modules)!r}:\n"
        "    importlib.import_module(module)\n"
        "    assert 'torch' not in sys.modules, module\n"
        "    assert 'transformers' not in sys.modules, module\n"
    )
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_names_and_sizes(path: Path) -> None:
    assert path.stem not in BANNED_NAMES
    assert len(path.relative_to(SOURCE).parts) <= 2, "folders are at most two deep"
    text = path.read_text(encoding="utf-8")
    assert len(text.splitlines()) <= MOST_LINES_OF_FILE
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            lines = (node.end_lineno or 0) - node.lineno + 1
            assert lines <= MOST_LINES_OF_FUNCTION, f"{node.name} has {lines} lines"


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_every_module_says_what_it_is(path: Path) -> None:
    tree = tree_of(path)
    assert ast.get_docstring(tree) or not tree.body
