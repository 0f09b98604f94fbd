"""Turn human votes on jokes into the files that `crestline` reads: demonstrations, prompts, rankings.

    python bench/prepare_jokes.py ../shared/data/jokes/ukp-humour jokes/

The jokes have no prompts: the policy's prompt is the first three words of a text and the completion the rest; the
rankings compare whole texts, with an empty prompt. Texts are split 40/40/20 by text (reward model / stand-in /
test), so that no text stands on two sides; a pair whose texts fall on two sides is dropped, and counted. The policy
is fine-tuned on jokes of the first side only.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from crestline.data.rankings import rankings_as_rows, read_rankings
from crestline.data.splits import side_of, split_by_text
from crestline.runs.files import write_jsonl_atomic

FRACTIONS = {"reward": 0.4, "stand_in": 0.4, "test": 0.2}


def main(source: Path, target: Path) -> None:
    rankings = read_rankings(str(source / "pairs.jsonl"))
    sides, num_dropped = split_by_text(rankings, FRACTIONS, seed=0)
    for name, part in sides.items():
        write_jsonl_atomic(target / f"rankings_{name}.jsonl", rankings_as_rows(part))
    kinds = {}
    for line in (source / "items.jsonl").read_text(encoding="utf8").splitlines():
        item = json.loads(line)
        kinds[item["text"]] = item["kind"]
    write_jsonl_atomic(target / "kinds.jsonl", [{"text": t, "kind": k} for t, k in kinds.items()])
    jokes = [text for text, kind in kinds.items() if kind != "not a joke" and len(text.split()) > 5]
    rows: dict[str, list[dict[str, str]]] = {name: [] for name in FRACTIONS}
    for text in jokes:
        opening = " ".join(text.split()[:3])
        rest = text.split(maxsplit=3)[3]
        rows[side_of(text, FRACTIONS, seed=0)].append({"prompt": opening + " ", "completion": rest})
    write_jsonl_atomic(target / "demonstrations.jsonl", rows["reward"])
    prompts = sorted({row["prompt"] for part in rows.values() for row in part})
    write_jsonl_atomic(target / "prompts.jsonl", [{"prompt": prompt} for prompt in prompts])
    counts = {name: len(part) for name, part in sides.items()}
    print(
        f"{len(rankings)} pairs: {counts}, {num_dropped} dropped because their texts fall on two sides"
    )
    print(f"{len(rows['reward'])} demonstrations, {len(prompts)} prompts")


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    main(Path(sys.argv[1]), Path(sys.argv[2]))
