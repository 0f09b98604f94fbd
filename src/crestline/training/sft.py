"""The fine-tuning verb: a language model and demonstrations in, a policy out."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from crestline.data.formats import read_demonstrations
from crestline.models.load import load_policy, load_tokenizer
from crestline.models.lora import with_adapters
from crestline.models.sampler import encode_prompts
from crestline.models.tokenizer import CHAT_TEMPLATE
from crestline.training.configs import SftConfig, required
from crestline.training.finish import finished, open_stage, ship_final
from crestline.training.fit import fit
from crestline.training.imitation import ImitationSource, imitation_loss
from crestline.training.learner import Learner
from crestline.training.seeds import stream
from crestline.training.trackers import mirrored
from crestline.types import BadInput, Demonstration, Progress, silent

PLAIN_CHAT_TEMPLATE = (
    "{% for message in messages %}{% if message['role'] == 'assistant' %}{{ message['content'] + eos_token }}"
    "{% else %}{{ message['content'] + '\n' }}{% endif %}{% endfor %}"
)
"""For a model without role tokens: each turn on a line, the answer ended by its end token."""


def sft(config: SftConfig, *, device: str = "cpu", progress: Progress = silent) -> Path:
    """Fine-tune on demonstrations and return the model's folder; a finished run returns at once."""
    required(config, "model_name_or_path", "dataset_name", "output_dir")
    with open_stage(config, "sft") as folder:
        if finished(folder):
            return folder.path / "model"
        demonstrations = read_demonstrations(config.dataset_name, split=config.dataset_train_split)
        tokenizer = load_tokenizer(config.model_name_or_path)
        if tokenizer.eos_token_id is None:
            raise BadInput(
                f"{config.model_name_or_path}: the tokenizer has no token that ends a completion; set eos_token in its "
                "tokenizer_config.json"
            )
        chats = any(not isinstance(row.prompt, str) for row in demonstrations)
        if chats and not tokenizer.chat_template:
            roles = {"<|user|>", "<|assistant|>", "<|end|>"} <= set(tokenizer.get_vocab())
            tokenizer.chat_template = CHAT_TEMPLATE if roles else PLAIN_CHAT_TEMPLATE
        model = load_policy(config.model_name_or_path, device=device)
        if config.lora.use_peft:
            seed = stream(config.seed, "adapters")
            model = with_adapters(model, config.lora, task="policy", seed=seed)
        rows, first = encode_demonstrations(
            tokenizer, demonstrations, min(config.max_length, context_of(model))
        )
        source = ImitationSource(
            rows, first, batch_size=config.batch_size, seed=config.seed, device=device
        )
        num_updates = math.ceil(config.num_train_epochs * len(rows) / config.batch_size)
        learner = Learner(model, config.optimization, num_updates)
        report = mirrored(config.tracking, folder, progress)
        fit(folder, learner, tokenizer, source, imitation_loss, seed=config.seed, progress=report)
        return ship_final(folder, model, tokenizer)


def context_of(model: Any) -> int:
    """How many tokens the model can read at once."""
    return int(getattr(model.config, "max_position_embeddings", None) or 1 << 30)


def encode_demonstrations(
    tokenizer: Any, demonstrations: list[Demonstration], max_length: int
) -> tuple[list[list[int]], list[int]]:
    """Token ids of prompt, completion and end, and the place where the completion begins.

    What does not fit in max_length is cut from the front of the prompt. Raises BadInput if the completion alone
    does not fit.
    """
    prompts = encode_prompts(tokenizer, [row.prompt for row in demonstrations])
    texts = [row.completion for row in demonstrations]
    completions = tokenizer(texts, add_special_tokens=False)["input_ids"]
    rows, first = [], []
    for number, (prompt, completion) in enumerate(zip(prompts, completions, strict=True), 1):
        answer = [*completion, tokenizer.eos_token_id]
        if len(answer) >= max_length:
            raise BadInput(
                f"demonstration {number}: its completion has {len(answer)} tokens and --max_length is {max_length}; "
                "shorten it or raise --max_length"
            )
        kept = prompt[max(0, len(prompt) + len(answer) - max_length) :]
        rows.append(kept + answer)
        first.append(len(kept))
    return rows, first
