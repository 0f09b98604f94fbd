"""model/ and adapter/ of a folder: whether training wrote them, or a verdict shipped them.

Owns telling the two apart, by the card that only what a verdict shipped has. Knows nothing of models and verdicts.
"""

from __future__ import annotations

from pathlib import Path

from crestline.runs.checkpoints import remove_folder
from crestline.types import BadInput

CARD = "README.md"


def has_model(folder: Path) -> bool:
    """Whether a whole model/ is there."""
    return any((folder / "model" / name).exists() for name in ("config.json", "ensemble.json"))


def check_trained(rl_folder: Path) -> None:
    """Raise BadInput for the folder of an rl that has not ended: a model shipped there would pass for its own.

    What an earlier verdict left there says that it had ended, even if it shipped nothing.
    """
    if not has_model(rl_folder) and not (rl_folder / "verdict.json").exists():
        raise BadInput(
            f"{rl_folder}: rl has not finished there (no model/ yet); "
            "finish it first, by the same crestline rl command or crestline run --resume"
        )


def remove_shipped(folder: Path) -> None:
    """Remove what an earlier verdict shipped; a model without a card is training's own and stays.

    Raises BadInput where the disk refuses.
    """
    if (folder / "model" / CARD).exists():
        remove_folder(folder / "model")
        remove_folder(folder / "adapter")
