"""Progress: plain lines now and then, and bars that end where their stage ends."""

import io

import pytest
from rich.console import Console

from crestline.cli.screen import LiveScreen, PlainScreen, shown


class Clock:
    seconds = 0.0

    def __call__(self) -> float:
        return self.seconds


def plain() -> tuple[PlainScreen, Clock, io.StringIO]:
    out, clock = io.StringIO(), Clock()
    return PlainScreen(Console(file=out, soft_wrap=True), clock), clock, out


def test_lines_come_every_five_seconds_and_at_the_end() -> None:
    screen, clock, out = plain()
    with screen:
        report = screen.stage("rl", "")
        for update in range(1, 13):
            clock.seconds += 1
            report(update, 12, {"reward": update / 2, "num_tokens": 9.0})
        screen.stage("report", "")
        clock.seconds += 1
        screen.say("wrote report.html")
    assert out.getvalue().splitlines() == [
        "rl        5/12  reward 2.5  (5 s)",
        "rl        10/12  reward 5  (10 s)",
        "rl        12/12  reward 6  done  (12 s)",
        "wrote report.html",
        "report    done  (1 s)",
    ]


def test_a_stage_that_failed_is_not_done() -> None:
    screen, _, out = plain()
    with pytest.raises(KeyboardInterrupt), screen:
        screen.stage("rl", "")
        raise KeyboardInterrupt
    assert out.getvalue() == ""


def test_a_metric_that_comes_seldom_stays() -> None:
    screen, clock, out = plain()
    report = screen.stage("rl", "")
    report(1, 9, {"kl": 0.25})
    clock.seconds = 6
    report(2, 9, {"loss": 1.0})
    assert "loss 1  kl 0.25" in out.getvalue()


def test_text_is_not_markup() -> None:
    screen, _, out = plain()
    screen.say("[red]runs/[x]")
    assert out.getvalue() == "[red]runs/[x]\n"


def test_bars() -> None:
    out = io.StringIO()
    console = Console(file=out, force_terminal=True, width=120, color_system=None)
    with LiveScreen(console) as screen:
        report = screen.stage("reward", "rankings: [a].jsonl")
        report(7, 20, {"accuracy": 0.75})
        screen.say("one line")
        screen.stage("rl", "")
    text = out.getvalue()
    assert "reward" in text and "20/20" in text and "accuracy 0.75" in text and "one line" in text


def test_bars_stop_where_a_stage_fails() -> None:
    out = io.StringIO()
    console = Console(file=out, force_terminal=True, width=120, color_system=None)
    with pytest.raises(ValueError), LiveScreen(console) as screen:
        screen.stage("reward", "")(7, 20, {})
        raise ValueError
    assert "7/20" in out.getvalue() and "20/20" not in out.getvalue()


def test_shown_metrics() -> None:
    assert shown({}) == ""
    assert shown({"kl": 0.123456, "loss": 2.0}) == "loss 2  kl 0.1235"
