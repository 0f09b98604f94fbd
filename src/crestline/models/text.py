"""How prompts and completions become the text that a model reads. Owns rendering; knows no tensors."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from jinja2 import TemplateError

from crestline.types import BadInput, PromptText


def render_prompt(tokenizer: Any, prompt: PromptText) -> str:
    """The text after which the policy writes its completion.

    Plain text stays as it is; chat messages go through the tokenizer's chat template.
    """
    if isinstance(prompt, str):
        return prompt
    if not tokenizer.chat_template:
        raise BadInput(
            "the prompt is a chat, but the model's tokenizer has no chat template; "
            "give plain-text prompts or a model that was fine-tuned on conversations"
        )
    return _templated(tokenizer, prompt, add_generation_prompt=True)


def render_scored(tokenizer: Any, prompt: PromptText, completion: str) -> str:
    """The text that a reward model scores: prompt and completion, by its own chat template where it has one."""
    if isinstance(prompt, str):
        return prompt + completion
    messages = [*prompt, {"role": "assistant", "content": completion}]
    if tokenizer.chat_template:
        return _templated(tokenizer, messages)
    return "\n".join(f"{message['role']}: {message['content']}" for message in messages)


def _templated(tokenizer: Any, messages: Sequence[Mapping[str, str]], **options: Any) -> str:
    """Messages by the tokenizer's chat template. Raises BadInput where the template refuses them."""
    try:
        text: str = tokenizer.apply_chat_template(messages, tokenize=False, **options)
    except TemplateError as error:
        raise BadInput(f"the chat template refuses this prompt: {error}") from None
    return text
