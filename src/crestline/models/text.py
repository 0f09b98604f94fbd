"""How prompts and completions become the text that a model reads. Owns rendering; knows no tensors."""

from __future__ import annotations

from typing import Any

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
    text: str = tokenizer.apply_chat_template(prompt, tokenize=False, add_generation_prompt=True)
    return text


def render_scored(tokenizer: Any, prompt: PromptText, completion: str) -> str:
    """The text that a reward model scores: prompt and completion, by its own chat template where it has one."""
    if isinstance(prompt, str):
        return prompt + completion
    messages = [*prompt, {"role": "assistant", "content": completion}]
    if tokenizer.chat_template:
        text: str = tokenizer.apply_chat_template(messages, tokenize=False)
        return text
    return "\n".join(f"{message['role']}: {message['content']}" for message in messages)
