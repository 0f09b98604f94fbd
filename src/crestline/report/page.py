"""report.html: one page that tells the story of a run, without any request to anywhere.

Owns the order of the sections and how they degrade. Knows nothing of how a verdict is reached.
"""

from __future__ import annotations

import base64
import hashlib
import json
from pathlib import Path
from typing import Any

from markupsafe import Markup

from crestline.report.reading import Run, read_run
from crestline.report.rendering import environment
from crestline.report.samples import answers_of, browsed
from crestline.report.sections import (
    columns,
    cost,
    curves,
    gold,
    pictures,
    reader_data,
    reward_quality,
    tiles,
)
from crestline.report.words import (
    badge,
    headline,
    inert,
    kind_of_answerer,
    not_checked,
    number,
    percent,
)
from crestline.runs.files import write_atomic

CONFIG_LIMIT = 20_000
"""Characters of one settings file that the page shows."""


def write_report(run_folder: Path, output: Path | None = None) -> Path:
    """Writes the page of a run and returns its path.

    run_folder: what `crestline run` or `crestline rl` made; whatever is missing is named on the
    page. output: where the page goes; by default report.html inside the folder.
    The same folder gives the same bytes.
    Raises: BadInput if the folder holds nothing to report, or the disk refuses.
    """
    run = read_run(Path(run_folder))
    path = Path(output) if output is not None else Path(run_folder) / "report.html"
    write_atomic(path, page(run))
    return path


def page(run: Run) -> str:
    """The page as text."""
    pages = environment(number=number, percent=percent)
    script = pages.get_template("script.js.jinja").render()
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode("ascii")
    template = pages.get_template("page.html.jinja")
    return template.render(script=Markup(script), script_digest=digest, **sections(run))


def sections(run: Run) -> dict[str, Any]:
    """Everything that the template shows."""
    answers = answers_of(run)
    verdict = run.verdict
    answered_by = verdict.answered_by if verdict else ""
    data = reader_data(run, answers)
    return {
        "name": inert(run.name),
        "headline": headline(verdict, run.last_update),
        "rewarded": run.rewarded,
        "verdict": verdict,
        "reason": inert(verdict.reason, 2000) if verdict else "",
        "badge": inert(badge(answered_by)) if verdict else "",
        "answerer": kind_of_answerer(answered_by),
        "tiles": tiles(run),
        "pictures": pictures(run),
        "checkpoints": run.checkpoints,
        "gold": gold(run),
        "columns": columns(run, answers),
        "answers": answers,
        "data": inline_json(data),
        "has_reader": bool(answers.prompts and data["checkpoints"]),
        "reader_start": data["start"],
        "curves": curves(run),
        "reward": reward_quality(run),
        "cost": cost(run),
        "browsed": browsed(run),
        "configs": {name: inert(text, CONFIG_LIMIT) for name, text in run.configs.items()},
        "not_checked": not_checked(answered_by, simulated_gold=bool(run.gold)),
        "notes": {key: inert(note, 600) for key, note in run.notes.items()},
    }


def inline_json(value: Any) -> Markup:
    """JSON for a script element: nothing in it can end the element or start another.

    >>> print(inline_json("</script>"))
    "\\u003c/script\\u003e"
    """
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"))
    for character in "<>&\u2028\u2029":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return Markup(text)
