"""The page: whole, with parts missing, with hostile text, and the same twice."""

from __future__ import annotations

import base64
import hashlib
import json
import random
import re
from collections.abc import Callable
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path

import pytest

from crestline.report import write_report
from crestline.report.reading import read_run
from crestline.runs.files import write_atomic, write_json, write_jsonl_atomic
from crestline.runs.tables import read_table, write_table
from crestline.types import BadInput

VOID = {"meta", "link", "input", "br", "hr", "img"}
SVG_LEAVES = {"line", "path", "circle", "rect"}
EVIL = "</script><script>alert(1)</script><img src=x onerror=alert(2)>"
NO_VALUE = re.compile(r"\bNone\b(?! of these)")
STRANGE = f"{EVIL} 🦩🦩 \u202eעברית \u0000\u0007 \u2028 {{{{ 7*7 }}}} \"quotes\" 'and' &amp; <!--"


class Page(HTMLParser):
    """Checks that tags nest, and collects elements, attributes, scripts and text."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.scripts: list[str] = []
        self.text = ""
        self.feed(text)
        self.close()
        assert self.open == [], f"never closed: {self.open}"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert tag in SVG_LEAVES | VOID, f"<{tag}/> does not close itself in HTML"
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open and self.open[-1] == tag, f"</{tag}> closes {self.open[-3:]}"
        self.open.pop()

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] == "script":
            self.scripts.append(data)
        elif not self.open or self.open[-1] != "style":
            self.text += data

    def attributes(self, name: str) -> list[str]:
        return [value or "" for _, attrs in self.tags if (value := attrs.get(name)) is not None]

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attrs for name, attrs in self.tags if name == tag]


def page_of(run: Path) -> Page:
    return Page(write_report(run).read_text(encoding="utf-8"))


def data_of(page: Page) -> dict[str, object]:
    found: dict[str, object] = json.loads(page.scripts[0])
    return found


def test_whole_run_tells_its_story(run: Path) -> None:
    path = write_report(run)
    page = Page(path.read_text(encoding="utf-8"))
    assert path == run / "report.html"
    assert path.stat().st_size < 3_000_000
    assert "preference peaked at update 120 of 420. Shipped: checkpoint-120." in page.text
    assert "simulated people: nobody real has read this model's answers" in page.text
    assert "90\u00a0% interval 72–83\u00a0%" in page.text
    for title in (
        "The score and what it stands for",
        "What was hidden",
        "Read the answers",
        "Feel the cliff",
        "How training went",
        "How good the reward model was",
        "What it cost",
        "What training saw",
        "Settings",
        "What was not checked",
    ):
        assert title in page.text
    assert "There is no" not in page.text
    assert "the the the" in page.text.replace("thank you ", "")
    assert "640" in page.text and "53,760" in page.text and "1,840 MB" in page.text
    assert "built-in method" not in page.text and not NO_VALUE.search(page.text)


def test_nothing_is_loaded_from_elsewhere(run: Path) -> None:
    text = write_report(run).read_text(encoding="utf-8")
    page = Page(text)
    assert page.attributes("href") == ["data:,"]
    assert page.attributes("src") == []
    assert not re.search(r"https?://|@import|url\((?!#)", text)
    assert "default-src 'none'" in text


def test_only_our_script_may_run(run: Path) -> None:
    page = page_of(run)
    digest = base64.b64encode(hashlib.sha256(page.scripts[1].encode()).digest()).decode()
    policy = page.all("meta")[2]["content"] or ""
    assert f"script-src 'sha256-{digest}';" in policy


def test_ids_are_unique_and_pictures_are_told(run: Path) -> None:
    page = page_of(run)
    ids = page.attributes("id")
    assert len(ids) == len(set(ids))
    assert set(page.attributes("aria-labelledby")) <= set(ids)
    pictures = page.all("svg")
    assert len(pictures) == 4 + 1 + 8
    assert all(picture.get("role") == "img" and picture.get("aria-label") for picture in pictures)
    levels = [int(tag[1]) for tag, _ in page.tags if re.fullmatch("h[1-6]", tag)]
    assert levels[0] == 1 and all(b - a <= 1 for a, b in pairwise(levels))


def test_reader_carries_the_same_prompts_for_every_checkpoint(run: Path) -> None:
    page = page_of(run)
    data = json.loads(page.scripts[0])
    assert len(data["checkpoints"]) == len(data["answers"]) == 20
    assert data["checkpoints"][data["start"]]["update"] == 120
    assert all(len(answers) == 8 for answers in data["answers"])
    table = read_table(run / "rl" / "evaluations" / "evaluation_00420.parquet")
    assert data["answers"][-1][0]["text"] == table["completion"][0]
    assert "A joke about a turtle, please." in page.text
    assert '"role"' not in page.text


def test_same_folder_same_bytes(make_run: Callable[..., Path], tmp_path: Path) -> None:
    first = write_report(make_run(tmp_path / "a" / "run"), tmp_path / "first.html")
    second = write_report(make_run(tmp_path / "b" / "run"), tmp_path / "second.html")
    assert first.read_bytes() == second.read_bytes()
    assert not (tmp_path / "a" / "run" / "report.html").exists()


OPTIONAL = {
    "verdict.json": "This run has no verdict yet.",
    "rl/checkpoints.jsonl": "There is no checkpoints.jsonl",
    "rl/metrics.jsonl": "There is no rl/metrics.jsonl",
    "answers.jsonl": "There is no answers.jsonl",
    "rankings.jsonl": "There is no rankings.jsonl",
    "reward/evaluation.json": "There is no reward/evaluation.json",
    "run.json": "There is no run.json",
    "gold.jsonl": "",
    "rl/config.yaml": "",
    "config.yaml": "",
    "rl/evaluations": "There are no rl/evaluations",
    "rl/completions": "There are no rl/completions",
}


def remove(path: Path) -> None:
    if path.is_dir():
        for entry in path.iterdir():
            entry.unlink()
        path.rmdir()
    else:
        path.unlink()


@pytest.mark.parametrize("name", OPTIONAL)
def test_each_part_may_be_missing(run: Path, name: str) -> None:
    remove(run / name)
    page = page_of(run)
    assert OPTIONAL[name] in page.text
    assert "What was not checked" in page.text


@pytest.mark.parametrize("name", [name for name in OPTIONAL if "." in name])
def test_each_part_may_be_broken(run: Path, name: str) -> None:
    write_atomic(run / name, "{broken\n[1, 2\n")
    page = page_of(run)
    if not name.endswith("yaml"):
        assert page.text.count("This part could not be read") == 1


@pytest.mark.parametrize("folder", ["evaluations", "completions"])
def test_broken_tables_are_named(run: Path, folder: str) -> None:
    for path in (run / "rl" / folder).iterdir():
        path.write_bytes(b"PAR1 no")
    assert "This part could not be read" in page_of(run).text


def test_all_optional_parts_missing_at_once(run: Path) -> None:
    for name in OPTIONAL:
        if name != "verdict.json":
            remove(run / name)
    page = page_of(run)
    assert "peaked at update 120" in page.text
    assert page.all("svg"), "the curve stands in the verdict"


def test_only_checkpoints(run: Path) -> None:
    for name in OPTIONAL:
        if name != "rl/checkpoints.jsonl":
            remove(run / name)
    page = page_of(run)
    assert "This run has no verdict yet." in page.text
    assert page.all("svg")


def test_stage_run_alone_is_its_own_folder(run: Path, tmp_path: Path) -> None:
    alone = run / "rl"
    for name in ("verdict.json", "answers.jsonl"):
        (run / name).rename(alone / name)
    page = page_of(alone)
    assert "peaked at update 120 of 420" in page.text
    assert "How training went" in page.text


VERDICTS = [
    (
        {"kind": "still_rising", "update": 420, "interval": [375, 420]},
        "was still rising at update 420, the last. Shipped: checkpoint-420.",
    ),
    (
        {"kind": "still_rising", "update": 240},
        "no decline is established up to update 420. Shipped: checkpoint-240.",
    ),
    (
        {"kind": "nothing_beats_reference", "update": 0, "interval": None, "win_rate": None},
        "Shipped: the start itself, unchanged.",
    ),
    (
        {
            "kind": "not_measured",
            "update": None,
            "interval": None,
            "distance": None,
            "win_rate": None,
            "win_rate_interval": None,
            "curve": [],
            "num_labels": 12,
        },
        "was not measured. Nothing was shipped.",
    ),
]


@pytest.mark.parametrize(("changes", "said"), VERDICTS)
def test_every_kind_of_verdict(
    make_run: Callable[..., Path], tmp_path: Path, changes: dict[str, object], said: str
) -> None:
    page = page_of(make_run(tmp_path / "run", **changes))
    assert said in page.text
    assert not NO_VALUE.search(page.text)
    assert page.all("svg")


@pytest.mark.parametrize(
    ("answered_by", "said"),
    [
        ("stand-in", "estimated by a stand-in, not by people"),
        ("people, stand-in", "estimated by a stand-in, not by people"),
        ("people", "answered by people"),
        ("function", "answered by a function, not by people"),
        ("", "who answered was not recorded"),
        ("Martians", "answered by Martians"),
    ],
)
def test_badge_says_who_answered(
    make_run: Callable[..., Path], tmp_path: Path, answered_by: str, said: str
) -> None:
    page = page_of(make_run(tmp_path / "run", answered_by=answered_by))
    assert said in page.text


def test_gold_stays_hidden_without_a_verdict(run: Path) -> None:
    remove(run / "verdict.json")
    assert "What was hidden" not in page_of(run).text


def test_raw_win_rates_come_from_answers_without_a_curve(run: Path) -> None:
    remove(run / "verdict.json")
    rows = {row.update: row for row in read_run(run).checkpoints}
    assert rows[0].num_duels == 0
    assert rows[120].num_duels == 173, "one of 174 was not ranked"
    assert rows[120].win_rate is None


def make_hostile(run: Path) -> None:
    for folder in ("evaluations", "completions"):
        for path in sorted((run / "rl" / folder).iterdir()):
            table = read_table(path)
            table["completion"] = [STRANGE + " spam" * 4_000 for _ in table["completion"]]
            table["prompt"] = [f"{number} {STRANGE}" for number, _ in enumerate(table["prompt"])]
            write_table(path, table)
    verdict = json.loads((run / "verdict.json").read_text(encoding="utf-8"))
    write_json(run / "verdict.json", {**verdict, "reason": STRANGE, "answered_by": EVIL})
    write_json(run / "run.json", {"stages": {EVIL: {"state": EVIL, "seconds": EVIL}}})
    write_jsonl_atomic(run / "rankings.jsonl", [{"answered_by": EVIL}])
    write_atomic(run / "config.yaml", f"name: '{EVIL}'\n")


def test_hostile_text_stays_text(make_run: Callable[..., Path], tmp_path: Path) -> None:
    run = make_run(tmp_path / "<b>run<")
    before = Page(write_report(run).read_text(encoding="utf-8"))
    make_hostile(run)
    path = write_report(run)
    page = Page(path.read_text(encoding="utf-8"))
    assert path.stat().st_size < 3_000_000
    assert len(page.all("script")) == len(page.scripts) == 2
    assert page.scripts[1] == before.scripts[1], "the only code is ours"
    assert not page.all("img") and not page.all("b")
    assert page.attributes("onerror") == []
    assert "alert(1)" in page.text and "🦩🦩" in page.text and "{{ 7*7 }}" in page.text
    assert "\x00" not in path.read_text(encoding="utf-8") and "␀" in page.text
    assert "more characters]" in page.text
    first = data_of(page)["answers"][0][0]  # type: ignore[index]
    assert first["text"].startswith(EVIL)


def test_odd_values_do_not_stop_the_page(run: Path) -> None:
    rows: list[dict[str, object]] = [
        {"update": 0, "distance": None, "proxy": None},
        {"update": 5, "distance": "far", "proxy": True},
        {"update": "seven"},
        {"distance": 1.0},
        {"update": 9, "distance": 0.5, "proxy": 1.7},
    ]
    write_jsonl_atomic(run / "rl" / "checkpoints.jsonl", rows)
    write_json(run / "verdict.json", {"kind": "new kind", "interval": [1], "curve": [3, {}]})
    write_json(run / "reward" / "evaluation.json", {"accuracy": "high", "num_pairs": None})
    assert "was not measured" in page_of(run).text


def test_long_run_stays_small(run: Path) -> None:
    template = read_table(run / "rl" / "evaluations" / "evaluation_00120.parquet")
    stream = random.Random(0)
    text = "".join(chr(stream.randrange(0x4E00, 0x9FFF)) for _ in range(3000))
    template["completion"] = [text for _ in template["completion"]]
    for number in range(60):
        name = f"evaluation_{1000 + number:05d}.parquet"
        write_table(run / "rl" / "evaluations" / name, template)
    metrics = [{"update": n, "reward": stream.random(), "kl": 0.1 * n} for n in range(1, 5001)]
    write_jsonl_atomic(run / "rl" / "metrics.jsonl", metrics)
    assert write_report(run).stat().st_size < 3_000_000


def test_no_run_no_page(tmp_path: Path) -> None:
    for folder in (tmp_path / "missing", tmp_path):
        with pytest.raises(BadInput) as caught:
            write_report(folder)
        assert "give the folder that crestline run" in str(caught.value)
        assert "\n" not in str(caught.value)
        assert not (folder / "report.html").exists()
    write_atomic(tmp_path / "metrics.jsonl", '{"update": 1, "loss": 2.0}\n')
    with pytest.raises(BadInput, match="nothing to report"):
        write_report(tmp_path)
