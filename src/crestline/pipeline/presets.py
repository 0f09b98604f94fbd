"""Whole runs by name: the vetted settings of `crestline run`."""

from __future__ import annotations

from crestline.crest.configs import WatchConfig
from crestline.pipeline.configs import RunConfig, SampleConfig, WorldConfig
from crestline.training.configs import Optimization, PretrainConfig, SftConfig
from crestline.training.health import Health
from crestline.training.reward_configs import RewardConfig
from crestline.training.rl_configs import Checkpointing, RlConfig, Rloo

DEMO = RunConfig(
    output_dir="runs/demo",
    world=WorldConfig(num_gold_completions=512),
    pretrain=PretrainConfig(
        vocab_size=1024,
        num_updates=400,
        batch_size=32,
        optimization=Optimization(learning_rate=5e-3, dtype="float32", save_updates=50),
    ),
    sft=SftConfig(
        num_train_epochs=3.0,
        batch_size=32,
        optimization=Optimization(learning_rate=2e-3, dtype="float32", save_updates=50),
    ),
    sample=SampleConfig(num_generations=5, max_completion_length=40),
    reward=RewardConfig(
        num_train_epochs=2.0,
        batch_size=32,
        optimization=Optimization(
            learning_rate=5e-4, dtype="float32", save_updates=50, micro_batch_size=80
        ),
    ),
    rl=RlConfig(
        num_updates=120,
        num_prompts=16,
        num_generations=8,
        max_completion_length=40,
        algorithm=Rloo(),
        health=Health(max_collapsed_groups=1.0, max_truncated=1.0),
        checkpoints=Checkpointing(distance_step=0.25, distance_growth=0.2, num_eval_prompts=512),
        optimization=Optimization(
            learning_rate=3e-4,
            lr_scheduler_type="constant",
            warmup_ratio=0.0,
            dtype="float32",
            micro_batch_size=64,
            save_updates=20,
        ),
    ),
    watch=WatchConfig(num_labels=1000),
)
"""The story of the README: it falls off the cliff on purpose, without a KL penalty, and health lets it.

float32: at this size bfloat16 saves no time, and its kernels take memory.
"""

SMOKE = RunConfig(
    output_dir="runs/smoke",
    world=WorldConfig(
        num_texts=1500,
        num_demonstrations=400,
        num_prompts=60,
        num_heldout_prompts=32,
        num_gold_completions=64,
    ),
    pretrain=PretrainConfig(
        vocab_size=400,
        hidden_size=32,
        num_layers=2,
        num_heads=2,
        num_updates=24,
        batch_size=16,
        optimization=Optimization(learning_rate=5e-3, save_updates=8),
    ),
    sft=SftConfig(
        num_train_epochs=1.0,
        batch_size=32,
        optimization=Optimization(learning_rate=3e-3, save_updates=5),
    ),
    sample=SampleConfig(num_generations=3, max_completion_length=24),
    reward=RewardConfig(
        num_train_epochs=2.0,
        batch_size=16,
        optimization=Optimization(learning_rate=2e-3, save_updates=3),
    ),
    rl=RlConfig(
        num_updates=16,
        num_prompts=4,
        num_generations=4,
        max_completion_length=24,
        health=Health(health_patience=0),
        checkpoints=Checkpointing(distance_step=0.1, num_eval_prompts=32),
        optimization=Optimization(
            learning_rate=2e-3, lr_scheduler_type="constant", warmup_ratio=0.0, save_updates=4
        ),
    ),
    watch=WatchConfig(num_labels=120),
)
"""Every stage in seconds; it proves that things work, not that the model is any good."""

PRESETS: dict[str, RunConfig] = {"demo": DEMO, "smoke": SMOKE}
