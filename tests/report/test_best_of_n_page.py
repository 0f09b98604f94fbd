"""The page of best-of-n: whole, without a judge, with hostile text; and what its headline claims."""

from __future__ import annotations

import copy
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from crestline.pipeline.best_of_n import examples
from crestline.report.best_of_n_page import (
    SLIM,
    WIDE,
    best_of_n_page,
    curve_picture,
    write_best_of_n_page,
)
from crestline.report.best_of_n_words import headline, not_checked, reason, short_table
from crestline.rewards.best_of_n import Scored, best_of_n_figures
from crestline.runs.files import write_json
from crestline.types import BadInput

EVIL = "</style></svg><script>alert(1)</script><img src=x onerror=alert(2)>\u202e\x00 {{ 7*7 }}"


def figures(*, judged: bool = True, num_prompts: int = 60) -> dict[str, Any]:
    """What the verb writes, on scores of which the judge likes the middle best."""
    rng = np.random.default_rng(0)
    scored = []
    for n in range(num_prompts):
        values = rng.normal(size=32)
        judge = -2 * (values - 1) ** 2
        scored.append(
            Scored(
                prompt=[{"role": "user", "content": f"{n} {EVIL}"}] if n % 2 else f"{n} {EVIL}",
                completions=tuple(f"{k}{EVIL}" for k in range(32)),
                scores=tuple(values.tolist()),
                judge_scores=tuple(judge.tolist()) if judged else (),
            )
        )
    settings = {
        "model_name_or_path": f"runs/{EVIL}",
        "dataset_name": "prompts.jsonl",
        "samples_file": "",
        "reward_model_name_or_path": "runs/reward/model",
        "reward_funcs": "",
        "remote_rm_url": "",
        "judge": "other" if judged else "",
        "max_completion_length": 64,
        "temperature": 0.7,
    }
    found = {"settings": settings, "is_done": True, **best_of_n_figures(scored, num_resamples=100)}
    return json.loads(json.dumps(found | {"examples": examples(scored)}))


@pytest.fixture(scope="module")
def whole() -> dict[str, Any]:
    return figures()


def changed(found: dict[str, Any], **changes: Any) -> dict[str, Any]:
    other = copy.deepcopy(found)
    other["judge_turn"] |= changes
    return other


def test_the_page_shows_curve_numbers_and_answers(whole: dict[str, Any]) -> None:
    text = best_of_n_page(whole)
    assert text.count("<svg") == 2 and text.count('class="line preference"') == 2
    assert "0.193" in text and "KL" in text  # log 2 - 1/2
    assert "temperature" in text and "0.7" in text
    assert "judge’s highest: n = " in text
    for number in re.findall(r'(?:d|x1|y1)="([^"]+)"', text):
        assert "nan" not in number.lower()
    assert text.count('class="side"') == 8


def test_hostile_text_stays_text(whole: dict[str, Any]) -> None:
    text = best_of_n_page(whole)
    assert "<script" not in text and "<img" not in text and "\x00" not in text
    assert "&lt;script&gt;" in text and "{{ 7*7 }}" in text
    assert text.count("</style>") == 1


def test_without_a_judge_and_with_one_prompt() -> None:
    found = figures(judged=False, num_prompts=1)
    text = best_of_n_page(found)
    assert "judge’s highest" not in text and 'class="line preference"' not in text
    assert "nan" not in text.lower().replace("finance", "")
    said = " ".join(not_checked(found))
    assert "--judge" in said and "too narrow" in said


def test_written_beside_and_always_the_same(tmp_path: Path, whole: dict[str, Any]) -> None:
    write_json(tmp_path / "best.json", whole)
    page = write_best_of_n_page(tmp_path / "best.json")
    first = page.read_bytes()
    assert page.name == "best.html" and write_best_of_n_page(tmp_path / "best.json") == page
    assert page.read_bytes() == first
    with pytest.raises(BadInput, match=r"none\.json"):
        write_best_of_n_page(tmp_path / "none.json")


def test_headlines_claim_what_was_shown(whole: dict[str, Any]) -> None:
    turn = whole["judge_turn"]
    assert turn["fall_shown"] and turn["gain_shown"]
    assert headline(whole) == (
        f"The judge’s score peaks at the best of {turn['peak_n']} and falls from there."
    )
    assert "chance" not in reason(whole)
    unsure = changed(whole, fall_shown=False)
    assert "not shown" in headline(unsure) and "chance could explain" in reason(unsure)
    assert "is highest" in headline(changed(whole, gain_shown=False))
    assert "not shown to please" in headline(changed(unsure, gain_shown=False))
    assert "still gains" in headline(changed(whole, fall_shown=False, peak_n=32, fall=0.0))
    assert "worse in the judge’s eyes" in headline(changed(whole, peak_n=1))
    assert "without any choice" in reason(changed(whole, peak_n=1))


def test_the_short_table_lines_up(whole: dict[str, Any]) -> None:
    *rows, last = short_table(whole)
    assert last == headline(whole) and len(rows) == 1 + 6
    assert rows[0].split() == ["n", "KL", "up", "to", "score", "95", "%", "judge", "95", "%"]
    assert rows[-1].split()[:2] == ["32", "2.50"]
    assert "judge" not in short_table(figures(judged=False, num_prompts=3))[0]


def judged(judge: float | str | None, *, chosen: bool = True) -> dict[str, Any]:
    """Figures of 30 prompts, the judge's score the same for all answers to a prompt; None: nobody judged; else random.

    A judge of 0.7 is of 0.7 and −0.7 in turn, so that its means cancel.
    """
    rng = np.random.default_rng(0)
    scored = [
        Scored(
            prompt=f"p{n}",
            completions=tuple("abcdefgh"),
            scores=tuple(rng.normal(size=8).tolist()) if chosen else (0.1,) * 8,
            judge_scores=judge_scores(judge, n, rng),
        )
        for n in range(30)
    ]
    return json.loads(json.dumps(best_of_n_figures(scored, num_resamples=50)))


def judge_scores(judge: float | str | None, n: int, rng: np.random.Generator) -> tuple[float, ...]:
    if judge is None:
        return ()
    if isinstance(judge, str):
        return tuple(rng.normal(size=8).tolist())
    return ((-1) ** n * judge if judge == 0.7 else judge + n,) * 8


@pytest.mark.parametrize("judge", [0.0, 0.1, 0.7, 1e6 + 0.1, -3.3])
def test_a_judge_who_tells_nothing_apart(judge: float) -> None:
    found = judged(judge)
    assert headline(found) == "The judge tells none of a prompt’s answers from another."
    assert reason(found).endswith(
        "The judge gave all answers to a prompt the same score, whichever is chosen."
    )
    assert "highest" not in reason(found) and "loses" not in reason(found)
    for frame in (WIDE, SLIM):
        picture = curve_picture(found, frame)
        assert picture["peak"] is None and picture["peak_label"] == ""
        assert [label for _, label in picture["y_ticks"]].count("0.0") <= 1


def test_a_score_that_chooses_nothing() -> None:
    found = judged(None, chosen=False)
    assert "choosing changes nothing" in headline(found)
    assert reason(found) == (
        "The score that chooses is the same for all answers to a prompt, so nothing is chosen."
    )
    for judge in (0.0, None, "random"):
        unchosen = judged(judge, chosen=False)
        assert headline(unchosen) == headline(found) and reason(unchosen) == reason(found)
        picture = curve_picture(unchosen, WIDE)
        assert picture["peak"] is None
        assert all(abs(float(label.replace("−", "-"))) < 2 for _, label in picture["y_ticks"])
    assert short_table(found)[1].split() == ["1", "0.00", "0.100", "0.100", "to", "0.100"]
