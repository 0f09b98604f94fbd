"""What the pages say is so: commands parse, links lead somewhere, snippets compile, formats are read.

Nothing is run that takes longer than a moment: commands go through the parser only.
"""

from __future__ import annotations

import ast
import json
import re
import shlex
from collections.abc import Iterator
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

import pytest

import crestline
from crestline import data
from crestline.cli.main import settle
from crestline.cli.parsing import assemble, parse_flags
from crestline.cli.verbs import VERBS, RunControl
from crestline.training.configs import required
from crestline.types import BadInput

ROOT = Path(__file__).resolve().parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
LINKED = [*PAGES, ROOT / "ARCHITECTURE.md"]
FENCE = re.compile(r"^( *)```(\w*)\n(.*?)^\1```", re.MULTILINE | re.DOTALL)
VERB = re.compile(rf"crestline (?:{'|'.join(VERBS)})\b")


def blocks(page: Path) -> Iterator[tuple[str, str]]:
    """(language, content) of each fenced block of a page."""
    for match in FENCE.finditer(page.read_text(encoding="utf-8")):
        yield match.group(2), match.group(3)


def commands(page: Path) -> Iterator[str]:
    """Every `crestline VERB ...` of a page: in fenced blocks, and between backticks in the text."""
    for language, content in blocks(page):
        if language not in ("", "bash", "sh", "console"):
            continue
        for line in re.sub(r"\\\n\s*", " ", content).splitlines():
            for part in re.split(r"\||&&|;", line.split("#")[0]):
                if match := VERB.search(part):
                    yield part[match.start() :].strip()
    text = " ".join(FENCE.sub("", page.read_text(encoding="utf-8")).split())
    for code in re.findall(r"`([^`]+)`", text):
        if VERB.match(code) and "|" not in code and "..." not in code:
            yield code


def parse(command: str) -> None:
    """Turn a command line into its settings, as the CLI does, without reading files or working."""
    words = shlex.split(command)[1:]
    verb = VERBS[words[0]]
    options = verb.options(verb.defaults())
    if any(word in ("-h", "--help") for word in words):
        return
    flags = parse_flags(words[1:], options, verb.positional)
    has_file = flags.pop("config", None) is not None
    control = assemble("control", verb.control(), flags)
    if isinstance(control, RunControl) and control.resume:
        assert set(flags) == {"resume"}, "--resume takes no other settings"
        return
    config, _ = settle(verb, control, flags, options)
    if not has_file and len(words) > 1:
        required(config, *verb.required)


EVERY_COMMAND = sorted({(page.name, command) for page in PAGES for command in commands(page)})
EVERY_SNIPPET = [
    (f"{page.name}-{number}", content)
    for page in PAGES
    for number, (language, content) in enumerate(blocks(page))
    if language == "python"
]


@pytest.mark.parametrize(("page", "command"), EVERY_COMMAND)
def test_a_command_parses(page: str, command: str) -> None:
    try:
        parse(command)
    except BadInput as error:
        pytest.fail(f"{page}: {command}: {error}")


def test_a_wrong_command_is_seen() -> None:
    with pytest.raises(BadInput):
        parse("crestline rl --output-dir x")
    with pytest.raises(BadInput):
        parse("crestline rl --output_dir x")
    with pytest.raises(BadInput):
        parse("crestline run --rl.algorithm a2c")
    assert len(EVERY_COMMAND) > 20


def test_flags_in_the_text_exist() -> None:
    known = {option.flag for verb in VERBS.values() for option in verb.options(verb.defaults())}
    known |= {"help", "version"}
    for page in PAGES:
        for code in re.findall(r"`([^`\n]+)`", FENCE.sub("", page.read_text(encoding="utf-8"))):
            if code.startswith("python "):
                continue  # a bench script has flags of its own
            for flag in re.findall(r"(?<![\w-])--([\w.]+)", code):
                assert flag in known, f"{page.name}: no verb has --{flag}"


@pytest.mark.parametrize("page", LINKED, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text(encoding="utf-8")):
        if re.match(r"\w+:", target):
            continue
        name, _, anchor = target.partition("#")
        found = (page.parent / name).resolve() if name else page
        assert found.exists(), f"{page.name}: {target} leads nowhere"
        if anchor:
            assert anchor in anchors(found), f"{page.name}: {target}: no such heading"


def anchors(page: Path) -> set[str]:
    """The anchors of a page's headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.+)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", h.lower()).replace(" ", "-") for h in headings}


@pytest.mark.parametrize(
    "snippet", [content for _, content in EVERY_SNIPPET], ids=[name for name, _ in EVERY_SNIPPET]
)
def test_a_snippet_compiles_and_its_imports_exist(snippet: str) -> None:
    tree = ast.parse(snippet)
    compile(tree, "snippet", "exec")
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom):
            assert node.module is not None
            for name in node.names:
                assert has(node.module, name.name), f"{node.module} has no {name.name}"
        elif isinstance(node, ast.Import):
            for name in node.names:
                assert find_spec(name.name) is not None, f"no module {name.name}"


def has(module: str, name: str) -> bool:
    """Whether a module has a name; those of `crestline` itself without importing torch."""
    if module == "crestline":
        home = crestline._HOMES.get(name, "").partition(":")
        if not home[0]:
            return False
        spec = find_spec(home[0])
        assert spec is not None and spec.origin is not None
        body = ast.parse(Path(spec.origin).read_text(encoding="utf-8")).body
        named = {n.name for n in body if isinstance(n, ast.FunctionDef | ast.ClassDef)}
        return (home[2] or name) in named
    if module.startswith("crestline"):
        return hasattr(import_module(module), name)
    return find_spec(module.split(".")[0]) is not None


def test_examples_of_formats_are_read(tmp_path: Path) -> None:
    text = (ROOT / "docs" / "formats.md").read_text(encoding="utf-8")
    examples = re.findall(r"<!-- (read_\w+) -->\n```json\n(.*?)```", text, re.DOTALL)
    assert {name for name, _ in examples} == {
        "read_texts",
        "read_prompts",
        "read_demonstrations",
        "read_rankings",
        "read_samples",
    }
    for number, (name, rows) in enumerate(examples):
        file = tmp_path / f"{number}.jsonl"
        file.write_text(rows, encoding="utf-8")
        assert len(getattr(data, name)(str(file))) == len(rows.splitlines()) == 2, rows


def test_numbers_of_the_simulation_are_the_measured_ones() -> None:
    results = json.loads((ROOT / "bench" / "results" / "crest_sim.json").read_text())
    measured = {(r["truth"], r["flip"], r["num_labels"]): r for r in results["rows"]}
    page = (ROOT / "docs" / "verdict.md").read_text(encoding="utf-8")
    rows = re.findall(
        r"^\| ([^|]+) \| `\w+` \| (\d+) % \| (\d+) of (\d+) \| (\d+) of (\d+) \|$", page, re.M
    )
    assert len(rows) == 16
    for truth, percent, right_300, num_300, right_1000, num_1000 in rows:
        for num_labels, right, num in ((300, right_300, num_300), (1000, right_1000, num_1000)):
            row = measured[truth, int(percent) / 100, num_labels]
            said, found = (int(right), int(num)), (row["right"], row["num_runs"])
            assert said == found, f"docs/verdict.md: {truth}, {percent} %, {num_labels} labels"


def test_paths_in_the_architecture_exist() -> None:
    text = (ROOT / "ARCHITECTURE.md").read_text(encoding="utf-8")
    source = ROOT / "src" / "crestline"
    packages = "|".join(sorted(path.name for path in source.iterdir() if path.is_dir()))
    at_root = re.findall(r"(?<![\w/.])((?:src|tests|bench|docs)/[\w./-]*\w)", text)
    in_source = re.findall(rf"`((?:{packages})/[\w/]+\.py|(?:{packages})/templates/?)`", text)
    assert len(at_root) + len(in_source) > 10
    for name in at_root:
        assert (ROOT / name).exists(), f"ARCHITECTURE.md: no {name}"
    for name in in_source:
        assert (source / name).exists(), f"ARCHITECTURE.md: no src/crestline/{name}"
