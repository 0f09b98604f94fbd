"""Looks at a verb's input before anything slow is imported: files, folders, models, people.

Owns which inputs are worth a look beforehand. What is wrong with a file is told by its reader. What
needs a model is left to the verb.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import Any

from crestline.data.code import load_function
from crestline.data.formats import read_demonstrations, read_prompts, read_samples, read_texts
from crestline.data.rankings import read_rankings
from crestline.data.rows import is_large
from crestline.models.optional import require_vllm
from crestline.models.size import OWN_DECODER, size_of
from crestline.pipeline.best_of_n_files import Files, check_given, given_prompts
from crestline.pipeline.configs import (
    BestOfNConfig,
    ChatConfig,
    ConvertConfig,
    CrestConfig,
    DoctorConfig,
    RankConfig,
    ReportConfig,
    RewardJoinConfig,
    RunConfig,
    SampleConfig,
)
from crestline.pipeline.convert import check_output, read
from crestline.pipeline.plan import plan, rl_settings
from crestline.pipeline.reward_eval_configs import RewardEvalConfig, inputs_of
from crestline.pipeline.who import people_of, world_of
from crestline.runs.begun import RANKING_COLUMNS, SAMPLE_COLUMNS, rows_there
from crestline.runs.files import check_place, read_jsonl
from crestline.runs.folder import RunFolder
from crestline.runs.settings import defaults_of, plain
from crestline.runs.shipped import check_trained
from crestline.serve.address import listen, url
from crestline.serve.configs import RewardServeConfig
from crestline.training.configs import PretrainConfig, SamplerName, SftConfig
from crestline.training.dpo_configs import DpoConfig
from crestline.training.health import may_change
from crestline.training.reward_configs import RewardConfig
from crestline.training.rl_configs import RlConfig, resolved
from crestline.training.trackers import require_trackers
from crestline.types import BadInput

ESTIMATED = ("pretrain", "sft", "reward", "rl", "dpo", "best-of-n", "run")
"""Verbs whose memory is estimated before they work."""
Reader = Callable[..., Sequence[Any]]


def pretrain_input(config: PretrainConfig) -> list[str]:
    return [data("text", config.text, read_texts), folder(config, "pretrain")]


def sft_input(config: SftConfig) -> list[str]:
    return [
        data("dataset_name", config.dataset_name, read_demonstrations, config.dataset_train_split),
        model("model_name_or_path", config.model_name_or_path),
        folder(config, "sft"),
    ]


def sample_input(config: SampleConfig) -> list[str]:
    return [
        data("dataset_name", config.dataset_name, read_prompts, config.dataset_train_split),
        model("model_name_or_path", config.model_name_or_path),
        *sampler(config.sampler, config.model_name_or_path),
        appended(config.output_file, config.dataset_name, SAMPLE_COLUMNS),
    ]


def rank_input(config: RankConfig) -> list[str]:
    return [
        data("dataset_name", config.dataset_name, lambda source, split: read_samples(source)),
        people(config.people, config.flip_probability),
        appended(config.output_file, config.dataset_name, RANKING_COLUMNS),
    ]


def convert_input(config: ConvertConfig) -> list[str]:
    output = check_output(config)
    found = data("dataset_name", config.dataset_name, lambda source, split: read(config).rankings)
    return [found, f"output_file: {output} ({config.format})"]


def reward_input(config: RewardConfig) -> list[str]:
    return [*rankings_and_model(config), folder(config, "reward")]


def dpo_input(config: DpoConfig) -> list[str]:
    return [*rankings_and_model(config), folder(config, "dpo")]


def rankings_and_model(config: RewardConfig | DpoConfig) -> list[str]:
    """Looks for what is learned from, what is measured on, and the model to start from."""
    split = config.dataset_train_split
    found = [data("dataset_name", config.dataset_name, read_rankings, split)]
    if given := config.splits.eval_dataset_name:
        of_evaluation = config.splits.eval_dataset_split
        found.append(data("eval_dataset_name", given, read_rankings, of_evaluation))
    return [*found, model("model_name_or_path", config.model_name_or_path)]


def reward_eval_input(config: RewardEvalConfig) -> list[str]:
    found = [model("reward_model_name_or_path", config.reward_model_name_or_path)]
    inputs, settings = inputs_of(config), plain(config)
    found.append(data("dataset_name", inputs.test, read_rankings, config.dataset_test_split))
    if inputs.train:
        found.append(
            data("train_dataset_name", inputs.train, read_rankings, config.dataset_train_split)
        )
    if training := inputs.training:
        split = training.dataset_train_split
        found.append(
            data("learning_curve_dataset_name", training.dataset_name, read_rankings, split)
        )
        found.append(model("model_name_or_path", training.model_name_or_path))
    is_there = RunFolder(config.output_dir).check(
        {"verb": "reward-eval", **settings}, what="reward-eval", ignore=(*settings,)
    )
    return [*found, f"output_dir: {config.output_dir} ({'there' if is_there else 'new'})"]


def reward_join_input(config: RewardJoinConfig) -> list[str]:
    found = [reward_model("reward_models", name) for name in config.names()]
    if config.dataset_name:
        split = config.dataset_train_split
        found.append(data("dataset_name", config.dataset_name, read_rankings, split))
    return [*found, folder(config, "reward-join")]


def reward_serve_input(config: RewardServeConfig) -> list[str]:
    found = reward_model("model_name_or_path", config.model_name_or_path)
    with listen(config.host, config.port) as listening:
        return [found, f"host, port: {url(listening)} is free"]


def rl_input(config: RlConfig) -> list[str]:
    split = config.dataset_train_split
    found = [data("dataset_name", config.dataset_name, read_prompts, split)]
    if config.eval_dataset_name:
        found.append(data("eval_dataset_name", config.eval_dataset_name, read_prompts, split))
    found.append(model("model_name_or_path", config.model_name_or_path))
    found += sampler(config.sampler, config.model_name_or_path)
    resolved(config)
    return [*found, *scorers(config), folder(config, "rl")]


def scorers(config: RlConfig | BestOfNConfig) -> list[str]:
    """Looks for everyone who scores."""
    given, found = config.reward_sources, []
    if name := config.reward_model_name_or_path:
        found.append(reward_model("reward_model_name_or_path", name))
    for value in given.functions:
        load_function("reward_funcs", value)
        found.append(f"reward_funcs: the function {value}")
    if given.query_function:
        load_function("remote_rm_url", given.query_function)
    if given.remote_rm_url:
        found.append(f"remote_rm_url: {given.remote_rm_url}")
    if not found:
        raise BadInput(
            "nobody scores: give --reward_model_name_or_path, --reward_funcs or --remote_rm_url"
        )
    return found


def best_of_n_input(config: BestOfNConfig) -> list[str]:
    check_given(config)
    if config.samples_file:
        found = [
            data("samples_file", config.samples_file, lambda *_, **__: given_prompts(config)[0])
        ]
    else:
        split = config.dataset_train_split
        found = [data("dataset_name", config.dataset_name, read_prompts, split)]
        found.append(model("model_name_or_path", config.model_name_or_path))
        found += sampler(config.sampler, config.model_name_or_path)
    found += scorers(config)
    if config.judge_is_function:
        load_function("judge", config.judge)
        found.append(f"judge: the function {config.judge}")
    elif config.judge:
        found.append(reward_model("judge", config.judge))
    check_place("output_file", config.output_file)
    goes_on = Files(Path(config.output_file)).check(config)
    return [*found, f"output_file: {config.output_file} ({'goes on' if goes_on else 'new'})"]


def crest_input(config: CrestConfig) -> list[str]:
    run_dir = existing_folder(config.run_dir)
    rl_folder = run_dir / "rl" if (run_dir / "rl").is_dir() else run_dir
    rows = read_jsonl(rl_folder / "checkpoints.jsonl", missing_ok=True)
    if not rows:
        raise BadInput(
            f"{rl_folder} holds no checkpoints of an RL run; give the folder of crestline rl"
        )
    check_trained(rl_folder)
    found = [f"run_dir: {len(rows)} checkpoints in {rl_folder}"]
    if config.people and config.stand_in:
        raise BadInput("--people and --stand_in exclude each other: one of them answers")
    if config.people:
        who = people(config.people, config.flip_probability)
        found.append(f"{who}; at most {config.watch.num_labels} labels")
    elif config.stand_in:
        found.append(reward_model("stand_in", config.stand_in))
    else:
        found.append("people: nobody; nothing will be measured")
    return found


def report_input(config: ReportConfig) -> list[str]:
    check_place("output_file", config.output_file)
    page = Path(config.output_file or Path(config.run_dir) / "report.html")
    if page.is_dir():
        raise BadInput(f"{page} is a folder; give another --output_file")
    return [f"run_dir: {existing_folder(config.run_dir)}"]


def chat_input(config: ChatConfig) -> list[str]:
    return [f"run_dir: {existing_folder(config.run_dir)}"]


def run_input(config: RunConfig) -> list[str]:
    material, found = config.material, []
    plan(config)
    world_of(config.world.name)
    readers: dict[str, Reader] = {
        "text": read_texts,
        "demonstrations": read_demonstrations,
        "prompts": read_prompts,
        "rankings": read_rankings,
    }
    for name, reader in readers.items():
        if source := getattr(material, name):
            found.append(data(name, source, reader))
    if material.model_name_or_path:
        found.append(model("model_name_or_path", material.model_name_or_path))
    for name in ("sample", "rl"):
        sampler(getattr(config, name).sampler, material.model_name_or_path, f"{name}.sampler")
    who = people(material.people or config.world.name, config.world.flip_probability)
    if material.people:
        found.append(who)
    rl_settings(config)
    stages = ("pretrain", "sft", "reward", "rl")
    for name in stages:
        require_trackers(getattr(config, name).tracking)
    ignore = [key for n in stages for key in may_change(Path(config.output_dir, n), f"{n}.")]
    is_there = RunFolder(config.output_dir).check(
        plain(config), what="run", ignore=[*ignore, "output_dir"], defaults=defaults_of(config)
    )
    return [*found, f"output_dir: {config.output_dir} ({'goes on' if is_there else 'new'})"]


def doctor_input(config: DoctorConfig) -> list[str]:
    if config.verb not in ("", *ESTIMATED):
        raise BadInput(
            f"--verb {config.verb}: memory is estimated for {', '.join(ESTIMATED)}; choose one of them"
        )
    return ["packages, arithmetic, memory, GPUs, disk and extras; nobody on the network is asked"]


INPUTS: dict[str, Callable[[Any], list[str]]] = {
    "pretrain": pretrain_input,
    "sft": sft_input,
    "sample": sample_input,
    "rank": rank_input,
    "convert": convert_input,
    "reward": reward_input,
    "reward-eval": reward_eval_input,
    "reward-join": reward_join_input,
    "reward-serve": reward_serve_input,
    "rl": rl_input,
    "best-of-n": best_of_n_input,
    "dpo": dpo_input,
    "crest": crest_input,
    "report": report_input,
    "chat": chat_input,
    "run": run_input,
    "doctor": doctor_input,
}
"""By verb: raises BadInput for what can be seen to be wrong, and says in a line each what was found."""


def data(flag: str, source: str, reader: Reader, split: str = "train") -> str:
    """Reads a data set, unless it is on the hub or large."""
    path = Path(source)
    if not path.exists() and source.count("/") == 1 and not path.suffix and path.parts[0] != ".":
        return f"{flag}: {source}, from the Hugging Face hub"
    if is_large(path):
        return f"{flag}: {source}, large: read when it is needed"
    rows = reader(source, split=split)
    return f"{flag}: {len(rows)} rows in {source}"


def model(flag: str, name: str) -> str:
    """Looks whether a path is a model's folder; a name may be one of the hub."""
    path = Path(name)
    if path.is_dir():
        if not any((path / file).is_file() for file in ("config.json", "adapter_config.json")):
            raise BadInput(f"--{flag} {name} is not a model folder: it has no config.json")
        if not any(path.glob("*.safetensors")):
            pickles = sorted([*path.glob("*.bin"), *path.glob("*.pt"), *path.glob("*.pth")])
            said = f"only {pickles[0].name}, a pickle, which can run code" if pickles else "none"
            raise BadInput(
                f"--{flag} {name} has no weights as safetensors ({said}); save them as safetensors"
            )
        return f"{flag}: {name}"
    if path.exists():
        raise BadInput(f"--{flag} {name} is a file; give a model folder or a hub name")
    if path.is_absolute() or name.startswith(".") or name.count("/") > 1:
        raise BadInput(f"--{flag} {name} does not exist; give a model folder or a hub name")
    return f"{flag}: {name}, from the Hugging Face hub"


def sampler(kind: SamplerName, model_name: str, flag: str = "sampler") -> list[str]:
    """Looks whether the sampler that is named can serve; nothing to say where it is auto."""
    if kind == "auto":
        return []
    if kind == "vllm":
        require_vllm()
    size = size_of(model_name)
    if kind == "ours" and size is not None and size.kind not in OWN_DECODER:
        raise BadInput(
            f"--{flag} ours does not decode {size.kind or 'this kind of'} models; use --{flag} auto or transformers"
        )
    return [f"{flag}: {kind}"]


def reward_model(flag: str, name: str) -> str:
    """The same for a reward model, which may be an ensemble's folder too."""
    if (Path(name) / "ensemble.json").is_file():
        return f"{flag}: {name}"
    return model(flag, name)


def people(flag: str, flip_probability: float) -> str:
    """Looks whether there is somebody to ask."""
    try:
        found = people_of(flag, seed=0, flip_probability=flip_probability)
    except ValueError as error:
        raise BadInput(f"--{error}") from error
    return f"people: {found.description}"


def folder(config: Any, verb: str) -> str:
    """Looks whether a stage can begin or go on in its output_dir."""
    settings = {"verb": verb, **plain(config)}
    if hasattr(config, "tracking"):
        require_trackers(config.tracking)
    is_there = RunFolder(config.output_dir).check(
        settings, what=verb, ignore=may_change(config.output_dir), defaults=defaults_of(config)
    )
    return f"output_dir: {config.output_dir} ({'goes on' if is_there else 'new'})"


def appended(name: str, source: str, columns: Collection[str]) -> str:
    """Looks whether rows can be added to a file."""
    check_place("output_file", name)
    num_rows = len(rows_there(name, source, columns))
    return f"output_file: {name} ({f'goes on after {num_rows} rows' if num_rows else 'new'})"


def existing_folder(name: str) -> Path:
    """The folder of a run."""
    path = Path(name)
    if not path.is_dir():
        raise BadInput(f"{name} is not a folder; give the folder of crestline rl or crestline run")
    return path
