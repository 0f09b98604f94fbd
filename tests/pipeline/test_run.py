"""A whole run: on the embedded world, on the user's own material, resumed, and asked by others."""

from __future__ import annotations

import json
import shutil
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from crestline.pipeline.chat import open_chat
from crestline.pipeline.configs import ChatConfig, CrestConfig, Material, RankConfig, RunConfig
from crestline.pipeline.crest import crest
from crestline.pipeline.presets import SMOKE
from crestline.pipeline.rank import rank
from crestline.pipeline.run import as_begun, resume, run
from crestline.pipeline.sample import sample
from crestline.pipeline.screen import Silent
from crestline.runs.settings import plain
from crestline.types import BadInput, Paused
from crestline.worlds.pelican import PelicanWorld


@pytest.fixture(scope="module")
def smoke(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "smoke"
    run(replace(SMOKE, output_dir=str(folder), num_threads=1), screen=Silent())
    return folder


def lines(path: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def write(path: Path, rows: list[dict[str, object]]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def test_the_embedded_world_ends_with_a_model_a_verdict_and_a_report(smoke: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

    verdict = json.loads((smoke / "verdict.json").read_text())
    assert verdict["answered_by"] == "simulated people"
    asked = len(lines(smoke / "answers.jsonl"))
    assert 30 <= asked == verdict["num_labels"] <= SMOKE.watch.num_labels
    assert len(lines(smoke / "rankings.jsonl")) == SMOKE.world.num_prompts
    assert (smoke / "report.html").stat().st_size > 10_000
    golds = lines(smoke / "gold.jsonl")
    checkpoints = lines(smoke / "rl" / "checkpoints.jsonl")
    assert [row["update"] for row in golds[1:]] == [row["update"] for row in checkpoints]
    if verdict["update"] is not None:
        AutoModelForCausalLM.from_pretrained(smoke / "model")
        AutoTokenizer.from_pretrained(smoke / "model")
        shipped = (smoke / "model" / "model.safetensors").read_bytes()
        kept = smoke / "rl" / f"checkpoint-{verdict['update']}" / "model.safetensors"
        assert shipped == kept.read_bytes()
    scorer = AutoModelForSequenceClassification.from_pretrained(smoke / "reward" / "model")
    assert scorer.config.num_labels == 1


def test_duels_are_blinded_and_shown_in_both_orders(smoke: Path) -> None:
    rows = lines(smoke / "answers.jsonl")
    firsts = [row["first"] for row in rows]
    assert 0.25 < firsts.count("checkpoint") / len(firsts) < 0.75
    assert len({(row["update"], row["prompt_index"]) for row in rows}) == len(rows)
    for row in rows:
        better = row["values"][0] > row["values"][1]  # type: ignore[index]
        assert row["outcome"] == float(better == (row["first"] == "checkpoint"))


def test_a_finished_run_returns_at_once_and_other_settings_are_refused(smoke: Path) -> None:
    before = (smoke / "run.json").read_bytes()
    config = replace(SMOKE, output_dir=str(smoke), num_threads=1)
    run(config, screen=Silent())
    assert (smoke / "run.json").read_bytes() == before
    with pytest.raises(BadInput, match="seed"):
        run(replace(config, seed=1), screen=Silent())


def test_the_folder_may_be_spelled_in_any_way(smoke: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = (smoke / "config.yaml").read_bytes()
    monkeypatch.chdir(smoke.parent)
    for spelled in ("smoke", "./smoke", "smoke/", f"{smoke}/"):
        resume(spelled, screen=Silent())
        run(replace(SMOKE, output_dir=spelled, num_threads=1), screen=Silent())
    assert (smoke / "config.yaml").read_bytes() == before
    smoke.rename("moved")
    try:
        resume("moved", screen=Silent())
    finally:
        Path("moved").rename(smoke)
        (smoke / "config.yaml").write_bytes(before)


def test_a_run_begins_without_what_a_path_does_not_need() -> None:
    assert as_begun("nowhere//to/./be/found/") == "nowhere/to/be/found"


def test_a_run_of_an_older_version_goes_on(smoke: Path) -> None:
    config = replace(SMOKE, output_dir=str(smoke), num_threads=1)
    known = yaml.safe_load((smoke / "config.yaml").read_text())
    older = yaml.safe_load((smoke / "config.yaml").read_text())
    del older["material"], older["sft"]["lora"], older["rl"]["sampler"]
    assert known["material"] == plain(Material()) and known["rl"]["sampler"] == "auto"
    for again in (
        lambda: run(config, screen=Silent()),
        lambda: resume(str(smoke), screen=Silent()),
    ):
        (smoke / "config.yaml").write_text(yaml.safe_dump(older))
        again()
        assert yaml.safe_load((smoke / "config.yaml").read_text()) == known
    del older["rl"]["num_updates"]
    (smoke / "config.yaml").write_text(yaml.safe_dump(older))
    try:
        with pytest.raises(BadInput, match=r"rl\.num_updates is \d+ by default there and \d+ here"):
            run(config, screen=Silent())
    finally:
        (smoke / "config.yaml").write_text(yaml.safe_dump(known, sort_keys=False))


def test_what_a_stopped_stage_cost_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def stages() -> dict[str, Any]:
        return json.loads((tmp_path / "run" / "run.json").read_text())["stages"]  # type: ignore[no-any-return]

    def stop(*_: object, **__: object) -> None:
        assert stages()["pretrain"]["state"] == "begun"
        time.sleep(0.2)
        raise KeyboardInterrupt

    monkeypatch.setattr("crestline.pipeline.run.pretrain", stop)
    config = replace(SMOKE, output_dir=str(tmp_path / "run"), num_threads=1)
    for attempts in (1, 2):
        with pytest.raises(KeyboardInterrupt):
            run(config, screen=Silent())
        stage = stages()["pretrain"]
        assert stage["attempts"] == attempts and stage["seconds"] >= 0.2 * attempts
        assert stage["state"] == "begun" and stage["peak_memory_mb"] > 0


def test_a_record_that_cannot_be_written_hides_no_reason(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = replace(SMOKE, output_dir=str(tmp_path / "run"), num_threads=1)

    def stop(*_: object, **__: object) -> None:
        (tmp_path / "run" / "run.json").unlink()
        (tmp_path / "run" / "run.json").mkdir()
        raise Paused("ill")

    monkeypatch.setattr("crestline.pipeline.run.pretrain", stop)
    with pytest.raises(Paused, match="ill"):
        run(config, screen=Silent())


def test_bad_input_to_the_first_stages_leaves_no_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise BadInput("too little text")

    monkeypatch.setattr("crestline.pipeline.run.pretrain", refuse)
    with pytest.raises(BadInput, match="too little text"):
        run(replace(SMOKE, output_dir=str(tmp_path / "run"), num_threads=1), screen=Silent())
    assert not (tmp_path / "run").exists()


def test_answers_of_others_are_not_taken_over(smoke: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(smoke, copy)
    people = tmp_path / "people.py"
    people.write_text("def rank(prompt, completions, **columns):\n    return [0.0, 1.0]\n")
    with pytest.raises(BadInput, match="simulated people"):
        crest(CrestConfig(run_dir=str(copy), people=f"{people}:rank", watch=SMOKE.watch))
    verdict = crest(CrestConfig(run_dir=str(copy), watch=SMOKE.watch))
    assert verdict.answered_by == "simulated people"


def test_nobody_to_ask_measures_nothing_and_ships_nothing_unless_told_to(
    smoke: Path, tmp_path: Path
) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(smoke / "rl", copy)
    verdict = crest(CrestConfig(run_dir=str(copy), watch=SMOKE.watch))
    assert (verdict.kind, verdict.update) == ("not_measured", None)
    with pytest.raises(BadInput, match="shipped no model"):
        open_chat(ChatConfig(run_dir=str(copy)))
    (copy / ".tmp-model-0").mkdir()  # as kill -9 may leave them
    (copy / ".tmp-verdict.json-0").write_text('{"kind": ')
    verdict = crest(CrestConfig(run_dir=str(copy), watch=SMOKE.watch, ship_unmeasured=True))
    assert not list(copy.glob(".tmp-*"))
    assert (verdict.kind, verdict.update) == ("not_measured", SMOKE.rl.num_updates)
    assert "unmeasured" in (copy / "model" / "README.md").read_text()


def test_the_stand_in_must_not_be_the_reward_model_of_rl(smoke: Path) -> None:
    with pytest.raises(BadInput, match="is the reward model that RL maximised"):
        crest(CrestConfig(run_dir=str(smoke), stand_in=str(smoke / "reward" / "model")))


def test_rankings_of_other_samples_are_not_mixed(smoke: Path, tmp_path: Path) -> None:
    rows = lines(smoke / "samples.jsonl")
    other = write(tmp_path / "other.jsonl", rows[::-1])
    target = tmp_path / "rankings.jsonl"
    shutil.copy(smoke / "rankings.jsonl", target)
    before = target.read_bytes()
    with pytest.raises(BadInput, match="other samples"):
        rank(RankConfig(dataset_name=other, people="pelican", output_file=str(target)))
    assert target.read_bytes() == before


@pytest.mark.parametrize("cut", [1, 40, 4000])
def test_rankings_torn_by_a_kill_are_asked_again(smoke: Path, tmp_path: Path, cut: int) -> None:
    whole = (smoke / "rankings.jsonl").read_bytes()
    target = tmp_path / "rankings.jsonl"
    target.write_bytes(whole[:-cut])
    flips = SMOKE.world.flip_probability
    settings = RankConfig(people="pelican", output_file=str(target), flip_probability=flips)
    rank(replace(settings, dataset_name=str(smoke / "samples.jsonl")))
    assert target.read_bytes() == whole


@pytest.mark.parametrize("cut", [1, 40, 4000])
def test_samples_torn_by_a_kill_are_sampled_again(smoke: Path, tmp_path: Path, cut: int) -> None:
    whole = (smoke / "samples.jsonl").read_bytes()
    target = tmp_path / "samples.jsonl"
    target.write_bytes(whole[:-cut])
    names = {
        "model_name_or_path": smoke / "sft/model",
        "dataset_name": smoke / "data/prompts.jsonl",
    }
    sample(replace(SMOKE.sample, **{k: str(v) for k, v in names.items()}, output_file=str(target)))
    assert target.read_bytes() == whole


def own_material(tmp_path: Path, **given: str) -> RunConfig:
    world = PelicanWorld()
    demonstrations = [
        {"prompt": f"Joke {n}: ", "completion": row.completion}
        for n, row in enumerate(world.demonstrations(80, 0))
    ]
    files = {
        "text": write(tmp_path / "text.jsonl", [{"text": t} for t in world.texts(300, 0)]),
        "demonstrations": write(tmp_path / "demonstrations.jsonl", demonstrations),
    }
    world_settings = replace(SMOKE.world, num_gold_completions=0)
    return replace(
        SMOKE,
        output_dir=str(tmp_path / "run"),
        num_threads=1,
        material=Material(**files, **given),
        world=world_settings,
    )


def test_own_text_demonstrations_and_people(tmp_path: Path) -> None:
    people = tmp_path / "people.py"
    people.write_text(
        "def rank(prompt, completions, **columns):\n    return [float(len(text)) for text in completions]\n"
    )
    verdict = run(own_material(tmp_path, people=f"{people}:rank"), screen=Silent())
    assert verdict.answered_by == "function"
    assert not (tmp_path / "run" / "gold.jsonl").exists()
    train = {row["prompt"] for row in lines(tmp_path / "run" / "data" / "prompts.jsonl")}
    held = {row["prompt"] for row in lines(tmp_path / "run" / "data" / "heldout_prompts.jsonl")}
    assert held and not train & held


def test_own_rankings_and_nobody_to_ask_are_judged_by_a_stand_in(tmp_path: Path) -> None:
    texts = [f"word{n} word{n % 7} and more of it {n}" for n in range(60)]
    pairs = [
        {"prompt": f"Say {n % 40}: ", "chosen": texts[n % 60] + " yes", "rejected": texts[-n % 60]}
        for n in range(200)
    ]
    rankings = write(tmp_path / "rankings.jsonl", pairs)
    verdict = run(own_material(tmp_path, rankings=rankings), screen=Silent())
    assert verdict.answered_by == "stand-in"
    assert "stand-in" in (tmp_path / "run" / "report.html").read_text()
    sides = [
        {row["prompt"] for row in lines(tmp_path / "run" / "data" / f"rankings_{name}.jsonl")}
        for name in ("reward", "stand_in", "test")
    ]
    assert all(sides) and not (sides[0] & sides[1] or sides[0] & sides[2] or sides[1] & sides[2])


def test_nobody_knows_what_is_good_about_own_prompts(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="nobody knows what is good here"):
        run(own_material(tmp_path), screen=Silent())
    assert not (tmp_path / "run").exists()
