"""Which files of a folder count as its weights."""

import json
import shutil
from pathlib import Path
from typing import Any

from crestline.models.load import save_model
from crestline.models.size import size_of


def test_only_the_files_that_are_loaded_count(llama: Any, tokenizer: Any, tmp_path: Path) -> None:
    save_model(llama, tokenizer, tmp_path / "one")
    expected = size_of(str(tmp_path / "one"))
    assert expected and expected.num_parameters == sum(p.numel() for p in llama.parameters())
    for name in ("consolidated", "adapter_model", "optimizer"):
        shutil.copy(tmp_path / "one/model.safetensors", tmp_path / f"one/{name}.safetensors")
    assert size_of(str(tmp_path / "one")) == expected

    llama.save_pretrained(tmp_path / "many", max_shard_size="40KB")
    index = tmp_path / "many/model.safetensors.index.json"
    assert len(set(json.loads(index.read_text())["weight_map"].values())) > 1
    shutil.copy(tmp_path / "one/model.safetensors", tmp_path / "many/consolidated.safetensors")
    assert size_of(str(tmp_path / "many")) == expected
    index.write_text("[]")
    assert size_of(str(tmp_path / "many")) is None
