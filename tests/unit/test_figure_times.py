"""Figures of a long training: all of the first, ever fewer later."""

import pytest

from tautnet.callbacks.figure_times import last_due


def drawn(epochs: int, every: int) -> list[int]:
    return [epoch for epoch in range(1, epochs + 1) if last_due(epoch, every) == epoch]


def test_the_first_twenty_are_evenly_spaced():
    assert drawn(200, 10) == list(range(10, 201, 10))
    assert drawn(5, 1) == [1, 2, 3, 4, 5]


def test_the_distance_doubles_again_and_again():
    assert drawn(400, 10)[20:] == list(range(220, 401, 20))
    assert drawn(800, 10)[30:] == list(range(440, 801, 40))


def test_a_hundred_thousand_epochs_draw_few():
    assert len(drawn(100_000, 1)) == 20 + 10 * 12 + 2


@pytest.mark.parametrize("every", [1, 3, 10])
def test_the_last_time_never_goes_back(every):
    times = [last_due(epochs, every) for epochs in range(1000)]
    assert times == sorted(times)
    assert all(time <= epochs and time % every == 0 for epochs, time in enumerate(times))
