"""The converting verb: every format to every other, what is told, and what is left alone."""

import json
from itertools import product
from pathlib import Path
from typing import Any, get_args

import pyarrow.parquet
import pytest

from crestline.cli.main import main
from crestline.data.rankings import read_all_rankings, read_rankings
from crestline.data.writers import Format
from crestline.pipeline.configs import ConvertConfig
from crestline.pipeline.convert import convert
from crestline.types import BadInput

SHARED = Path(__file__).parents[2] / "../shared/data"
USER = {"role": "user", "content": "Hi"}
FORMATS: tuple[Format, ...] = get_args(Format)


def answers(*texts: str) -> list[list[dict[str, str]]]:
    return [[{"role": "assistant", "content": text}] for text in texts]


def write(path: Path, *rows: Any) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def pairs(folder: Path) -> str:
    good, bad = answers("Hello.", "Go.")
    row = {"prompt": [USER], "chosen": good, "rejected": bad, "source": "s", "annotator": "ann"}
    return write(folder / "pairs.jsonl", row, {**row, "chosen": answers("Good day.")[0]})


def said(source: str) -> list[tuple[Any, ...]]:
    return [
        (r.prompt, r.completions, r.ranks, r.annotator, r.source) for r in read_rankings(source)
    ]


def ending(form: Format) -> str:
    return {"csv": ".csv", "argilla": ".json", "label-studio": ".json"}.get(form, ".jsonl")


@pytest.mark.parametrize(("first", "second"), list(product(FORMATS, FORMATS)))
def test_strict_pairs_of_a_chat_go_through_any_two_formats(
    tmp_path: Path, first: Format, second: Format
) -> None:
    source = pairs(tmp_path)
    for number, form in enumerate((first, second)):
        target = str(tmp_path / f"{number}{ending(form)}")
        done = convert(ConvertConfig(dataset_name=source, output_file=target, format=form))
        assert (done.num_written, str(done.lost)) == (2, "nothing")
        source = target
    assert said(source) == said(pairs(tmp_path))


@pytest.mark.parametrize("form", [form for form in FORMATS if form != "csv"])
@pytest.mark.parametrize("kind", [".jsonl", ".json", ".parquet"])
def test_every_kind_of_file(tmp_path: Path, form: Format, kind: str) -> None:
    target = tmp_path / f"out{kind}"
    convert(ConvertConfig(dataset_name=pairs(tmp_path), output_file=str(target), format=form))
    assert said(str(target)) == said(pairs(tmp_path))
    if kind == ".parquet":
        assert pyarrow.parquet.read_table(target).num_rows == 2


def test_buckets_in_parquet(tmp_path: Path) -> None:
    """A table has every bucket in every row; null ones are not there."""
    entries = [{"rank": rank, "completion": str(rank)} for rank in (0, 1, 1, 2)]
    rows = [{"prompt": "p", "completions": entries[:n]} for n in (3, 4)]
    source = write(tmp_path / "in.jsonl", *rows)
    target = str(tmp_path / "out.parquet")
    convert(ConvertConfig(dataset_name=source, output_file=target, format="label-studio"))
    assert [row[2] for row in said(target)] == [(0, 1, 1), (0, 1, 1, 2)]


def test_the_account(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    entries = [{"rank": rank, "completion": text} for rank, text in ((0, "a"), (1, "b"), (1, "c"))]
    source = write(
        tmp_path / "in.jsonl",
        {"prompt": "p", "completions": entries, "model": "m", "annotator": "ann"},
        {"prompt": "p", "completions": entries, "annotator": "ann"},
        {"chosen": [USER], "rejected": [USER]},
        {"chosen": "a", "rejected": "b", "tie": True},
    )
    target = tmp_path / "new" / "out.jsonl"
    words = ["convert", "--dataset_name", source, "--output_file", str(target), "--format", "trl"]
    assert main(words) == 0
    assert capsys.readouterr().out.splitlines() == [
        "read 4 rows: 3 rankings",
        "skipped: 1 whose dialogues part too early; kept: 1 that repeat an earlier one",
        f"wrote 4 rows to {target} as trl",
        "lost: 2 rankings of more than two written as 4 pairs, 3 ties not written, "
        "1 rankings not written at all",
        "not read: model (1 rows)",
    ]
    assert main([*words, "--keep_all", "false", "--overwrite"]) == 0
    assert capsys.readouterr().out.splitlines()[:3] == [
        "read 4 rows: 1 rankings",
        "skipped: 1 all tied, 1 whose dialogues part too early, 1 said before by the same annotator",
        f"wrote 2 rows to {target} as trl",
    ]


def test_an_odd_file(tmp_path: Path) -> None:
    row = {"q": "p", "win": "a", "lose": "b", "set": "s"}
    done = convert(
        ConvertConfig(
            dataset_name=write(tmp_path / "odd.jsonl", row),
            output_file=str(tmp_path / "out.jsonl"),
            prompt_key="q",
            chosen_key="win",
            rejected_key="lose",
            source_key="set",
        )
    )
    assert said(str(done.path)) == [("p", ("a", "b"), (0, 1), "", "s")]
    assert not done.reading.unused


def test_buckets_of_label_studio(tmp_path: Path) -> None:
    items = [{"id": name, "body": name} for name in "abc"]
    value = {"ranker": {"_": [], "bad": ["a"], "fair": ["b", "c"]}}
    result = [{"from_name": "rank", "to_name": "list", "type": "ranker", "value": value}]
    task = {"data": {"items": items}, "annotations": [{"result": result}]}
    settings = {
        "dataset_name": write(tmp_path / "tasks.jsonl", task),
        "output_file": str(tmp_path / "out.jsonl"),
    }
    with pytest.raises(BadInput, match="which bucket is better: bad, fair"):
        convert(ConvertConfig(**settings))
    done = convert(ConvertConfig(**settings, buckets="good, fair, bad"))
    assert read_rankings(str(done.path))[0].ranks == (1, 0, 0)


def test_other_files_are_left_alone(tmp_path: Path) -> None:
    source = pairs(tmp_path)
    before = Path(source).read_bytes()
    config = ConvertConfig(dataset_name=source, output_file=source, format="hh")
    with pytest.raises(BadInput, match="exists; choose another, or --overwrite"):
        convert(config)
    assert Path(source).read_bytes() == before
    assert {path.name for path in tmp_path.iterdir()} == {"pairs.jsonl"}
    rankings = said(source)
    convert(ConvertConfig(dataset_name=source, output_file=source, format="hh", overwrite=True))
    assert said(source) == rankings


def refuse(tmp_path: Path, told: str, source: str, name: str, form: Format) -> None:
    config = ConvertConfig(dataset_name=source, output_file=str(tmp_path / name), format=form)
    with pytest.raises(BadInput, match=told):
        convert(config)
    assert not (tmp_path / name).exists()


def test_what_cannot_be_written(tmp_path: Path) -> None:
    tied = write(tmp_path / "tied.jsonl", {"chosen": "a", "rejected": "b", "tie": True})
    refuse(tmp_path, r"nothing to write as trl \(1 ties not written", tied, "out.jsonl", "trl")
    good, bad = answers("Hello.", "Go.")
    rows = [{"prompt": "p", "chosen": "a", "rejected": "b"}]
    rows += [{"prompt": [USER], "chosen": good, "rejected": bad}]
    mixed = write(tmp_path / "mixed.jsonl", *rows)
    refuse(tmp_path, "texts beside chats; write .jsonl", mixed, "out.parquet", "trl")
    (tmp_path / "latin1.jsonl").write_bytes('{"chosen": "caf\u00e9"}'.encode("latin-1"))
    refuse(tmp_path, "latin1.jsonl:1: not UTF-8", str(tmp_path / "latin1.jsonl"), "out.json", "hh")
    assert not list(tmp_path.glob(".tmp-*"))


@pytest.mark.parametrize("name", ["helpful-base", "helpful-online", "helpful-rejection-sampled"])
def test_real_transcripts_come_back(tmp_path: Path, name: str) -> None:
    """hh-rlhf to Argilla, to Label Studio, and back to hh-rlhf."""
    source = SHARED / "hh-rlhf" / name / "test.jsonl.gz"
    if not source.exists():
        pytest.skip(f"no {source}")
    begun = read_all_rankings(str(source), keep_all=True)
    here = str(source)
    for form in ("argilla", "label-studio", "hh"):
        target = str(tmp_path / f"{form}.json")
        done = convert(ConvertConfig(dataset_name=here, output_file=target, format=form))
        assert (done.num_written, str(done.lost)) == (len(begun.rankings), "nothing")
        here = target
    assert said(here) == said(str(source))
