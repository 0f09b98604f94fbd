"""Calls the implementation of one verb, and says what came of it.

The only place where our own modules are imported inside functions: torch takes seconds, and only
the verb that was asked for pays.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from typing import Any

from crestline.cli.chat import talk
from crestline.cli.screen import ClosableScreen, open_screen
from crestline.cli.verbs import Machine
from crestline.pipeline.configs import (
    BestOfNConfig,
    ChatConfig,
    ConvertConfig,
    CrestConfig,
    DoctorConfig,
    RankConfig,
    ReportConfig,
    RunConfig,
)
from crestline.pipeline.plan import begun, plan
from crestline.pipeline.reward_eval_configs import RewardEvalConfig
from crestline.runs.files import read_json
from crestline.serve.configs import RewardServeConfig
from crestline.types import BadInput, Verdict

STAGES = {
    "pretrain": "crestline.training.pretrain:pretrain",
    "sft": "crestline.training.sft:sft",
    "sample": "crestline.pipeline.sample:sample",
    "reward": "crestline.training.reward:reward",
    "reward-join": "crestline.pipeline.reward_join:reward_join",
    "rl": "crestline.training.rl:rl",
    "dpo": "crestline.training.dpo:dpo",
}
"""By verb the function, "module:name", that takes (config, device, progress) and returns the path that it wrote."""


def act(verb: str, config: Any, machine: Machine) -> None:
    """Do a verb and say what came of it."""
    if verb == "chat":
        chat(config, machine)
        return
    if verb == "reward-serve":
        reward_serve(config, machine)
        return
    with open_screen() as screen:
        if verb in STAGES:
            stage(verb, config, machine, screen)
        elif verb == "rank":
            rank(config, screen)
        elif verb == "convert":
            convert(config, screen)
        elif verb == "reward-eval":
            reward_eval(config, machine, screen)
        elif verb == "best-of-n":
            best_of_n(config, machine, screen)
        elif verb == "crest":
            crest(config, machine, screen)
        elif verb == "report":
            report(config, screen)
        else:
            run(config, screen)


def stage(verb: str, config: Any, machine: Machine, screen: ClosableScreen) -> None:
    progress = screen.stage(verb, "loading")
    use(machine)
    module, _, name = STAGES[verb].partition(":")
    implementation = getattr(import_module(module), name)
    path = implementation(config, device=machine.device, progress=progress)
    screen.finish()
    screen.say(f"wrote {path}")


def use(machine: Machine) -> None:
    """Set the threads, and see that the device is there. Raises BadInput if it is not."""
    check_device(machine.device)
    import torch

    if machine.num_threads:
        torch.set_num_threads(machine.num_threads)
    kind = machine.device.partition(":")[0]
    there = {
        "cpu": True,
        "cuda": torch.cuda.is_available(),
        "mps": torch.backends.mps.is_available(),
    }
    if not there[kind]:
        raise BadInput(f"--device {machine.device}: this machine has none; use --device cpu")
    number = int(machine.device.partition(":")[2] or 0)
    if kind == "cuda" and number >= torch.cuda.device_count():
        raise BadInput(
            f"--device {machine.device}: this machine has {torch.cuda.device_count()} of them"
        )


def check_device(device: str) -> None:
    """Raise BadInput if this is no device's name."""
    if not re.fullmatch(r"cpu|mps|cuda(:\d+)?", device):
        raise BadInput(f"--device: expected cpu, cuda, cuda:N or mps, got {device!r}")


def rank(config: RankConfig, screen: ClosableScreen) -> None:
    from crestline.pipeline.rank import rank

    path = rank(config, progress=screen.stage("rank", ""))
    screen.finish()
    screen.say(f"wrote {path}")


def convert(config: ConvertConfig, screen: ClosableScreen) -> None:
    from crestline.pipeline.convert import convert

    for line in convert(config).lines():
        screen.say(line)


def crest(config: CrestConfig, machine: Machine, screen: ClosableScreen) -> None:
    progress = screen.stage("crest", "loading")
    use(machine)
    from crestline.pipeline.crest import crest

    verdict = crest(config, device=machine.device, progress=progress)
    tell(verdict, config.run_dir, screen)


def report(config: ReportConfig, screen: ClosableScreen) -> None:
    from crestline.report.page import write_report

    output = Path(config.output_file) if config.output_file else None
    screen.say(f"wrote {write_report(Path(config.run_dir), output)}")


def chat(config: ChatConfig, machine: Machine) -> None:
    use(machine)
    from crestline.pipeline.chat import open_chat

    talk(config, lambda wanted: open_chat(wanted, device=machine.device))


def reward_eval(config: RewardEvalConfig, machine: Machine, screen: ClosableScreen) -> None:
    use(machine)
    from crestline.pipeline.reward_eval import reward_eval
    from crestline.report.reward_words import short_table

    path = reward_eval(config, device=machine.device, screen=screen)
    screen.finish()
    for name, told in short_table(read_json(path)):
        screen.say(f"{name:12} {told}")
    screen.say(f"wrote {path}; look at {path.with_suffix('.html')}")


def best_of_n(config: BestOfNConfig, machine: Machine, screen: ClosableScreen) -> None:
    use(machine)
    from crestline.pipeline.best_of_n import best_of_n
    from crestline.report.best_of_n_words import short_table

    path = best_of_n(config, device=machine.device, screen=screen)
    screen.finish()
    for line in short_table(read_json(path.with_suffix(".json"))):
        screen.say(line)
    screen.say(f"wrote {path}; look at {path.with_suffix('.html')}")


def reward_serve(config: RewardServeConfig, machine: Machine) -> None:
    use(machine)
    from crestline.serve.server import reward_serve

    reward_serve(config, device=machine.device)


def doctor(config: DoctorConfig, machine: Machine, settings: Any) -> None:
    """Say what there is to say of this machine, a line each. Raises BadInput where something is broken."""
    from crestline.pipeline.packages import Finding, packages

    def said(findings: Iterator[Finding]) -> list[str]:
        broken = []
        for found in findings:
            print(found, flush=True)
            broken += [found.name] if found.state == "broken" else []
        return broken

    broken = said(packages())
    if not broken:  # what follows needs torch
        if machine.num_threads:
            use(replace(machine, device="cpu"))
        from crestline.pipeline.doctor import look_at

        broken = said(look_at(config, device=machine.device, settings=settings))
    if broken:
        raise BadInput(f"broken: {', '.join(broken)}; what to do stands in the lines above")


def run(config: RunConfig, screen: ClosableScreen) -> None:
    use(Machine(device=config.device, num_threads=config.num_threads))
    from crestline.pipeline.run import run

    tell(run(config, screen=screen), config.output_dir, screen)


def resume(run_dir: str) -> None:
    """Go on with a run by the settings in its folder. Raises BadInput if it holds no run."""
    config = begun(run_dir)
    use(Machine(device=config.device, num_threads=config.num_threads))
    from crestline.pipeline.run import resume

    with open_screen() as screen:
        tell(resume(run_dir, screen=screen), run_dir, screen)


def plan_lines(config: RunConfig) -> list[str]:
    """What a run would do, a line for each stage."""
    return [f"  {stage:9} {text}" for stage, text in plan(config)]


def tell(verdict: Verdict, run_dir: str, screen: ClosableScreen) -> None:
    """The verdict in words, and where to look next."""
    screen.finish()
    shipped = "nothing" if verdict.update is None else f"checkpoint-{verdict.update}"
    screen.say(f"verdict: {verdict.kind}; ships {shipped}")
    screen.say(verdict.reason)
    page, typed = Path(run_dir) / "report.html", shlex.quote(run_dir)
    look = f"look at {page}" if page.is_file() else f"crestline report {typed}"
    chat = "" if verdict.update is None else f"; crestline chat {typed}"
    screen.say(f"next: {look}{chat}")
