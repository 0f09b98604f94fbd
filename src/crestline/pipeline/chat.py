"""Talk to a policy: the shipped model of a run, its reference, its last checkpoint, or any in between."""

from __future__ import annotations

from pathlib import Path

from crestline.models.load import load_policy, load_tokenizer
from crestline.models.lora import ADAPTER_CONFIG
from crestline.models.sampler import PolicySampler
from crestline.pipeline.configs import ChatConfig
from crestline.pipeline.crest import parsed, rl_folder_of
from crestline.runs.checkpoints import checkpoint_path, list_checkpoints
from crestline.runs.files import read_json
from crestline.runs.folder import RunFolder
from crestline.runs.tables import read_table
from crestline.training.configs import required
from crestline.training.seeds import stream
from crestline.types import BadInput, PromptText


class Conversation:
    """A model that answers one message at a time; it was trained on single turns.

    in_chat: messages are asked by the chat template. is_of_run: its folder is a run's, with other checkpoints.
    """

    def __init__(
        self,
        sampler: PolicySampler,
        description: str,
        seed: int,
        *,
        in_chat: bool,
        is_of_run: bool,
    ) -> None:
        self.sampler, self.description, self.seed = sampler, description, seed
        self.in_chat, self.is_of_run = in_chat, is_of_run
        self.num_said = 0

    def say(self, text: str) -> str:
        """The model's answer to a message."""
        prompt: PromptText = [{"role": "user", "content": text}] if self.in_chat else text
        self.num_said += 1
        seed = stream(self.seed, "chat", self.num_said)
        return self.sampler.sample([prompt], [seed])[0].text.strip()


def open_chat(config: ChatConfig, *, device: str = "cpu") -> Conversation:
    """Load what the config names. Raises BadInput naming the checkpoints there are."""
    required(config, "run_dir")
    folder, description = model_folder(Path(config.run_dir), config.checkpoint)
    sampler = PolicySampler(
        load_policy(folder, device=device),
        load_tokenizer(folder),
        max_completion_length=config.max_completion_length,
        temperature=config.temperature,
    )
    in_chat = asks_in_chat(Path(config.run_dir), bool(sampler.tokenizer.chat_template))
    return Conversation(
        sampler,
        description,
        config.seed,
        in_chat=in_chat,
        is_of_run=not is_model(Path(config.run_dir)),
    )


def asks_in_chat(run_dir: Path, has_template: bool) -> bool:
    """Whether the run's prompts are chats; where no run tells, whether the model has a chat template."""
    evaluation = RunFolder(rl_folder_of(run_dir)).evaluation_path(0)
    if not evaluation.is_file():
        return has_template
    return not isinstance(parsed(read_table(evaluation)["prompt"][0]), str)


def is_model(folder: Path) -> bool:
    """Whether a folder is a model's, not a run's."""
    return any((folder / name).is_file() for name in ("config.json", ADAPTER_CONFIG))


def model_folder(run_dir: Path, checkpoint: str) -> tuple[Path, str]:
    """The model folder that a name means in a run, and what it is in words."""
    if not run_dir.is_dir():
        raise BadInput(f"{run_dir} is not a folder; give the folder of a run or of a model")
    if is_model(run_dir):
        if checkpoint != "shipped":
            raise BadInput(
                f"--checkpoint {checkpoint}: {run_dir} is a model, which has no checkpoints; leave it out, "
                "or give the folder of a run"
            )
        return run_dir, f"the model {run_dir}"
    rl_folder = rl_folder_of(run_dir)
    updates = list_checkpoints(rl_folder)
    if checkpoint == "shipped":
        return shipped(run_dir, is_rl=(rl_folder / "checkpoints.jsonl").is_file())
    names = {"reference": min(updates, default=0), "last": max(updates, default=0)}
    is_number = checkpoint.isascii() and checkpoint.isdecimal()
    update = names.get(checkpoint, int(checkpoint) if is_number else -1)
    if update not in updates:
        known = ", ".join(map(str, updates)) or "none"
        raise BadInput(
            f"--checkpoint {checkpoint}: {run_dir} has no such checkpoint; there are: shipped, reference, last, {known}"
        )
    return checkpoint_path(rl_folder, update), f"checkpoint-{update}"


def shipped(run_dir: Path, *, is_rl: bool) -> tuple[Path, str]:
    """The model that a verdict shipped; of a run without RL, the model that it made."""
    model, verdict = run_dir / "model", run_dir / "verdict.json"
    there = (model / "config.json").is_file()
    if there and not is_rl:
        return model, f"the model of {run_dir}"
    if not there or not verdict.is_file() or read_json(verdict)["update"] is None:
        raise BadInput(f"{run_dir} shipped no model yet; try --checkpoint last or reference")
    return model, f"the shipped model, checkpoint-{read_json(verdict)['update']}"
