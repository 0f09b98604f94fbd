from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from crestline.models.load import load_tokenizer
from crestline.models.text import render_prompt, render_scored
from crestline.models.tokenizer import train_tokenizer
from crestline.types import BadInput, PromptText

CHAT: PromptText = [{"role": "user", "content": "Hello?"}]


@settings(max_examples=150, deadline=None)
@given(text=st.text(max_size=60))
@example(text="🦤 pélican\n\t  two spaces , and . marks 漢字")
@example(text="")
def test_any_text_survives(tokenizer: Any, text: str) -> None:
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    assert tokenizer.decode(ids) == text
    assert max(ids, default=0) < len(tokenizer)


def test_the_vocabulary_holds_bytes_and_specials_and_no_more_than_asked(tokenizer: Any) -> None:
    assert len(tokenizer) == 290
    specials = ["<|pad|>", "<|user|>", "<|assistant|>", "<|system|>", "<|end|>"]
    assert tokenizer.convert_tokens_to_ids(specials) == [0, 1, 2, 3, 4]
    assert (tokenizer.pad_token, tokenizer.eos_token) == ("<|pad|>", "<|end|>")


def test_training_is_deterministic() -> None:
    texts = ["one two two three three three"] * 3
    first, second = train_tokenizer(texts, 290), train_tokenizer(texts, 290)
    assert first.get_vocab() == second.get_vocab()


def test_frequent_words_become_one_token(tokenizer: Any) -> None:
    assert len(tokenizer(" sat", add_special_tokens=False)["input_ids"]) == 1


def test_chat_template_renders_roles_and_end(tokenizer: Any) -> None:
    system: PromptText = [{"role": "system", "content": "Be kind."}, *CHAT]
    assert render_prompt(tokenizer, system) == "<|system|>Be kind.<|user|>Hello?<|assistant|>"
    scored = render_scored(tokenizer, CHAT, "Hi!")
    assert scored == "<|user|>Hello?<|assistant|>Hi!<|end|>"
    ids = tokenizer(scored, add_special_tokens=False)["input_ids"]
    assert ids[0] == 1 and 2 in ids and ids[-1] == tokenizer.eos_token_id


def test_a_scored_text_begins_as_its_prompt(tokenizer: Any) -> None:
    for prompt in (CHAT, "Once upon"):
        assert render_scored(tokenizer, prompt, " a time").startswith(
            render_prompt(tokenizer, prompt)
        )
    assert render_scored(tokenizer, "Once upon", " a time") == "Once upon a time"


def test_saved_and_loaded_it_is_the_same(tokenizer: Any, tmp_path: Path) -> None:
    tokenizer.save_pretrained(tmp_path)
    loaded = load_tokenizer(tmp_path)
    text = "The cat 🐱  sat.\n<|end|>"
    assert loaded(text)["input_ids"] == tokenizer(text)["input_ids"]
    assert render_prompt(loaded, CHAT) == render_prompt(tokenizer, CHAT)
    assert (loaded.pad_token_id, loaded.eos_token_id) == (0, 4)


def test_chat_without_a_template_is_refused(tmp_path: Path, tokenizer: Any) -> None:
    tokenizer.save_pretrained(tmp_path)
    plain = load_tokenizer(tmp_path)
    plain.chat_template = None
    with pytest.raises(BadInput, match="no chat template"):
        render_prompt(plain, CHAT)
    assert render_scored(plain, CHAT, "Hi!") == "user: Hello?\nassistant: Hi!"


def test_a_folder_without_a_tokenizer_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="cannot load a tokenizer from"):
        load_tokenizer(tmp_path)
