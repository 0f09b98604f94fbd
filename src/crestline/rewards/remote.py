"""A reward model behind HTTP: a client of OpenRLHF's /get_reward, which `crestline reward-serve` answers too.

Owns the request, patience and what is said when nobody answers. Knows nothing of models and training.
"""

from __future__ import annotations

import json
import time
import urllib.error
import urllib.request
from collections.abc import Sequence
from http.client import HTTPException
from typing import Any

from crestline.rewards.functions import numbers, queries_of, rewards_in
from crestline.types import BadInput, Paused, Prompt

TEXTS_PER_REQUEST = 256
SECONDS_TO_WAIT = 120.0
PAUSES = (1.0, 3.0, 9.0)
"""Seconds before another try, where the server is not there or busy."""


class RemoteReward:
    """url: of the endpoint, such as http://127.0.0.1:8000/get_reward. tokenizer, label_key: as for `QueryReward`."""

    name = "remote_rm"

    def __init__(
        self, url: str, tokenizer: Any, label_key: str, *, pauses: Sequence[float] = PAUSES
    ) -> None:
        self.url, self.tokenizer, self.label_key, self.pauses = url, tokenizer, label_key, pauses

    def judge(self, prompts: Sequence[Prompt], completions: Sequence[str]) -> list[float | None]:
        """The server's scores. Raises Paused if it does not answer, BadInput if it refuses or answers nonsense."""
        found: list[float | None] = []
        for start in range(0, len(completions), TEXTS_PER_REQUEST):
            part = slice(start, start + TEXTS_PER_REQUEST)
            asked = queries_of(prompts[part], completions[part], self.tokenizer, self.label_key)
            body = {"query": asked.pop("queries"), **asked}
            who = f"--remote_rm_url {self.url}"
            found += numbers(rewards_in(self._answer(body), who), len(body["query"]), who)
        return found

    def _answer(self, body: dict[str, Any]) -> Any:
        data = json.dumps(body).encode()
        said = ""
        for pause in (*self.pauses, None):
            request = urllib.request.Request(
                self.url, data=data, headers={"Content-Type": "application/json"}
            )
            try:
                with urllib.request.urlopen(request, timeout=SECONDS_TO_WAIT) as response:
                    return json.loads(response.read())
            except urllib.error.HTTPError as error:
                said = f"answers {error.code}: {error.read(300).decode(errors='replace')}"
                if error.code < 500 and error.code != 429:
                    raise BadInput(f"--remote_rm_url {self.url} {said}") from None
            except json.JSONDecodeError as error:
                raise BadInput(f"--remote_rm_url {self.url} answers no JSON: {error}") from None
            except (OSError, HTTPException) as error:  # refused, unreachable, too slow, broken off
                said = f"does not answer: {getattr(error, 'reason', None) or error or type(error).__name__}"
            if pause is not None:
                time.sleep(pause)
        raise Paused(
            f"--remote_rm_url {self.url} {said}; start the server and run the same command again: it goes on from "
            "the last checkpoint"
        )
