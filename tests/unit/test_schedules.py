"""Learning-rate schedules: factors at the first, the peak and the last step, and bad arguments."""

import re
from math import cos, pi

import pytest
import torch
from torch import nn
from torch.optim import SGD

from tautnet.optim.schedules import constant, cosine, multistep, onecycle, warmup


def rates(schedule, total_steps, **settings):
    """Rates of two groups during each of the steps, and after the last."""
    optimizer = SGD([{"params": [nn.Parameter(torch.zeros(1))], "lr": lr} for lr in (1.0, 0.5)], lr=1.0)
    scheduler = schedule(optimizer, total_steps, **settings)
    seen = []
    for _ in range(total_steps + 1):
        seen.append(scheduler.get_last_lr())
        optimizer.step()
        scheduler.step()
    first, second = zip(*seen, strict=True)
    assert second == pytest.approx([rate / 2 for rate in first])
    return first


def half_cosine(start, end, done):
    return end + (start - end) * (1 + cos(pi * done)) / 2


def test_constant_never_changes():
    assert set(rates(constant, 10)) == {1.0}


@pytest.mark.parametrize(("final_factor", "middle"), [(0.0, 0.5), (0.2, 0.6), (1.0, 1.0)])
def test_cosine_starts_at_one_and_ends_at_the_final_factor(final_factor, middle):
    seen = rates(cosine, 10, final_factor=final_factor)
    assert (seen[0], seen[5], seen[10]) == pytest.approx((1.0, middle, final_factor))
    assert list(seen) == sorted(seen, reverse=True)


@pytest.mark.parametrize("schedule", [cosine, warmup, onecycle])
def test_the_rate_does_not_rise_again_after_the_last_step(schedule):
    optimizer = SGD([nn.Parameter(torch.zeros(1))], lr=1.0)
    scheduler = schedule(optimizer, 2, final_factor=0.0)
    for _ in range(4):
        optimizer.step()
        scheduler.step()
    assert scheduler.get_last_lr() == [0.0]


def test_multistep_drops_at_the_milestones():
    seen = rates(multistep, 8, milestones=(0.5, 0.75), factor=0.1)
    assert seen == pytest.approx([1.0] * 4 + [0.1] * 2 + [0.01] * 3)


def test_multistep_default_drops_three_times():
    seen = rates(multistep, 8)
    assert seen == pytest.approx([1.0] * 4 + [0.1] * 2 + [0.01] + [0.001] * 2)


def test_warmup_rises_in_equal_steps_and_falls_along_a_cosine():
    seen = rates(warmup, 10, warmup_fraction=0.3, final_factor=0.2)
    assert seen[:4] == pytest.approx((0.25, 0.5, 0.75, 1.0))
    assert seen[4:] == pytest.approx([half_cosine(1.0, 0.2, k / 7) for k in range(1, 8)])
    assert seen[10] == 0.2


@pytest.mark.parametrize(("fraction", "peak"), [(0.05, 5), (0.07, 7), (0.001, 1), (0.999, 99)])
def test_warmup_takes_its_part_of_the_steps_and_leaves_a_full_one(fraction, peak):
    seen = rates(warmup, 100, warmup_fraction=fraction)
    assert seen.index(1.0) == peak
    assert seen[0] == 1 / (peak + 1)


@pytest.mark.parametrize("anneal", ["linear", "cosine"])
def test_onecycle_has_the_stated_first_peak_and_last_rates(anneal):
    seen = rates(onecycle, 10, warmup_fraction=0.4, start_factor=0.1, final_factor=0.01, anneal=anneal)
    assert (seen[0], seen[4], seen[10]) == (pytest.approx(0.1), 1.0, pytest.approx(0.01))
    assert list(seen[:5]) == sorted(seen[:5])
    assert list(seen[4:]) == sorted(seen[4:], reverse=True)


def test_onecycle_between_its_ends():
    linear = rates(onecycle, 10, warmup_fraction=0.4, start_factor=0.2, final_factor=0.0, anneal="linear")
    assert linear == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0, 5 / 6, 4 / 6, 3 / 6, 2 / 6, 1 / 6, 0.0])
    curved = rates(onecycle, 10, warmup_fraction=0.4, start_factor=0.2, final_factor=0.0)
    assert curved[1] == pytest.approx(half_cosine(0.2, 1.0, 1 / 4))
    assert curved[6] == pytest.approx(half_cosine(1.0, 0.0, 2 / 6))


@pytest.mark.parametrize("schedule", [cosine, warmup, onecycle])
def test_a_training_of_one_step_has_the_full_rate(schedule):
    assert rates(schedule, 1, final_factor=0.3) == pytest.approx([1.0, 0.3])


@pytest.mark.parametrize(
    ("schedule", "settings", "message"),
    [
        (cosine, {"final_factor": -0.1}, "final_factor=-0.1"),
        (cosine, {"final_factor": 1.1}, "final_factor=1.1"),
        (cosine, {"final_factor": float("nan")}, "final_factor=nan"),
        (multistep, {"milestones": (0.5, 1.0)}, "milestones=[0.5, 1.0]"),
        (multistep, {"milestones": (0.0,)}, "milestones=[0.0]"),
        (multistep, {"factor": 0.0}, "factor=0.0"),
        (multistep, {"factor": 1.5}, "factor=1.5"),
        (warmup, {"warmup_fraction": 0.0}, "warmup_fraction=0.0"),
        (warmup, {"warmup_fraction": 1.0}, "warmup_fraction=1.0"),
        (warmup, {"final_factor": 2.0}, "final_factor=2.0"),
        (onecycle, {"warmup_fraction": float("nan")}, "warmup_fraction=nan"),
        (onecycle, {"start_factor": -0.5}, "start_factor=-0.5"),
        (onecycle, {"final_factor": 1.5}, "final_factor=1.5"),
        (onecycle, {"anneal": "spiral"}, "anneal=spiral"),
    ],
)
def test_bad_schedule_settings_are_named_with_their_value(schedule, settings, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        schedule(SGD([nn.Parameter(torch.zeros(1))], lr=1.0), 10, **settings)
