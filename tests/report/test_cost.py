"""What a run cost, by what it wrote down."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from crestline.report.reading import read_run
from crestline.report.sections import completions_trained_on
from crestline.runs.files import read_jsonl, write_jsonl_atomic


@pytest.mark.parametrize(
    ("algorithm", "updates", "completions"),
    [
        ({"name": "rloo"}, 7, 7 * 6 * 4),
        ({"name": "ppo", "num_iterations": 2, "num_mini_batches": 1}, 8, 4 * 6 * 4),
        ({"name": "grpo", "num_iterations": 2, "num_mini_batches": 3}, 13, 3 * 6 * 4),
        (None, 7, 7 * 6 * 4),
    ],
)
def test_completions_that_are_reused_count_once(
    run: Path, algorithm: dict[str, Any] | None, updates: int, completions: int
) -> None:
    settings = {"num_prompts": 6, "num_generations": 4}
    given = settings if algorithm is None else {**settings, "algorithm": algorithm}
    (run / "rl" / "config.yaml").write_text(yaml.safe_dump(given))
    metrics = read_jsonl(run / "rl" / "metrics.jsonl")[:updates]
    write_jsonl_atomic(run / "rl" / "metrics.jsonl", metrics)
    assert completions_trained_on(read_run(run)) == completions
