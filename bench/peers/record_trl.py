"""Record what TRL's trainers make of fixed completions: advantages, loss, metrics and every gradient.

    .venv-peers/bin/python bench/peers/record_trl.py tests/fixtures/trl

Runs in the environment of `make peers`. TRL's own `_generate_and_score_completions` and `compute_loss` do the work;
only `_generate` is replaced, so that the completions are given. Written: model/ and reference/ (Hugging Face folders
of a few hundred weights), recordings.json (inputs, and each case's settings, advantages, log-probabilities and
loss), gradients.safetensors ("case.parameter"); the same of DPO, whose inputs are pairs of texts, in dpo.json and
dpo_gradients.safetensors. `make test-peers` records anew and compares.
"""

from __future__ import annotations

import json
import logging
import os
import sys
import tempfile
from pathlib import Path
from typing import Any

os.environ.update(HF_HUB_OFFLINE="1", CUDA_VISIBLE_DEVICES="")

import torch
import transformers
import trl
from datasets import Dataset
from safetensors.torch import save_file
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
from trl import DPOConfig, DPOTrainer, GRPOConfig, GRPOTrainer, RLOOConfig, RLOOTrainer

WORDS = ["<pad>", "<end>", *"abcdefghij"]
GROUP, LONGEST = 3, 5
PROMPTS = ["a b c", "d"]
COMPLETIONS = [[2, 3, 1], [5, 5, 6, 7, 4], [1], [8, 9, 10, 1], [2, 11, 2, 11, 2], [4, 1]]
"""Three for each prompt: with the end token where it was chosen, without it where the length ran out."""
REWARDS = [1.0, 0.25, -0.5, 2.0, 2.0, 0.0]

OFF = {"use_bias_correction_kl": False}
"""k3 as GRPO's authors have it; TRL would multiply it with the ratio."""
CASES: dict[str, dict[str, Any]] = {
    "grpo_dapo": {"loss_type": "dapo"},
    "grpo_grpo": {"loss_type": "grpo"},
    "grpo_bnpo": {"loss_type": "bnpo"},
    "grpo_dr_grpo": {"loss_type": "dr_grpo", "scale_rewards": "none"},
    "grpo_scale_none": {"loss_type": "dapo", "scale_rewards": "none"},
    "grpo_scale_batch": {"loss_type": "dapo", "scale_rewards": "batch"},
    "grpo_k3": {"loss_type": "grpo", "beta": 0.3, **OFF},
    "grpo_stale_dapo": {"loss_type": "dapo", "epsilon_high": 0.28, "stale": True},
    "grpo_stale_grpo": {"loss_type": "grpo", "stale": True},
    "grpo_stale_dr_grpo": {"loss_type": "dr_grpo", "scale_rewards": "none", "stale": True},
    "grpo_stale_k3": {"loss_type": "dapo", "beta": 0.3, "stale": True, **OFF},
    "grpo_warm": {"loss_type": "dapo", "beta": 0.3, "temperature": 0.7, "stale": True, **OFF},
    "rloo": {"beta": 0.0},
    "rloo_k1": {"beta": 0.3},
    "rloo_stale": {"beta": 0.3, "epsilon_high": 0.28, "stale": True},
    "rloo_warm": {"beta": 0.3, "temperature": 0.7},
}
"""Settings under TRL's names. stale: the completions are older than the policy, so that ratios clip."""

PAIRS = [
    {"prompt": "a b c", "chosen": " d e", "rejected": " f"},
    {"prompt": "d", "chosen": " a", "rejected": " h h j j h h"},
    {"prompt": "e f", "chosen": " g i c b", "rejected": " g i"},
    {"prompt": "j i h g", "chosen": " a b", "rejected": " b a"},
]
DPO_CASES: dict[str, dict[str, Any]] = {
    "sigmoid": {},
    "sigmoid_steep": {"beta": 0.7},
    "ipo": {"loss_type": "ipo"},
    "ipo_steep": {"loss_type": "ipo", "beta": 0.7},
}


def tokenizer() -> PreTrainedTokenizerFast:
    """A word is a token."""
    words = Tokenizer(
        models.WordLevel({word: n for n, word in enumerate(WORDS)}, unk_token="<pad>")
    )
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=words, pad_token="<pad>", eos_token="<end>")


def tiny_llama(seed: int) -> LlamaForCausalLM:
    """One block of width 8, far from uniform."""
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=len(WORDS),
        hidden_size=8,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=12,
        max_position_embeddings=16,
        tie_word_embeddings=True,
        initializer_range=0.5,
        pad_token_id=0,
        bos_token_id=None,
        eos_token_id=1,
    )
    return LlamaForCausalLM(config)


class Given:
    """A trainer of which `_generate` hands out COMPLETIONS and nothing is sampled."""

    def _generate(self, prompts: list[str]) -> tuple[Any, ...]:
        ids = self.processing_class(prompts)["input_ids"]  # type: ignore[attr-defined]
        texts = self.processing_class.batch_decode(COMPLETIONS)  # type: ignore[attr-defined]
        completions = [list(completion) for completion in COMPLETIONS]
        if isinstance(self, RLOOTrainer):
            return ids, completions, texts
        return ids, completions, None, texts, None, {}, None, None


class GivenGrpo(Given, GRPOTrainer): ...


class GivenRloo(Given, RLOOTrainer): ...


def trainer_of(case: str, folder: Path, work: Path) -> Any:
    """TRL's trainer with a case's settings, on the recorded model and reference."""
    settings = {name: value for name, value in CASES[case].items() if name != "stale"}
    rloo = case.startswith("rloo")
    config = (RLOOConfig if rloo else GRPOConfig)(
        output_dir=str(work),
        per_device_train_batch_size=len(COMPLETIONS),
        num_generations=GROUP,
        max_completion_length=LONGEST,
        gradient_checkpointing=False,
        bf16=False,
        use_cpu=True,
        report_to="none",
        **({"normalize_advantages": False} if rloo else {}),
        **settings,
    )
    trainer = (GivenRloo if rloo else GivenGrpo)(
        model=str(folder / "model"),
        reward_funcs=lambda **columns: REWARDS,
        args=config,
        train_dataset=Dataset.from_dict({"prompt": PROMPTS}),
        processing_class=tokenizer(),
    )
    if trainer.ref_model is not None:
        reference = LlamaForCausalLM.from_pretrained(folder / "reference", dtype=torch.float32)
        trainer.ref_model.load_state_dict(reference.state_dict())
    trainer.current_gradient_accumulation_steps = 1
    return trainer


def real(values_NT: torch.Tensor) -> list[list[float]]:
    """The numbers at completion tokens, without padding."""
    return [row[: len(ids)] for row, ids in zip(values_NT.tolist(), COMPLETIONS, strict=True)]


def recorded(case: str, folder: Path, work: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """One case: what goes into recordings.json, and its gradients."""
    trainer = trainer_of(case, folder, work)
    model = trainer.model.train()
    rows = [{"prompt": prompt} for prompt in PROMPTS for _ in range(GROUP)]
    inputs = trainer._generate_and_score_completions(rows)
    ids = torch.cat([inputs["prompt_ids"], inputs["completion_ids"]], 1)
    mask = torch.cat([inputs["prompt_mask"], inputs["completion_mask"]], 1)
    width = inputs["completion_ids"].shape[1]
    with torch.no_grad():
        logprobs, _, _ = trainer._get_per_token_logps_and_entropies(model, ids, mask, width)
        found = {"logprobs": real(logprobs)}
        if trainer.ref_model is not None:
            reference = trainer._get_per_token_logps_and_entropies(
                trainer.ref_model, ids, mask, width
            )
            found["reference_logprobs"] = real(reference[0])
    old = logprobs
    if CASES[case].get("stale"):
        noise = torch.randn(logprobs.shape, generator=torch.Generator().manual_seed(2))
        old = logprobs + 0.3 * noise
        inputs["old_per_token_logps"] = old
        inputs["old_logps"] = (old * inputs["completion_mask"]).sum(1)
    loss = trainer.compute_loss(model, inputs)
    model.zero_grad()
    loss.backward()
    gradients = {
        f"{case}.{name}": parameter.grad.clone() for name, parameter in model.named_parameters()
    }
    head = {
        "case": case,
        "trainer": case.split("_")[0],
        "settings": {n: v for n, v in CASES[case].items() if n != "stale"},
        "loss": loss.item(),
        "advantages": inputs["advantages"].tolist(),
        "old_logprobs": real(old),
    }
    return head | found, gradients


def recorded_dpo(case: str, folder: Path, work: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """One case of DPO: what goes into dpo.json, and its gradients."""
    trainer = DPOTrainer(
        model=str(folder / "model"),
        ref_model=LlamaForCausalLM.from_pretrained(folder / "reference", dtype=torch.float32),
        args=DPOConfig(
            output_dir=str(work),
            per_device_train_batch_size=len(PAIRS),
            gradient_checkpointing=False,
            bf16=False,
            use_cpu=True,
            report_to="none",
            **DPO_CASES[case],
        ),
        train_dataset=Dataset.from_list(PAIRS),
        processing_class=tokenizer(),
    )
    trainer.current_gradient_accumulation_steps = 1
    model = trainer.model.train()
    rows = [trainer.train_dataset[n] for n in range(len(PAIRS))]
    loss = trainer.compute_loss(model, trainer.data_collator(rows))
    model.zero_grad()
    loss.backward()
    told = trainer._metrics["train"]
    found = {
        "case": case,
        "settings": {"beta": trainer.beta, "loss_type": trainer.loss_types[0]},
        "loss": loss.item(),
        "metrics": {n: v[0] for n, v in told.items() if n.startswith(("rewards/", "logps/"))},
        "ids": [[row[f"{part}_ids"] for part in ("prompt", "chosen", "rejected")] for row in rows],
    }
    return found, {f"{case}.{n}": p.grad.clone() for n, p in model.named_parameters()}


def record_dpo(folder: Path) -> None:
    """dpo.json and dpo_gradients.safetensors; the tokenizer, since the inputs are texts."""
    tokenizer().save_pretrained(folder / "model")
    cases, gradients = [], {}
    with tempfile.TemporaryDirectory() as work:
        for case in DPO_CASES:
            found, of_case = recorded_dpo(case, folder, Path(work))
            cases.append(found)
            gradients |= of_case
    save_file(gradients, folder / "dpo_gradients.safetensors")
    ids = cases[0]["ids"]
    for found in cases:
        assert found.pop("ids") == ids
    rows = ",\n".join(json.dumps(case) for case in cases)
    told = {"pairs": PAIRS, "ids": ids}
    lines = [f"{json.dumps(name)}: {json.dumps(value)}" for name, value in told.items()]
    (folder / "dpo.json").write_text("{" + ",\n".join(lines) + ',\n"cases": [\n' + rows + "\n]}\n")
    print(f"{len(cases)} cases of DPO written to {folder}")


def main(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, seed in (("model", 0), ("reference", 1)):
        tiny_llama(seed).save_pretrained(folder / name)
    record_dpo(folder)
    cases, gradients = [], {}
    with tempfile.TemporaryDirectory() as work:
        for case in CASES:
            found, of_case = recorded(case, folder, Path(work))
            cases.append(found)
            gradients |= of_case
    save_file(gradients, folder / "gradients.safetensors")
    prompts = [ids for ids in tokenizer()(PROMPTS)["input_ids"] for _ in range(GROUP)]
    shared = {
        "versions": {m.__name__: m.__version__ for m in (trl, transformers, torch)},
        "group_size": GROUP,
        "max_completion_length": LONGEST,
        "prompts": prompts,
        "completions": COMPLETIONS,
        "rewards": REWARDS,
    }
    lines = [f"{json.dumps(name)}: {json.dumps(value)}" for name, value in shared.items()]
    rows = ",\n".join(json.dumps(case) for case in cases)
    text = "{" + ",\n".join(lines) + ',\n"cases": [\n' + rows + "\n]}\n"
    (folder / "recordings.json").write_text(text)
    print(f"{len(cases)} cases written to {folder}")


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    logging.disable(logging.WARNING)
    torch.set_num_threads(1)
    main(Path(sys.argv[1]))
