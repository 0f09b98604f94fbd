"""README.md of a shipped model: the model card, which says no more than the run knows.

Owns the card's words and its YAML header. Knows nothing of how a verdict is reached.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from crestline.report.reading import Run, finite, read_run, verdict_of, whole
from crestline.report.rendering import environment
from crestline.report.rewarded import MODEL, Rewarded
from crestline.report.samples import prompt_text
from crestline.report.words import (
    badge,
    headline,
    inert,
    not_checked,
    number,
    percent,
    percent_range,
)
from crestline.runs.files import read_json, write_atomic
from crestline.types import BadInput, Verdict

FACTS = (
    ("name", "what the model is called"),
    ("base_model", "the model all began from, if it was not trained from nothing"),
    ("license", "hub name of the licence, such as apache-2.0"),
    ("num_updates", "updates that were run, of which the shipped one is one"),
    ("algorithm", "how the policy was trained"),
    ("beta", "weight of KL(policy‖start) in training; 0 is none"),
    ("reward_shaping", "how a score became a reward: raw, centered or par"),
    ("learning_rate", "peak learning rate of RL"),
    ("num_generations", "completions for each prompt"),
    ("temperature", "sampling temperature, in training and measurement"),
    ("max_completion_length", "tokens that a completion may have"),
    ("seed", "random seed"),
    ("num_parameters", "parameters of the policy"),
    (
        "rewarded_by",
        "who scored in RL: “reward model”, “function rewards.py:brevity”, …, as a list",
    ),
    ("num_rankings", "rankings that the reward model learned from"),
    ("rankings_answered_by", "who gave these rankings"),
    ("reward_accuracy", "reward model's accuracy on held-out pairs, with _low and _high"),
    ("longer_wins_accuracy", "accuracy of “the longer answer wins” on the same pairs"),
    ("num_pairs", "held-out pairs"),
    ("baselines", "[{name, win_rate, low, high, num_duels}] against the start"),
    ("chat", "True if the tokenizer has a chat template"),
    ("prompt", "a prompt of the kind that it was trained on"),
    ("versions", "{package: version}"),
)
"""Facts that the card knows how to tell; others are listed at the end as they stand."""

_MADE = {
    "num_updates": "updates run",
    "algorithm": "algorithm",
    "beta": "KL weight (beta)",
    "reward_shaping": "reward shaping",
    "learning_rate": "learning rate",
    "num_generations": "completions per prompt",
    "temperature": "sampling temperature",
    "max_completion_length": "tokens per completion, at most",
    "seed": "seed",
    "num_parameters": "parameters",
}
_TOLD_ELSEWHERE = {name for name, _ in FACTS} | {"reward_accuracy_low", "reward_accuracy_high"}


def write_card(model_folder: Path, *, verdict: Mapping[str, Any], facts: Mapping[str, Any]) -> Path:
    """Writes README.md into a model's folder and returns its path.

    verdict: the fields of `types.Verdict`, as verdict.json has them; empty if there is none.
    facts: any of `FACTS`; None or missing is left out. The same arguments give the same bytes.
    Raises: BadInput where the disk refuses.
    """
    path = Path(model_folder) / "README.md"
    write_atomic(path, card(verdict_of(verdict) if verdict else None, facts))
    return path


def card(verdict: Verdict | None, facts: Mapping[str, Any]) -> str:
    """The card as text: YAML header and Markdown."""
    known = {key: value for key, value in facts.items() if value is not None}
    answered_by = verdict.answered_by if verdict else ""
    text = (
        environment(markup=False)
        .get_template("card.md.jinja")
        .render(
            title=markdown(known.get("name") or "A policy trained with Crestline"),
            license=_quoted(known.get("license")),
            base_model=_quoted(known.get("base_model")),
            headline=markdown(headline(verdict, whole(known.get("num_updates")))),
            badge=markdown(_capital(badge(answered_by) if verdict else "no verdict")) + ".",
            reason=markdown(verdict.reason) if verdict else "",
            measured=_measured(verdict, known),
            baselines=_baselines(known.get("baselines")),
            not_checked=[markdown(sentence) for sentence in not_checked(answered_by)],
            chat=bool(known.get("chat")),
            prompt=_quoted(prompt_text(known.get("prompt") or "")[:300]) or '"Hello"',
            max_new_tokens=whole(known.get("max_completion_length")) or 64,
            temperature=finite(known.get("temperature")) or 1.0,
            story=_story(verdict, known),
            made=_made(known),
            versions=_versions(known.get("versions")),
        )
    )
    return re.sub(r"\n{3,}", "\n\n", text)


def markdown(text: object) -> str:
    """Text on one line in which no character means anything to Markdown, HTML or a table.

    >>> markdown("<b>a|b</b>")
    '&lt;b&gt;a\\\\|b&lt;/b&gt;'
    """
    line = " ".join(inert(text, 1000).split())
    line = line.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return re.sub(r"([\\`*_\[\]|#!~])", r"\\\1", line)


def _quoted(value: object) -> str:
    """A string for YAML and Python, which both read JSON's quotes; empty for none."""
    return json.dumps(inert(value, 300), ensure_ascii=False) if value else ""


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]


def _measured(verdict: Verdict | None, facts: Mapping[str, Any]) -> list[tuple[str, str]]:
    if verdict is None:
        return []
    kinds = {
        "peaked": "preference peaked, the crest ships",
        "still_rising": "still rising: no decline was established",
        "nothing_beats_reference": "nothing beats the reference",
        "not_measured": "not measured",
    }
    rows = [("verdict", kinds[verdict.kind])]
    if verdict.update is not None:
        rows.append(("shipped update", str(verdict.update)))
    if verdict.interval:
        low, high = verdict.interval
        rows.append(("updates that hold the crest with 90 %", f"{low}–{high}"))
    if verdict.distance is not None:
        rows.append(("distance from the start", f"{number(verdict.distance)} √nats"))
    if verdict.win_rate is not None:
        ends = verdict.win_rate_interval
        interval = f" (90 % interval {percent_range(ends)})" if ends else ""
        rows.append(("preferred over the start", percent(verdict.win_rate) + interval))
    rows.append(("duels asked", number(verdict.num_labels)))
    rows.append(("who answered", markdown(badge(verdict.answered_by))))
    accuracy = finite(facts.get("reward_accuracy"))
    if accuracy is not None:
        bounds = [finite(facts.get(f"reward_accuracy_{end}")) for end in ("low", "high")]
        known = [bound for bound in bounds if bound is not None]
        interval = f" (95 % interval {percent_range(known)})" if len(known) == 2 else ""
        pairs = whole(facts.get("num_pairs"))
        told = (
            percent(accuracy) + interval + (f" of {number(pairs)} held-out pairs" if pairs else "")
        )
        rows.append(("reward model is right about", told))
    longer = finite(facts.get("longer_wins_accuracy"))
    if longer is not None:
        rows.append(("baseline: “the longer answer wins” is right about", percent(longer)))
    return rows


def _baselines(rows: Any) -> list[dict[str, str]]:
    found = []
    for row in rows if isinstance(rows, list | tuple) else ():
        ends = [finite(row.get(end)) for end in ("low", "high")]
        known = [end for end in ends if end is not None]
        found.append(
            {
                "name": markdown(row.get("name", "")),
                "win_rate": percent(finite(row.get("win_rate"))),
                "interval": percent_range(known) if len(known) == 2 else "–",
                "num_duels": number(finite(row.get("num_duels"))),
            }
        )
    return found


def _story(verdict: Verdict | None, facts: Mapping[str, Any]) -> str:
    compared = (
        "At kept checkpoints the answers were put beside those of the model it started from; from "
        "what was preferred the watch chose what ships."
    )
    rankings = whole(facts.get("num_rankings"))
    known = (MODEL,) if rankings or finite(facts.get("reward_accuracy")) is not None else ()
    reward = Rewarded(tuple(facts.get("rewarded_by") or known))
    by = facts.get("rankings_answered_by")
    learned = f" from {number(rankings)} rankings" if rankings else " from rankings"
    given = f" ({markdown(by)})" if by else ""
    told = {
        "not_measured": "Whether that made the answers better was not measured.",
        "peaked": compared + " What training did after the crest is not in this model.",
    }.get(verdict.kind if verdict else "not_measured", compared)
    raised = f"reinforcement learning raised {markdown(reward.told)}. {told}"
    if MODEL in reward.by:
        return f"A reward model learned{learned}{given}, and {raised}"
    return _capital(raised)


def _made(facts: Mapping[str, Any]) -> list[tuple[str, str]]:
    rows = [(label, _told(facts[key], key)) for key, label in _MADE.items() if key in facts]
    others = sorted(key for key in facts if key not in _TOLD_ELSEWHERE)
    return rows + [(markdown(key), _told(facts[key])) for key in others]


def _told(value: Any, key: str = "") -> str:
    if key == "beta" and value == 0:
        return "0 (no KL term)"
    if isinstance(value, float):
        return markdown(f"{value:g}")
    return f"{value:,}" if type(value) is int and value >= 10_000 else markdown(value)


def _versions(versions: Any) -> str:
    if not isinstance(versions, Mapping):
        return ""
    return ", ".join(f"{markdown(name)} {markdown(versions[name])}" for name in sorted(versions))


def facts_of(run_folder: Path) -> dict[str, Any]:
    """Facts for the card that a run folder tells by itself; the caller may add more.

    Raises: BadInput if the folder holds nothing to report.
    """
    folder = Path(run_folder)
    run = read_run(folder)
    algorithm = run.rl_config.get("algorithm")
    method = algorithm if isinstance(algorithm, Mapping) else {"name": algorithm}
    kl, shaping = run.rl_config.get("kl"), run.rl_config.get("shaping")
    optimization = run.rl_config.get("optimization")
    steps = optimization if isinstance(optimization, Mapping) else {}
    accuracy = {
        "reward_accuracy": "accuracy",
        "reward_accuracy_low": "accuracy_low",
        "reward_accuracy_high": "accuracy_high",
    }
    facts: dict[str, Any] = {
        "name": run.name,
        "base_model": _base_model(folder, run),
        "num_updates": run.last_update,
        "algorithm": method.get("name"),
        "beta": kl.get("beta") if isinstance(kl, Mapping) else method.get("beta"),
        "reward_shaping": shaping.get("reward_shaping") if isinstance(shaping, Mapping) else None,
        "learning_rate": steps.get("learning_rate"),
        "rewarded_by": list(run.rewarded.by) or None,
        "prompt": run.answer_prompt or None,
    }
    for key in ("num_generations", "temperature", "max_completion_length", "seed"):
        facts[key] = run.rl_config.get(key)
    if run.rewarded.may_be_learned:
        facts |= {key: run.reward.get(name) for key, name in accuracy.items()}
        facts |= {key: run.reward.get(key) for key in ("longer_wins_accuracy", "num_pairs")}
        facts["num_rankings"] = run.labels.num_rankings
        facts["rankings_answered_by"] = run.labels.rankings_answered_by or None
    facts["chat"] = _has_chat_template(folder / "model") or None
    return {key: value for key, value in facts.items() if value is not None}


def _base_model(folder: Path, run: Run) -> str | None:
    """The hub name that the first stage began from; None for a folder or a model from nothing."""
    for text in (run.configs.get("sft/config.yaml"), run.configs.get("rl/config.yaml")):
        found = re.search(r"^model_name_or_path: ['\"]?([^\s'\"]+)", text or "", re.MULTILINE)
        if found:
            name = found.group(1)
            local = Path(name).exists() or (folder / name).exists()
            is_hub_name = re.fullmatch(r"[\w-][\w.-]*/(?!model$|checkpoint-)[\w-][\w.-]*", name)
            return name if is_hub_name and not local else None
    return None


def _has_chat_template(model: Path) -> bool:
    if (model / "chat_template.jinja").exists():
        return True
    try:
        config = read_json(model / "tokenizer_config.json")
    except BadInput:
        return False
    return isinstance(config, dict) and bool(config.get("chat_template"))
