"""Where each stage of a run takes its input from, told from what the user brought. Torch-free."""

from __future__ import annotations

from dataclasses import dataclass, replace

from crestline.pipeline.configs import RunConfig
from crestline.runs.folder import RunFolder
from crestline.runs.settings import build
from crestline.training.rl_configs import RlConfig, resolved
from crestline.types import BadInput

STAND_IN_FRACTIONS = {"reward": 0.4, "stand_in": 0.4, "test": 0.2}
"""Where nobody can be asked, the rankings are split: RL's reward model, the stand-in, and a test of both."""


def rl_settings(config: RunConfig) -> RlConfig:
    """The settings of RL in a run; in the world the reward is raw unless told otherwise: the cliff is its story.

    Raises BadInput where they do not fit together.
    """
    settings = replace(config.rl, reward_model_name_or_path="reward/model", seed=config.seed)
    if Sources(config).world_people and settings.shaping.reward_shaping == "auto":
        shaping = replace(settings.shaping, reward_shaping="raw")
        settings = replace(settings, shaping=shaping)
    resolved(settings)
    return settings


def begun(run_dir: str) -> RunConfig:
    """The settings that a run folder was begun with. Raises BadInput if it holds no run."""
    folder = RunFolder(run_dir)
    if not run_dir or not folder.config_path.is_file():
        raise BadInput(
            f"--resume {run_dir or repr('')} holds no run (no config.yaml); "
            "start one with: crestline run"
        )
    found = folder.read_config()
    if (verb := found.get("verb", "run")) != "run":
        raise BadInput(f"{run_dir} is a folder of crestline {verb}; run that command again")
    return build(RunConfig, found, where=str(folder.config_path))


@dataclass(frozen=True)
class Sources:
    """Where each stage's input comes from, told from what the user brought."""

    config: RunConfig

    @property
    def _world(self) -> str:
        return f"the embedded world {self.config.world.name!r}"

    @property
    def _names_world(self) -> bool:
        """Whether nobody is named to be asked but the world's own people."""
        return self.config.material.people in ("", self.config.world.name)

    @property
    def _people(self) -> str:
        """Who is asked, in words."""
        of_world = f"simulated people of {self._world}"
        return of_world if self._names_world else self.config.material.people

    @property
    def pretrains(self) -> bool:
        return not self.config.material.model_name_or_path

    @property
    def own_policy(self) -> bool:
        material = self.config.material
        return bool(material.model_name_or_path or material.text)

    @property
    def fine_tunes(self) -> bool:
        return bool(self.config.material.demonstrations) or not self.own_policy

    @property
    def world_prompts(self) -> bool:
        material = self.config.material
        return not (material.prompts or material.demonstrations or self.own_policy)

    @property
    def world_people(self) -> bool:
        """Whether the world's simulated people answer: its prompts, and nothing that says otherwise."""
        return self.world_prompts and self._names_world and not self.config.material.rankings

    @property
    def stand_in(self) -> bool:
        """Rankings in a file and nobody to ask."""
        material = self.config.material
        return bool(material.rankings) and not material.people

    def told(self) -> list[tuple[str, str]]:
        """(stage, where its input comes from) in order. Raises BadInput if a stage has nothing to work on."""
        material, world = self.config.material, self._world
        lines = []
        if self.pretrains:
            lines.append(("pretrain", f"text: {material.text or world}"))
        else:
            lines.append(("pretrain", f"skipped: the model is {material.model_name_or_path}"))
        if self.fine_tunes:
            lines.append(("sft", f"demonstrations: {material.demonstrations or world}"))
        else:
            lines.append(("sft", "skipped: no --demonstrations; the model is taken as it is"))
        if not (material.prompts or material.demonstrations or self.world_prompts):
            raise BadInput(
                "your own model needs --prompts (or --demonstrations, whose prompts serve)"
            )
        prompts = material.prompts or (
            f"the prompts of {material.demonstrations}" if material.demonstrations else world
        )
        if material.rankings:
            lines.append(("sample", "skipped: the rankings are there"))
            lines.append(("rank", f"skipped: rankings: {material.rankings}"))
        else:
            if not (material.people or self.world_people):
                raise BadInput(
                    "nobody knows what is good here: give --people module.py:function or --rankings file"
                )
            lines.append(("sample", f"prompts: {prompts}"))
            lines.append(("rank", f"people: {self._people}"))
        lines.append(("reward", f"rankings: {material.rankings or 'those just given'}"))
        if self.stand_in:
            lines.append(
                ("stand_in", "a second reward model, of half the depth, on rankings kept apart")
            )
        lines.append(("rl", f"prompts: {prompts}; reward: the reward model"))
        asked = "the stand-in answers: an estimate, not people" if self.stand_in else self._people
        lines.append(("crest", f"fresh comparisons at checkpoints: {asked}"))
        if self.world_people:
            lines.append(("gold", f"the hidden gold of {world}, measured after the verdict"))
        lines.append(("report", "report.html"))
        return lines


def plan(config: RunConfig) -> list[tuple[str, str]]:
    """(stage, where its input comes from) for each stage of the run, in order."""
    return Sources(config).told()
