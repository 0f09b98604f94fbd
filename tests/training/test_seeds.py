import pytest

from crestline.training.seeds import Shuffled, stream


def test_streams_are_the_same_on_every_machine() -> None:
    # printf 0/rl/1 | sha256sum, the first 63 bits; old runs resume only if this stays
    assert stream(0, "rl", 1) == 1816338060027315086


def test_streams_differ_by_seed_and_purpose() -> None:
    names = [(0, "a", 1), (0, "a", 2), (1, "a", 1), (0, "b", 1), (0, "a", 1, 0), (0, "a", 11)]
    found = {stream(*name) for name in names}
    assert len(found) == len(names)
    assert all(0 <= number < 2**63 for number in found)


def test_every_epoch_is_another_order_of_all_rows() -> None:
    rows = Shuffled(50, seed=0).rows(0, 150)
    epochs = [rows[:50], rows[50:100], rows[100:]]
    assert all(sorted(epoch) == list(range(50)) for epoch in epochs)
    assert epochs[0] != epochs[1] != epochs[2] != list(range(50))
    assert Shuffled(50, seed=1).rows(0, 50) != epochs[0]


def test_rows_can_be_read_from_anywhere_in_any_order() -> None:
    order = Shuffled(7, seed=3)
    whole = order.rows(0, 40)
    assert order.rows(33, 7) == whole[33:]
    assert order.rows(5, 10) == whole[5:15]
    assert Shuffled(7, seed=3).rows(20, 3) == whole[20:23]


def test_nothing_cannot_be_shuffled() -> None:
    with pytest.raises(ValueError, match="nothing to shuffle"):
        Shuffled(0, seed=0)
