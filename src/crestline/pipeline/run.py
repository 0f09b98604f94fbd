"""The whole story in order: pretrain, sft, sample, rank, reward, rl, crest, gold, report.

Every stage is the verb that a user can call alone, on files in the run folder; a stage that is done is not done
again, and one that was killed goes on where it was.
"""

from __future__ import annotations

import resource
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from crestline.data.formats import (
    demonstrations_as_rows,
    prompts_as_rows,
    read_demonstrations,
    read_prompts,
    texts_as_rows,
)
from crestline.data.rankings import rankings_as_rows, read_rankings
from crestline.data.splits import canonical_prompt, split_by_prompt, split_by_prompt_or_text
from crestline.pipeline.configs import CrestConfig, RankConfig, RunConfig
from crestline.pipeline.crest import Checkpoints, crest
from crestline.pipeline.gold import write_gold
from crestline.pipeline.plan import STAND_IN_FRACTIONS, Sources, begun, plan, rl_settings
from crestline.pipeline.rank import write_rankings
from crestline.pipeline.sample import write_samples
from crestline.pipeline.screen import Screen
from crestline.pipeline.who import people_of, world_of
from crestline.report.page import write_report
from crestline.runs.files import read_json, write_json, write_jsonl_atomic
from crestline.runs.folder import RunFolder
from crestline.runs.settings import build, defaults_of, plain
from crestline.training.allocator import release_memory
from crestline.training.configs import required
from crestline.training.health import may_change
from crestline.training.pretrain import pretrain
from crestline.training.reward import reward
from crestline.training.reward_configs import RewardConfig, Splits
from crestline.training.rl import rl
from crestline.training.seeds import stream
from crestline.training.sft import sft
from crestline.types import BadInput, Progress, Prompt, Verdict

MIN_PROMPTS = 20
RECORD = "run.json"
"""The stages of a run by name: state, attempts, seconds of all attempts, and peak_memory_mb of the process."""


def run(config: RunConfig, *, screen: Screen) -> Verdict:
    """Do every stage that is not done yet and return the verdict."""
    required(config, "output_dir")
    config = replace(config, output_dir=as_begun(config.output_dir))
    lines = plan(config)
    rl_settings(config)
    material = config.material
    if material.people:
        people_of(material.people, seed=config.seed, flip_probability=0.0)
    if config.num_threads:
        torch.set_num_threads(config.num_threads)
    folder = RunFolder(Path(config.output_dir))
    trained = ("pretrain", "sft", "reward", "rl")
    ignore = [key for name in trained for key in may_change(folder.path / name, f"{name}.")]
    ignore.append("output_dir")
    resumed = folder.open_or_create(
        plain(config), what="run", ignore=ignore, defaults=defaults_of(config)
    )
    try:
        screen.say(f"{'resuming' if resumed else 'starting'} {config.output_dir}")
        for name, text in lines:
            screen.say(f"  {name:9} {text}")
        stages = _Stages(config, folder, screen, dict(lines))
        return stages.all()
    except BadInput:
        folder.abandon("data", RECORD)
        raise
    finally:
        folder.close()


def as_begun(output_dir: str) -> str:
    """The run folder as the run in it spells it, so that paths inside stay the same; of a new run, normalised."""
    folder = RunFolder(output_dir)
    if folder.config_path.is_file():
        spelled = str(folder.read_config().get("output_dir", ""))
        if spelled and Path(spelled).resolve() == folder.path.resolve():
            return spelled
    return str(folder.path)


def resume(run_dir: str, *, screen: Screen) -> Verdict:
    """Go on with a run that was stopped or killed, by the settings in its folder. Raises BadInput if it holds none."""
    return run(replace(begun(run_dir), output_dir=run_dir), screen=screen)


class _Stages:
    """The stages of one run, on files in its folder."""

    def __init__(
        self, config: RunConfig, folder: RunFolder, screen: Screen, told: dict[str, str]
    ) -> None:
        self.config, self.path, self.screen, self.told = config, folder.path, screen, told
        self.sources = Sources(config)
        record = self.path / RECORD
        self.record: dict[str, Any] = read_json(record) if record.exists() else {"stages": {}}

    def all(self) -> Verdict:
        self.do("data", self.data)
        material = self.config.material
        if self.sources.pretrains:
            self.do("pretrain", self.pretrain)
        if self.sources.fine_tunes:
            self.do("sft", self.sft)
        if not material.rankings:
            self.do("sample", self.sample)
            self.do("rank", self.rank)
        self.do("reward", self.reward)
        if self.sources.stand_in:
            self.do("stand_in", self.stand_in)
        self.do("rl", self.rl)
        self.do("crest", self.crest)
        if self.sources.world_people:
            self.do("gold", self.gold)
        self.do("report", self.report)
        return build(Verdict, read_json(self.path / "verdict.json"), where="verdict.json")

    def do(self, name: str, work: Callable[[Progress], None]) -> None:
        """Do a stage unless it is done, and write down what it cost, however it ends."""
        stage = self.record["stages"].setdefault(name, {"state": "new", "seconds": 0.0})
        if stage["state"] == "done":
            return
        # before the work: what kill -9 ends can't be timed, but it can be counted
        stage |= {"state": "begun", "attempts": stage.get("attempts", 0) + 1}
        self.write_record()
        began = time.perf_counter()
        try:
            work(self.screen.stage(name, self.told.get(name, "")))
        except BaseException:
            with suppress(BadInput):  # why it stopped matters more
                self.write_cost(stage, began)
            raise
        release_memory()
        stage["state"] = "done"
        self.write_cost(stage, began)

    def write_cost(self, stage: dict[str, Any], began: float) -> None:
        """Add what an attempt cost that began then, by perf_counter."""
        stage["seconds"] = round(stage["seconds"] + time.perf_counter() - began, 2)
        peak = round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)
        stage["peak_memory_mb"] = max(stage.get("peak_memory_mb", 0), peak)
        self.write_record()

    def write_record(self) -> None:
        write_json(self.path / RECORD, self.record)

    # ---- input ---------------------------------------------------------------

    def file(self, name: str) -> str:
        return str(self.path / "data" / name)

    def data(self, progress: Progress) -> None:
        """Write what comes from the world, and what the user's files imply, as files of the run."""
        config, material = self.config, self.config.material
        world, seed = world_of(config.world.name), stream(config.seed, "world")
        if self.sources.pretrains and not material.text:
            texts = world.texts(config.world.num_texts, seed)
            write_jsonl_atomic(self.file("texts.jsonl"), texts_as_rows(texts))
        if self.sources.fine_tunes and not material.demonstrations:
            rows = world.demonstrations(config.world.num_demonstrations, seed)
            write_jsonl_atomic(self.file("demonstrations.jsonl"), demonstrations_as_rows(rows))
        if self.sources.world_prompts:
            for split, name, count in (
                ("train", "prompts.jsonl", config.world.num_prompts),
                ("heldout", "heldout_prompts.jsonl", config.world.num_heldout_prompts),
            ):
                prompts = [Prompt(text=text) for text in world.prompts(split, count, seed)]
                write_jsonl_atomic(self.file(name), prompts_as_rows(prompts))
        else:
            self.split_prompts()
        if self.sources.stand_in:
            self.split_rankings()

    def split_prompts(self) -> None:
        """The user's prompts: a fifth, at most num_eval_prompts, is held out for checkpoints."""
        material = self.config.material
        if material.prompts:
            prompts = read_prompts(material.prompts)
        else:
            rows = read_demonstrations(material.demonstrations)
            prompts = [Prompt(text=row.prompt) for row in rows]
        different = len({canonical_prompt(row.text) for row in prompts})
        if different < MIN_PROMPTS:
            raise BadInput(
                f"{material.prompts or material.demonstrations}: {different} different prompts are too few: a fifth "
                f"is held out for checkpoints; give at least {MIN_PROMPTS}"
            )
        # Not the seed of the rankings' split: the same hash would leave it nothing to hold out.
        seed = stream(self.config.seed, "heldout prompts")
        sides = split_by_prompt(prompts, lambda row: row.text, {"train": 0.8, "heldout": 0.2}, seed)
        if len(sides["heldout"]) < 2:
            raise BadInput(
                f"{different} prompts are too few: the draw held out {len(sides['heldout'])} of them; give more"
            )
        held = sides["heldout"][: self.config.rl.checkpoints.num_eval_prompts]
        write_jsonl_atomic(self.file("prompts.jsonl"), prompts_as_rows(sides["train"]))
        write_jsonl_atomic(self.file("heldout_prompts.jsonl"), prompts_as_rows(held))

    def split_rankings(self) -> None:
        """The user's rankings in three."""
        source = self.config.material.rankings
        rankings = read_rankings(source)
        sides, _ = split_by_prompt_or_text(rankings, STAND_IN_FRACTIONS, self.config.seed)
        for name, part in sides.items():
            if not part:
                raise BadInput(
                    f"{source}: {len(rankings)} rankings are too few to split among reward model, stand-in and test; "
                    "give more, or --people"
                )
            write_jsonl_atomic(self.file(f"rankings_{name}.jsonl"), rankings_as_rows(part))

    # ---- stages --------------------------------------------------------------

    @property
    def base_model(self) -> str:
        return self.config.material.model_name_or_path or str(self.path / "pretrain" / "model")

    @property
    def policy(self) -> str:
        return str(self.path / "sft" / "model") if self.sources.fine_tunes else self.base_model

    def pretrain(self, progress: Progress) -> None:
        settings = replace(
            self.config.pretrain,
            text=self.config.material.text or self.file("texts.jsonl"),
            output_dir=str(self.path / "pretrain"),
            seed=self.config.seed,
        )
        pretrain(settings, device=self.config.device, progress=progress)

    def sft(self, progress: Progress) -> None:
        settings = replace(
            self.config.sft,
            model_name_or_path=self.base_model,
            dataset_name=self.config.material.demonstrations or self.file("demonstrations.jsonl"),
            output_dir=str(self.path / "sft"),
            seed=self.config.seed,
        )
        sft(settings, device=self.config.device, progress=progress)

    def sample(self, progress: Progress) -> None:
        settings = replace(
            self.config.sample,
            model_name_or_path=self.policy,
            dataset_name=self.file("prompts.jsonl"),
            output_file=str(self.path / "samples.jsonl"),
            seed=self.config.seed,
        )
        write_samples(settings, device=self.config.device, progress=progress)

    def rank(self, progress: Progress) -> None:
        write_rankings(
            RankConfig(
                dataset_name=str(self.path / "samples.jsonl"),
                people=self.people,
                output_file=str(self.path / "rankings.jsonl"),
                flip_probability=self.config.world.flip_probability,
                seed=self.config.seed,
            ),
            progress=progress,
        )

    @property
    def people(self) -> str:
        return self.config.material.people or self.config.world.name

    def reward_settings(self, name: str, rankings: str, **changes: Any) -> RewardConfig:
        return replace(
            self.config.reward,
            model_name_or_path=self.config.reward.model_name_or_path or self.policy,
            dataset_name=rankings,
            output_dir=str(self.path / name),
            seed=self.config.seed,
            **changes,
        )

    @property
    def test_split(self) -> Splits:
        """Where the rankings are split among reward model and stand-in, both are measured on the rest."""
        test = self.file("rankings_test.jsonl")
        return replace(self.config.reward.splits, eval_dataset_name=test)

    def reward(self, progress: Progress) -> None:
        if self.sources.stand_in:
            settings = self.reward_settings(
                "reward",
                self.file("rankings_reward.jsonl"),
                splits=self.test_split,
            )
        else:
            given = self.config.material.rankings or str(self.path / "rankings.jsonl")
            settings = self.reward_settings("reward", given)
        reward(settings, device=self.config.device, progress=progress)

    def stand_in(self, progress: Progress) -> None:
        settings = self.reward_settings(
            "stand_in",
            self.file("rankings_stand_in.jsonl"),
            splits=self.test_split,
            half_depth=True,
        )
        settings = replace(settings, seed=self.config.seed + 1)
        reward(settings, device=self.config.device, progress=progress)

    def rl(self, progress: Progress) -> None:
        settings = replace(
            rl_settings(self.config),
            model_name_or_path=self.policy,
            reward_model_name_or_path=str(self.path / "reward" / "model"),
            dataset_name=self.file("prompts.jsonl"),
            eval_dataset_name=self.file("heldout_prompts.jsonl"),
            output_dir=str(self.path / "rl"),
        )
        rl(settings, device=self.config.device, progress=progress)

    def crest(self, progress: Progress) -> None:
        stand_in = self.sources.stand_in
        crest(
            CrestConfig(
                run_dir=str(self.path),
                people="" if stand_in else self.people,
                stand_in=str(self.path / "stand_in" / "model") if stand_in else "",
                flip_probability=self.config.world.flip_probability,
                seed=self.config.seed,
                watch=self.config.watch,
            ),
            device=self.config.device,
            progress=progress,
            is_held=True,
        )

    def gold(self, progress: Progress) -> None:
        if self.config.world.num_gold_completions == 0:
            return
        write_gold(
            self.path,
            Checkpoints(self.path / "rl"),
            world_of(self.config.world.name).gold,
            num_completions=self.config.world.num_gold_completions,
            seed=self.config.seed,
            device=self.config.device,
            progress=progress,
        )

    def report(self, progress: Progress) -> None:
        write_report(self.path)
