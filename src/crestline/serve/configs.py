"""Settings of the servers. Torch-free, so that `--help` and bad flags answer at once."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, kw_only=True)
class RewardServeConfig:
    """Score completions over HTTP, for other trainers."""

    model_name_or_path: str = ""
    """Reward model to serve: a folder that crestline reward or reward-join wrote, or a hub name."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Arithmetic of scoring. bfloat16 is faster where the processor multiplies it, and moves scores a little."""
    host: str = "127.0.0.1"
    """Address to listen on. 127.0.0.1: this machine only; 0.0.0.0: whoever can reach it, so give an api_key too."""
    port: int = 5000
    """Port to listen on; 0 takes a free one and prints it."""
    api_key: str = ""
    """Requests must carry it as 'Authorization: Bearer ...'; CRESTLINE_API_KEY in the environment does the same."""
    max_queue: int = 16384
    """Texts that may wait for their scores; a request that does not fit is answered 429 and can be sent again."""
    max_batch_tokens: int = 0
    """Tokens, padding included, that are scored together; 0 takes what the device does fastest."""
    max_request_bytes: int = 16_777_216
    """Largest body of a request; a larger one is answered 413."""
    query_end: str = ""
    """/get_reward only: cut this off the end of a query, where the trainer's template ends an answer (</s>)."""

    def __post_init__(self) -> None:
        if not 0 <= self.port <= 65535:
            raise ValueError(f"port must be in [0, 65535], got {self.port}")
        for name, least in (("max_queue", 1), ("max_request_bytes", 1), ("max_batch_tokens", 0)):
            if getattr(self, name) < least:
                raise ValueError(f"{name} must be at least {least}, got {getattr(self, name)}")
        if not self.host:
            raise ValueError("host must not be empty; 127.0.0.1 is this machine only")
        if not self.api_key.isascii():
            raise ValueError("api_key must be ASCII: it travels in a header")
