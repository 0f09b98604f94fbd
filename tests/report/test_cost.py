"""What a run cost, by what it wrote down."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from crestline.report import write_report
from crestline.report.reading import read_run
from crestline.report.sections import completions_trained_on, cost
from crestline.runs.files import read_json, read_jsonl, write_json, write_jsonl_atomic


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


def test_the_page_is_no_stage_of_its_own(run: Path) -> None:
    record = read_json(run / "run.json")
    for stage in record["stages"].values():
        stage["peak_memory_mb"] = 800.0
    record["stages"]["report"] = {"state": "new", "seconds": 0.0}
    write_json(run / "run.json", record)
    found = cost(read_run(run))
    assert [name for name, *_ in found["stages"]] == ["pretrain", "sft", "reward", "rl", "crest"]
    assert found["total"] == "4 min 45 s"
    page = write_report(run).read_text(encoding="utf-8")
    assert "<td>report</td>" not in page
    assert "peak memory so far, MB" in page  # of the process: it only rises from stage to stage
