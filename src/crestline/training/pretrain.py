"""The pretraining verb: text in, tokenizer and a small language model out."""

from __future__ import annotations

from pathlib import Path

from crestline.data.formats import read_texts
from crestline.models.load import load_tokenizer, new_llama
from crestline.models.tokenizer import train_tokenizer
from crestline.runs.checkpoints import new_folder
from crestline.training.configs import PretrainConfig, required
from crestline.training.finish import finished, open_stage, ship_final
from crestline.training.fit import fit
from crestline.training.imitation import ImitationSource, imitation_loss
from crestline.training.learner import Learner
from crestline.training.seeds import stream
from crestline.training.trackers import mirrored
from crestline.types import Progress, silent


def pretrain(config: PretrainConfig, *, device: str = "cpu", progress: Progress = silent) -> Path:
    """Train on plain text and return the model's folder; a finished run returns at once."""
    required(config, "text", "output_dir")
    with open_stage(config, "pretrain") as folder:
        if finished(folder):
            return folder.path / "model"
        texts = read_texts(config.text)
        tokenizer_folder = folder.path / "tokenizer"
        if not tokenizer_folder.exists():
            with new_folder(tokenizer_folder) as temporary:
                train_tokenizer(texts, config.vocab_size).save_pretrained(temporary)
        tokenizer = load_tokenizer(tokenizer_folder)
        model = new_llama(
            vocab_size=len(tokenizer),
            hidden_size=config.hidden_size,
            num_layers=config.num_layers,
            num_heads=config.num_heads,
            intermediate_size=3 * config.hidden_size,
            max_position=config.max_length,
            pad_token_id=tokenizer.pad_token_id,
            eos_token_id=tokenizer.eos_token_id,
            seed=stream(config.seed, "weights"),
        ).to(device)
        end = tokenizer.eos_token_id
        encoded = tokenizer(texts, add_special_tokens=False)["input_ids"]
        rows = [
            [end, *ids[start : start + config.max_length - 2], end]
            for ids in encoded
            for start in range(0, max(len(ids), 1), config.max_length - 2)
        ]
        source = ImitationSource(
            rows, [1] * len(rows), batch_size=config.batch_size, seed=config.seed, device=device
        )
        learner = Learner(model, config.optimization, config.num_updates)
        report = mirrored(config.tracking, folder, progress)
        fit(folder, learner, tokenizer, source, imitation_loss, seed=config.seed, progress=report)
        return ship_final(folder, model, tokenizer)
