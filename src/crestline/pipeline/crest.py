"""The crest verb: duels of checkpoints against the reference, a verdict, and the model that ships.

It needs no policy: the held-out prompts were answered when the checkpoints were made. Every answer is kept before
the next is asked; a killed run replays them.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from crestline import __version__
from crestline.crest.configs import WatchConfig
from crestline.crest.watch import Watch
from crestline.models.load import load_policy, load_tokenizer, save_model
from crestline.models.lora import ADAPTER_CONFIG
from crestline.models.reward import load_reward_model
from crestline.pipeline.configs import CrestConfig
from crestline.pipeline.who import people_of
from crestline.report.card import facts_of, write_card
from crestline.rewards.standin import StandIn
from crestline.runs.checkpoints import checkpoint_path, clean_temporary, new_folder
from crestline.runs.files import append_jsonl, mend_jsonl, read_jsonl, write_json, writing
from crestline.runs.folder import RunFolder
from crestline.runs.lock import FolderLock
from crestline.runs.shipped import check_trained, remove_shipped
from crestline.runs.tables import read_table
from crestline.training.configs import required
from crestline.training.fit import TRAINER_FILES
from crestline.training.seeds import stream
from crestline.types import (
    BadInput,
    Duel,
    Observation,
    People,
    Progress,
    PromptText,
    Verdict,
    silent,
)

ANSWERS_PER_WRITE = 20


class Checkpoints:
    """What an RL folder says of its checkpoints: summaries, and completions by update and prompt."""

    def __init__(self, rl_folder: Path) -> None:
        self.path = rl_folder
        self.rows = read_jsonl(rl_folder / "checkpoints.jsonl", missing_ok=True)
        if not self.rows or self.rows[0]["update"] != 0:
            raise BadInput(
                f"{rl_folder} holds no checkpoints of an RL run; give the folder of crestline rl"
            )
        self.updates = [int(row["update"]) for row in self.rows]
        self.settings = RunFolder(rl_folder).read_config()
        self._tables: dict[int, dict[str, list[Any]]] = {}
        self.prompts = [parsed(prompt) for prompt in self.table(0)["prompt"]]

    def table(self, update: int) -> dict[str, list[Any]]:
        """The evaluation of a checkpoint, read once."""
        if update not in self._tables:
            self._tables[update] = read_table(RunFolder(self.path).evaluation_path(update))
        return self._tables[update]

    def completion(self, update: int, prompt_index: int) -> str:
        return str(self.table(update)["completion"][prompt_index])


def parsed(column: str) -> PromptText:
    """A prompt from a table's column: chat if it is a JSON list of messages, else text as it is."""
    if column.startswith("[{"):
        try:
            messages: PromptText = json.loads(column)
        except ValueError:
            return column
        return messages
    return column


def rl_folder_of(run_dir: str | Path) -> Path:
    """The RL folder of a run: its rl/, or the folder itself."""
    path = Path(run_dir)
    if not path.is_dir():
        raise BadInput(
            f"{run_dir} is not a folder; give the folder of crestline rl or crestline run"
        )
    return path / "rl" if (path / "rl").is_dir() else path


def crest(
    config: CrestConfig, *, device: str = "cpu", progress: Progress = silent, is_held: bool = False
) -> Verdict:
    """Ask duels, decide, write verdict.json and ship model/ with its card; returns the verdict.

    is_held: whether the caller holds the folder's lock.
    Raises BadInput where rl has not finished, or another process works in the folder.
    """
    required(config, "run_dir")
    run_dir = Path(config.run_dir)
    checkpoints = Checkpoints(rl_folder_of(run_dir))
    check_trained(checkpoints.path)
    people = people_at_crest(config, checkpoints, device)
    with nullcontext() if is_held else FolderLock(run_dir, instead="run_dir"):
        verdict = ask_and_decide(checkpoints, people, config.watch, run_dir, config.seed, progress)
        if verdict.update is None and config.ship_unmeasured:
            reason = f"{verdict.reason} The last checkpoint ships on request, unmeasured."
            verdict = replace(verdict, update=checkpoints.updates[-1], reason=reason)
        conclude(verdict, checkpoints, run_dir)
    return verdict


def conclude(verdict: Verdict, checkpoints: Checkpoints, run_dir: Path) -> None:
    """Write verdict.json and ship what it names; what an earlier verdict shipped goes."""
    source = source_of(verdict, checkpoints)
    for name in ("verdict.json", "model", "adapter"):
        clean_temporary(run_dir, name)
    with writing(run_dir):
        (run_dir / "report.html").unlink(missing_ok=True)
    remove_shipped(run_dir)
    write_json(run_dir / "verdict.json", asdict(verdict))
    if source:
        ship(source, verdict, checkpoints, run_dir)


def people_at_crest(config: CrestConfig, checkpoints: Checkpoints, device: str) -> People | None:
    """Who answers the duels, or None. Raises BadInput for two of them, or one who can't."""
    if config.people and config.stand_in:
        raise BadInput("--people and --stand_in exclude each other: one of them answers")
    if config.people:
        return people_of(config.people, seed=config.seed, flip_probability=config.flip_probability)
    if not config.stand_in:
        return None
    check_stand_in(config.stand_in, checkpoints.settings)
    return StandIn(
        load_reward_model(config.stand_in, device=device),
        f"a stand-in: the reward model {Path(config.stand_in).name}, kept apart from RL's",
    )


def check_stand_in(stand_in: str, settings: Mapping[str, Any]) -> None:
    """Raise BadInput if the stand-in is the reward model that RL maximised: it would agree with itself."""
    used = settings.get("reward_model_name_or_path", "")
    if used and Path(used).resolve() == Path(stand_in).resolve():
        raise BadInput(
            f"--stand_in {stand_in} is the reward model that RL maximised, so it can't tell where that went wrong; "
            "train another on other rankings"
        )


def ask_and_decide(
    checkpoints: Checkpoints,
    people: People | None,
    config: WatchConfig,
    run_dir: Path,
    seed: int,
    progress: Progress,
) -> Verdict:
    """Duel checkpoints against the reference until the labels are spent; writes answers.jsonl."""
    watch = Watch(config, num_prompts=len(checkpoints.prompts))
    for row in checkpoints.rows:
        watch.observe(
            Observation(update=row["update"], distance=row["distance"], proxy=row["proxy"])
        )
    answers = run_dir / "answers.jsonl"
    mend_jsonl(answers)
    num_asked = 0
    answered_by: str = people.answered_by if people else "nobody"
    for row in read_jsonl(answers, missing_ok=True):
        if people is not None and row["answered_by"] != people.answered_by:
            raise BadInput(
                f"{answers} holds answers by {row['answered_by']!r}, but {people.answered_by!r} is to answer now; "
                "move the file away to ask anew"
            )
        answered_by = row["answered_by"]
        try:
            take(watch, row)
        except ValueError as error:
            raise BadInput(
                f"{answers}: row {num_asked + 1} does not belong to this watch ({error}); "
                "it was asked of other checkpoints or with other settings: move the file away to ask anew"
            ) from None
        num_asked += 1
    waiting: list[dict[str, Any]] = []
    while people is not None and (questions := watch.next_duels()):
        for update, prompt_index in questions:
            row = duel(checkpoints, people, update, prompt_index, seed)
            take(watch, row)
            waiting.append(row)
            num_asked += 1
            if len(waiting) >= ANSWERS_PER_WRITE or people.answered_by == "function":
                append_jsonl(answers, waiting)
                waiting = []
            progress(num_asked, config.num_labels, {})
        append_jsonl(answers, waiting)
        waiting = []
    return watch.verdict(answered_by)


def take(watch: Watch, row: Mapping[str, Any]) -> None:
    """Hand one kept answer to the watch."""
    if row["outcome"] is None:
        watch.not_ranked(row["update"], row["prompt_index"])
    else:
        watch.answer(
            Duel(update=row["update"], prompt_index=row["prompt_index"], outcome=row["outcome"])
        )


def duel(
    checkpoints: Checkpoints, people: People, update: int, prompt_index: int, seed: int
) -> dict[str, Any]:
    """Ask one blinded comparison, its order drawn by the seed, and return the row to keep."""
    identity = f"duel/{update}/{prompt_index}"
    first = "checkpoint" if stream(seed, identity) % 2 else "reference"
    pair = [checkpoints.completion(update, prompt_index), checkpoints.completion(0, prompt_index)]
    shown = pair if first == "checkpoint" else pair[::-1]
    prompt = checkpoints.prompts[prompt_index]
    values = people.rank(prompt, shown, question_id=identity)
    mine, other = values if first == "checkpoint" else values[::-1]
    outcome = None
    if mine is not None and other is not None:
        outcome = 0.5 if mine == other else float(mine > other)
    return {
        "id": identity,
        "update": update,
        "prompt_index": prompt_index,
        "prompt": prompt,
        "first": first,
        "completions": shown,
        "values": values,
        "outcome": outcome,
        "answered_by": people.answered_by,
    }


def copy_model(source: Path, target: Path) -> None:
    """A checkpoint's files but those that only training reads."""
    for file in sorted(source.iterdir()):
        if file.name not in TRAINER_FILES:
            shutil.copy2(file, target / file.name)


def source_of(verdict: Verdict, checkpoints: Checkpoints) -> Path | None:
    """The folder of the checkpoint that the verdict ships, if any. Raises BadInput if it is gone."""
    if verdict.update is None:
        return None
    source = checkpoint_path(checkpoints.path, verdict.update)
    if not source.is_dir():
        raise BadInput(
            f"{source} is gone, but the verdict would ship it; restore it or run rl again"
        )
    return source


def ship(source: Path, verdict: Verdict, checkpoints: Checkpoints, run_dir: Path) -> None:
    """Copy the verdict's checkpoint to model/, with a card that says how it was chosen.

    A checkpoint of adapters is copied to adapter/, and merged into its base model in model/.
    """
    target = run_dir / "model"
    if (source / ADAPTER_CONFIG).exists():
        with new_folder(run_dir / "adapter") as temporary:
            copy_model(source, temporary)
    with new_folder(target) as temporary, writing(target):
        if (source / ADAPTER_CONFIG).exists():
            save_model(load_policy(source), load_tokenizer(source), temporary)
        else:
            copy_model(source, temporary)
        write_card(
            temporary,
            verdict=asdict(verdict),
            facts={
                **facts_of(run_dir),
                "versions": {"crestline": __version__},
                "chat": not isinstance(checkpoints.prompts[0], str),
            },
        )
