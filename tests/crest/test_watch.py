"""The watch on simulated runs: verdicts, the schedule, replay and the edges."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Callable

import numpy as np
import pytest
from numpy.typing import NDArray

from crestline.crest.duels import DuelBook
from crestline.crest.watch import Watch, WatchConfig
from crestline.formulas.curves import win_rate
from crestline.types import Duel, Observation, Verdict

Array = NDArray[np.float64]
DISTANCES = np.linspace(0.25, 5.5, 22)


def make(config: WatchConfig, distances: Array, num_prompts: int = 256) -> Watch:
    watch = Watch(config, num_prompts)
    watch.observe(Observation(update=0, distance=0.0, proxy=0.5))
    for i, distance in enumerate(distances.tolist()):
        watch.observe(Observation(update=20 * (i + 1), distance=distance, proxy=0.5))
    return watch


def play(
    watch: Watch, gold: Array, flip: float, seed: int, most: int = 10**9
) -> list[tuple[int, int, float]]:
    """Answer up to `most` duels; the answers in order."""
    rng = np.random.default_rng(seed)
    chances = win_rate(gold, flip)
    answers: list[tuple[int, int, float]] = []
    while (batch := watch.next_duels()) and len(answers) < most:
        for update, prompt_index in batch[: most - len(answers)]:
            outcome = float(rng.random() < chances[update // 20 - 1])
            watch.answer(Duel(update=update, prompt_index=prompt_index, outcome=outcome))
            answers.append((update, prompt_index, outcome))
    return answers


def book_of(watch: Watch) -> DuelBook:
    """What was asked and answered, from the saved state."""
    state = watch.state()
    return DuelBook(
        asked={(update, i): phase for update, i, phase in state["asked"]},
        answers={(update, i): outcome for update, i, outcome in state["answers"]},
    )


def means_of(book: DuelBook, distances: Array) -> Array:
    """The fitted log odds at every checkpoint."""
    places = {20 * (i + 1): distance for i, distance in enumerate(distances.tolist())}
    return book.tally(places).fit().mean()


def cliff(d: Array) -> Array:
    return np.asarray(1 - np.exp(-1.6 * d) - 1.8 / (1 + np.exp(-(d - 3) / 0.2)))


@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize(
    ("gold", "kind"),
    [
        (cliff, "peaked"),
        (lambda d: d / d[-1], "still_rising"),
        (lambda d: 0 * d, "nothing_beats_reference"),
        (lambda d: -0.3 * d, "nothing_beats_reference"),
    ],
    ids=["cliff", "rising", "flat", "falling"],
)
def test_verdicts(gold: Callable[[Array], Array], kind: str, seed: int) -> None:
    truth = gold(DISTANCES)
    watch = make(WatchConfig(num_labels=800), DISTANCES)
    asked = play(watch, truth, 0.1, seed)
    verdict = watch.verdict("simulated people")
    assert verdict.kind == kind
    assert verdict.num_labels == len(asked) <= 800
    assert [p.update for p in verdict.curve] == list(range(0, 441, 20))
    if kind == "nothing_beats_reference":
        assert verdict.update == 0
        assert verdict.interval is None
    if kind == "still_rising":
        assert verdict.update == 440
    if kind == "peaked":
        assert verdict.update is not None and verdict.interval is not None
        assert truth.max() - truth[verdict.update // 20 - 1] < 0.2 * truth.max()
        assert verdict.interval[0] <= verdict.update <= verdict.interval[1]
        assert verdict.win_rate_interval is not None and verdict.win_rate_interval[0] > 0.5
        assert f"checkpoint-{verdict.update}" in verdict.reason


def test_each_duel_is_asked_once_and_the_budget_is_kept() -> None:
    watch = make(WatchConfig(num_labels=300), DISTANCES)
    asked = [(u, i) for u, i, _ in play(watch, cliff(DISTANCES), 0.0, 0)]
    assert len(asked) == len(set(asked)) == 300
    assert watch.next_duels() == []
    assert all(0 <= i < 256 and u > 0 for u, i in asked)
    # The first pass touches every checkpoint; the rest goes near the peak, at d = 1.5 to 2.7.
    assert len({u for u, _ in asked[:75]}) == 22
    late = Counter(u for u, _ in asked[75:])
    assert sum(late[u] for u in range(80, 241, 20)) > 0.6 * 225


def test_replaying_answers_in_order_asks_the_same_again() -> None:
    config = WatchConfig(num_labels=240)
    whole = make(config, DISTANCES)
    answers = play(whole, cliff(DISTANCES), 0.25, 5)
    resumed = make(config, DISTANCES)
    for update, prompt_index, outcome in answers[:130]:
        resumed.answer(Duel(update=update, prompt_index=prompt_index, outcome=outcome))
    for update, prompt_index, outcome in answers[130:]:
        assert (update, prompt_index) == resumed.next_duels()[0]
        resumed.answer(Duel(update=update, prompt_index=prompt_index, outcome=outcome))
    assert resumed.verdict("people") == whole.verdict("people")


def test_state_survives_json() -> None:
    config = WatchConfig(num_labels=200)
    first = make(config, DISTANCES)
    seen = {"update": 440, "distance": DISTANCES[-1], "proxy": 0.7, "signals": {"kl": 2.0}}
    first.observe(Observation(**seen))
    assert first.state()["observations"][-1] == seen
    play(first, cliff(DISTANCES), 0.25, 1, most=95)
    first.not_ranked(*first.next_duels()[0])
    second = Watch(config, 256)
    for more in (0, 60, 10, 10**9):  # in the first batch, a later one, the confirmation; the end
        play(first, cliff(DISTANCES), 0.25, 2, most=more)
        second.load(json.loads(json.dumps(first.state())))
        assert second.state() == first.state()
        assert second.next_duels() == first.next_duels()
        assert second.verdict("people") == first.verdict("people")
    assert set(book_of(second).asked.values()) >= {"first", "focus", "last", "confirm"}
    with pytest.raises(ValueError, match="another config"):
        Watch(WatchConfig(num_labels=100), 256).load(first.state())
    with pytest.raises(ValueError, match="number of prompts"):
        Watch(config, 255).load(first.state())


def test_nothing_follows_a_confirmation_that_is_lost() -> None:
    watch = make(WatchConfig(num_labels=500, min_duels=5), DISTANCES[:3], num_prompts=40)
    while questions := watch.next_duels():
        is_confirming = book_of(watch).is_confirming()
        for update, prompt_index in questions:
            won = float(update >= 40 and not is_confirming)
            watch.answer(Duel(update=update, prompt_index=prompt_index, outcome=won))
    asked = book_of(watch).asked
    assert len(asked) < 120
    assert [q[0] for q, phase in asked.items() if phase == "confirm"] == [60] * 10


def test_loading_in_the_confirmation_asks_no_more() -> None:
    config = WatchConfig(num_labels=100)
    first = make(config, DISTANCES[:5])
    play(first, cliff(DISTANCES[:5]), 0.0, 0, most=90)
    second = Watch(config, 256)
    second.load(first.state())
    assert {book_of(second).asked[question] for question in second.next_duels()} == {"confirm"}
    assert play(second, cliff(DISTANCES[:5]), 0.0, 1) == play(first, cliff(DISTANCES[:5]), 0.0, 1)
    assert second.state() == first.state()


def test_another_seed_asks_other_duels() -> None:
    one = make(WatchConfig(watch_seed=1), DISTANCES).next_duels()
    assert one == make(WatchConfig(watch_seed=1), DISTANCES).next_duels()
    assert one != make(WatchConfig(watch_seed=2), DISTANCES).next_duels()


def test_ties_establish_nothing() -> None:
    watch = make(WatchConfig(num_labels=200), DISTANCES)
    while batch := watch.next_duels():
        for update, prompt_index in batch:
            watch.answer(Duel(update=update, prompt_index=prompt_index, outcome=0.5))
    verdict = watch.verdict("people")
    assert verdict.kind == "nothing_beats_reference"
    assert all(p.win_rate == pytest.approx(0.5, abs=0.05) for p in verdict.curve)


def test_not_ranked_spends_a_label_and_measures_nothing() -> None:
    watch = make(WatchConfig(num_labels=120), DISTANCES)
    while batch := watch.next_duels():
        for question in batch:
            watch.not_ranked(*question)
    verdict = watch.verdict("people")
    assert (verdict.kind, verdict.update, verdict.num_labels) == ("not_measured", None, 120)


def test_nothing_answered_is_not_measured() -> None:
    assert Watch(WatchConfig(), 10).next_duels() == []
    for watch in (Watch(WatchConfig(), 10), make(WatchConfig(), DISTANCES)):
        verdict = watch.verdict("people")
        assert verdict.kind == "not_measured"
        assert verdict.curve == ()
        assert "30" in verdict.reason


@pytest.mark.parametrize("num_checkpoints", [1, 2, 3])
def test_few_checkpoints(num_checkpoints: int) -> None:
    distances = DISTANCES[3 : 3 + num_checkpoints]
    watch = make(WatchConfig(num_labels=200), distances, num_prompts=128)
    play(watch, np.full(num_checkpoints, 1.2), 0.0, 0)
    verdict = watch.verdict("people")
    assert verdict.kind == "still_rising"
    assert verdict.update == 20 * num_checkpoints


def test_equal_distances() -> None:
    watch = make(WatchConfig(num_labels=200), np.full(5, 2.0))
    play(watch, np.full(5, 1.0), 0.0, 0)
    verdict = watch.verdict("people")
    assert verdict.kind == "still_rising"
    assert all(math.isfinite(p.win_rate) for p in verdict.curve)


def test_prompts_run_out_before_the_budget() -> None:
    watch = make(WatchConfig(num_labels=500), DISTANCES[:3], num_prompts=40)
    asked = play(watch, np.array([0.5, 1.0, 1.5]), 0.0, 0)
    assert 60 <= len(asked) < 120
    assert max(Counter(update for update, _, _ in asked).values()) == 40
    # None are kept: a quarter of 40 is too few for a confirmation to count.
    assert not book_of(watch).is_confirming()
    assert watch.next_duels() == []
    assert watch.verdict("people").kind == "still_rising"


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("num_prompts", [50, 100, 150])
def test_a_peak_whose_prompts_run_out_is_seen(num_prompts: int, seed: int) -> None:
    """Duels that neighbours beyond the cliff would lose are not counted against the peak."""
    distances = np.linspace(0.4, 4.8, 12)
    rates = np.where(distances <= 1.2, 0.5 + 0.25 * distances, 0.8 - 0.35 * (distances - 1.2))
    rates = np.maximum(rates, 0.15)
    watch = make(WatchConfig(), distances, num_prompts)
    play(watch, np.log(rates / (1 - rates)), 0.0, seed)
    verdict = watch.verdict("people")
    assert verdict.kind == "peaked"
    assert verdict.update in (40, 60, 80)


@pytest.mark.parametrize(("num_prompts", "num_kept"), [(160, 40), (256, 64)])
def test_the_confirmation_is_about_what_ships(num_prompts: int, num_kept: int) -> None:
    watch = make(WatchConfig(), DISTANCES[:16], num_prompts)
    asked = [(u, i) for u, i, _ in play(watch, cliff(DISTANCES)[:16], 0.1, 0)]
    phases = [(u, phase) for u, _, phase in watch.state()["asked"]]
    confirmed = [u for u, phase in phases if phase == "confirm"]
    assert num_kept <= len(confirmed) <= 200
    assert phases[-len(confirmed) :] == [(confirmed[0], "confirm")] * len(confirmed)
    assert len({*asked}) == len(asked) <= 1000
    verdict = watch.verdict("people")
    assert verdict.update == confirmed[0]
    assert f"% of {len(confirmed)} confirmation duels" in verdict.reason


@pytest.mark.parametrize("seed", [5, 7])
def test_a_rising_run_confirms_its_last_checkpoint_though_the_fit_peaks_before(seed: int) -> None:
    distances = np.linspace(0.4, 4.8, 8)
    watch = make(WatchConfig(num_labels=200), distances)
    play(watch, distances / 4.8, 0.1, seed, most=160)
    assert means_of(book_of(watch), distances).argmax() == 6
    assert [u for u, _ in watch.next_duels()] == [160] * 40
    play(watch, distances / 4.8, 0.1, seed)
    verdict = watch.verdict("people")
    assert (verdict.kind, verdict.update) == ("still_rising", 160)
    assert "of 40 confirmation duels" in verdict.reason


def test_why_each_duel_is_asked() -> None:
    """focus: the fit puts the checkpoint within half of the highest log odds; explore: below."""
    watch = make(WatchConfig(num_labels=300), DISTANCES)
    play(watch, cliff(DISTANCES), 0.25, 0, most=75)
    batches: list[Counter[str]] = []
    while questions := watch.next_duels():
        book = book_of(watch)
        means = means_of(book, DISTANCES)
        near = means >= means.max() - abs(means.max()) / 2
        phases = [book.asked[question] for question in questions]
        for (update, _), phase in zip(questions, phases, strict=True):
            if phase in ("focus", "explore"):
                assert near[update // 20 - 1] == (phase == "focus")
            if phase == "last":
                assert update == 440
        batches.append(Counter(phases))
        play(watch, cliff(DISTANCES), 0.25, len(batches), most=len(questions))
    total = sum(batches, Counter())
    assert min(total["focus"], total["explore"], total["last"]) >= 8
    assert total["confirm"] == 60
    assert all(batch["last"] in (0, batch.total() // 5) for batch in batches)
    assert [batch.total() for batch in batches[:-2]] == [40] * (len(batches) - 2)


def test_a_late_checkpoint_gets_its_first_pass() -> None:
    watch = make(WatchConfig(num_labels=200), DISTANCES[:5])
    play(watch, np.full(5, 0.5), 0.0, 0, most=60)
    while watch.next_duels()[-1][0] != 120:
        watch.observe(Observation(update=120, distance=1.8, proxy=0.5))
        for update, prompt_index in watch.next_duels():
            watch.answer(Duel(update=update, prompt_index=prompt_index, outcome=1.0))
    assert Counter(u for u, _ in watch.next_duels())[120] >= 8


@pytest.mark.parametrize("distance", [math.nan, math.inf, -0.1])
def test_bad_distances_are_refused(distance: float) -> None:
    with pytest.raises(ValueError, match="distance"):
        Watch(WatchConfig(), 10).observe(Observation(update=1, distance=distance, proxy=0.5))


def test_bad_calls_are_refused() -> None:
    watch = make(WatchConfig(), DISTANCES)
    update, prompt_index = watch.next_duels()[0]
    with pytest.raises(ValueError, match="outcome"):
        watch.answer(Duel(update=update, prompt_index=prompt_index, outcome=math.nan))
    with pytest.raises(ValueError, match="not among"):
        watch.answer(Duel(update=7, prompt_index=0, outcome=1.0))
    watch.answer(Duel(update=update, prompt_index=prompt_index, outcome=1.0))
    with pytest.raises(ValueError, match="not among"):
        watch.answer(Duel(update=update, prompt_index=prompt_index, outcome=1.0))
    with pytest.raises(ValueError, match="observed before"):
        watch.observe(Observation(update=20, distance=9.0, proxy=0.5))
    with pytest.raises(ValueError, match="update must be >= 0"):
        watch.observe(Observation(update=-1, distance=9.0, proxy=0.5))
    with pytest.raises(ValueError, match="num_prompts"):
        Watch(WatchConfig(), 0)
    for bad in ({"num_labels": 0}, {"first_share": 1.0}, {"confidence": 0.4}):
        with pytest.raises(ValueError, match=next(iter(bad))):
            WatchConfig(**bad)


def test_the_verdict_is_a_record_of_plain_values() -> None:
    watch = make(WatchConfig(num_labels=200), DISTANCES)
    play(watch, cliff(DISTANCES), 0.0, 0)
    verdict: Verdict = watch.verdict("people")
    from_json = json.loads(
        json.dumps([verdict.update, verdict.interval, verdict.win_rate_interval])
    )
    assert from_json[0] == verdict.update
    assert all(type(p.win_rate) is float and type(p.num_duels) is int for p in verdict.curve)
