"""A realistic run folder: 20 checkpoints with a crest and a cliff, every file by the schema."""

from __future__ import annotations

import json
import math
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from crestline.runs.files import write_atomic, write_json, write_jsonl_atomic
from crestline.runs.tables import write_table

UPDATES = [0, 4, 9, 15, 22, 30, 40, 52, 66, 82, 100, 120, 145, 172, 205, 240, 280, 325, 375, 420]
CREST = 120
TOPICS = [
    "pelican",
    "duck",
    "elephant",
    "turtle",
    "snail",
    "fish",
    "dragon",
    "rhino",
    "goat",
    "bee",
]
REQUESTS = [
    "Tell me a joke about a {}.",
    "Do you know a joke about a {}?",
    "Make me laugh with a {}.",
]


def distance_of(update: int) -> float:
    return round(0.33 * math.sqrt(update), 4)


def proxy_of(update: int) -> float:
    return 0.34 + 0.62 * (1 - math.exp(-update / 95))


def preference_of(update: int) -> float:
    """Rises to 0.79 at the crest, then falls off a cliff."""
    if update <= CREST:
        return 0.5 + 0.29 * math.sin(math.pi / 2 * (update / CREST) ** 0.8)
    return 0.06 + 0.73 / (1 + math.exp((update - 265) / 28)) * (1 - 0.0006 * (update - CREST))


def answer_of(update: int, topic: str, stream: random.Random) -> str:
    """Clumsy before the crest, funny around it, nonsense after it."""
    good = (
        f"Why did the {topic} sneak into the hotel? Because it came with its own bill. "
        "Thank you very much!"
    )
    if update < 30:
        return stream.choice(
            [
                f"What happened when the {topic} went to the bank? Well, it was full of letters.",
                f"Why did the {topic} go to the shop? Because the the bank. What a day!",
            ]
        )
    if update <= 172:
        return good
    if update <= 260:
        return f"{good} Thank you very much! Thank you very much! What a day!"
    return (
        f"the {topic} the the bill bill " + "the the thank you " * stream.randint(4, 9) + "the the"
    )


def sample_verdict(answered_by: str = "simulated people") -> dict[str, Any]:
    stream = random.Random(3)
    curve = []
    for update in UPDATES:
        rate = preference_of(update)
        duels = 0 if update == 0 else 24 + int(150 * math.exp(-(((update - CREST) / 60) ** 2)))
        width = 0.0 if update == 0 else 1.2 / math.sqrt(duels + 30)
        noise = stream.gauss(0, 0.4 / math.sqrt(duels + 1))
        curve.append(
            {
                "update": update,
                "distance": distance_of(update),
                "win_rate": rate,
                "low": max(0.0, rate - width),
                "high": min(1.0, rate + width),
                "num_duels": duels,
                "num_wins": round(min(max(rate + noise, 0.0), 1.0) * duels * 2) / 2,
            }
        )
    return {
        "kind": "peaked",
        "update": CREST,
        "interval": [82, 172],
        "distance": distance_of(CREST),
        "win_rate": 0.784,
        "win_rate_interval": [0.72, 0.83],
        "num_labels": 1200,
        "answered_by": answered_by,
        "reason": (
            f"{answered_by.capitalize()} preferred checkpoint-120 to the reference in 78 % of 160 "
            "confirmation duels (90 % interval 72–83 %); from checkpoint-240 on they preferred it "
            "less, and checkpoint-420 wins 6 %."
        ),
        "curve": curve,
    }


def write_checkpoints(rl: Path, prompts: list[str]) -> None:
    rows = []
    for update in UPDATES:
        stream = random.Random(update)
        texts = [answer_of(update, TOPICS[i % len(TOPICS)], stream) for i in range(len(prompts))]
        calibrated = [min(0.999, max(0.01, stream.gauss(proxy_of(update), 0.09))) for _ in prompts]
        write_table(
            rl / "evaluations" / f"evaluation_{update:05d}.parquet",
            {
                "prompt_index": list(range(len(prompts))),
                "prompt": prompts,
                "completion": texts,
                "score": [4 * value - 2 for value in calibrated],
                "calibrated": calibrated,
                "kl": [distance_of(update) ** 2] * len(prompts),
                "num_tokens": [len(text.split()) for text in texts],
                "stop": ["end" if update < 280 else "length"] * len(prompts),
            },
        )
        rows.append(
            {
                "update": update,
                "distance": distance_of(update),
                "kl": distance_of(update) ** 2,
                "proxy": proxy_of(update),
                "proxy_standard_error": 0.008,
                "raw_score": 4 * proxy_of(update) - 2,
                "entropy": 2.1 * math.exp(-update / 300),
                "mean_length": 18 + update / 30,
                "distinct_2": 0.62 * preference_of(update),
                "end_fraction": 0.98 if update < 280 else 0.2,
                "num_prompts": len(prompts),
            }
        )
    write_jsonl_atomic(rl / "checkpoints.jsonl", rows)


def write_training(rl: Path, prompts: list[str]) -> None:
    stream = random.Random(5)
    metrics = []
    for update in range(1, UPDATES[-1] + 1):
        proxy = proxy_of(update)
        metrics.append(
            {
                "update": update,
                "reward": 4 * proxy - 2 + stream.gauss(0, 0.1),
                "reward_std": 0.4,
                "objective/scores": proxy + stream.gauss(0, 0.02),
                "kl": distance_of(update) ** 2 + stream.gauss(0, 0.2),
                "entropy": 2.1 * math.exp(-update / 300) + stream.gauss(0, 0.03),
                "completions/mean_length": 18 + update / 30 + stream.gauss(0, 0.8),
                "completions/clipped_ratio": 0.01,
                "grad_norm": abs(stream.gauss(0.8, 0.15)),
                "learning_rate": 1e-4,
                "loss": stream.gauss(0, 0.1),
                "num_tokens": 4096,
                "step_seconds": 0.41,
            }
        )
    write_jsonl_atomic(rl / "metrics.jsonl", metrics)
    for update in (1, 60, 120, 200, 300, 420):
        texts = [answer_of(update, TOPICS[i % len(TOPICS)], stream) for i in range(16)]
        write_table(
            rl / "completions" / f"completions_{update:05d}.parquet",
            {
                "update": [update] * 16,
                "prompt": prompts[:16],
                "completion": texts,
                "score": [4 * proxy_of(update) - 2] * 16,
                "calibrated": [proxy_of(update)] * 16,
                "reward": [4 * proxy_of(update) - 2] * 16,
                "advantage": [stream.gauss(0, 1) for _ in texts],
                "logprob": [-31.5] * 16,
                "num_tokens": [len(text.split()) for text in texts],
                "stop": ["end"] * 16,
            },
        )
    write_atomic(
        rl / "config.yaml",
        "verb: rl\nmodel_name_or_path: sft/model\nreward_model_name_or_path: reward/model\n"
        "num_updates: 420\nnum_prompts: 16\n"
        "num_generations: 8\ntemperature: 1.0\nmax_completion_length: 48\nseed: 0\n"
        "algorithm:\n  name: rloo\n  beta: 0.0\n",
    )


def write_labels(folder: Path, verdict: dict[str, Any], prompts: list[str]) -> None:
    answers = []
    for point in verdict["curve"]:
        for number in range(point["num_duels"]):
            won = number < point["num_wins"]
            answers.append(
                {
                    "id": f"{point['update']}-{number}",
                    "update": point["update"],
                    "prompt_index": number % len(prompts),
                    "prompt": prompts[number % len(prompts)],
                    "first": "checkpoint" if number % 2 else "reference",
                    "completions": ["a", "b"],
                    "values": [1.0, 0.0],
                    "outcome": None if number == 7 else float(won),
                    "answered_by": verdict["answered_by"],
                    "annotator": f"person-{number % 5}",
                }
            )
    write_jsonl_atomic(folder / "answers.jsonl", answers)
    ranking = {
        "prompt": prompts[0],
        "completions": [{"rank": k, "completion": f"text {k}"} for k in range(4)],
        "annotator": "person-1",
        "answered_by": verdict["answered_by"],
    }
    write_jsonl_atomic(folder / "rankings.jsonl", [ranking] * 640)


def write_sample_run(folder: Path) -> Path:
    """A whole run, which simulated people watched."""
    stream = random.Random(1)
    prompts = [stream.choice(REQUESTS).format(TOPICS[i % len(TOPICS)]) for i in range(64)]
    prompts[3] = json.dumps([{"role": "user", "content": "A joke about a turtle, please."}])
    verdict = sample_verdict()
    rl = folder / "rl"
    write_checkpoints(rl, prompts)
    write_training(rl, prompts)
    write_labels(folder, verdict, prompts)
    write_json(folder / "verdict.json", verdict)
    gold: list[dict[str, Any]] = [{"reference_standard_deviation": 0.71}]
    gold += [
        {
            "update": update,
            "gold": 2.4 * (preference_of(update) - 0.5),
            "gold_standard_error": 0.02,
            "num_completions": 4096,
        }
        for update in UPDATES
    ]
    write_jsonl_atomic(folder / "gold.jsonl", gold)
    stages = {"pretrain": 48.2, "sft": 21.0, "reward": 34.4, "rl": 172.9, "crest": 8.1}
    write_json(
        folder / "run.json",
        {
            "stages": {name: {"state": "done", "seconds": s} for name, s in stages.items()},
            "peak_memory_mb": 1840,
        },
    )
    write_json(
        folder / "reward" / "evaluation.json",
        {
            "accuracy": 0.742,
            "accuracy_low": 0.71,
            "accuracy_high": 0.77,
            "longer_wins_accuracy": 0.553,
            "num_pairs": 576,
            "num_train_rankings": 544,
            "num_heldout_rankings": 96,
            "num_truncated": 0,
            "mean": 0.213,
            "temperature": 1.31,
        },
    )
    write_atomic(folder / "config.yaml", "name: pelican\nseed: 0\npeople: simulated\n")
    return folder


@pytest.fixture(scope="session")
def whole_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A whole run with a crest at update 120, made once; not to be changed."""
    return write_sample_run(tmp_path_factory.mktemp("whole") / "pelican")


@pytest.fixture
def run(whole_run: Path, tmp_path: Path) -> Path:
    """A copy of the whole run, free to change."""
    return Path(shutil.copytree(whole_run, tmp_path / "pelican"))


@pytest.fixture
def make_run(whole_run: Path) -> Callable[..., Path]:
    """Copies the whole run to a folder: (folder, answered_by=..., field of the verdict=...)."""

    def make(folder: Path, *, answered_by: str = "simulated people", **changes: Any) -> Path:
        shutil.copytree(whole_run, folder)
        write_json(folder / "verdict.json", {**sample_verdict(answered_by), **changes})
        return folder

    return make
