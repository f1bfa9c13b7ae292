"""The page of custom scalars."""

import re

from tautnet import logkeys
from tautnet.callbacks.board_layout import layout

CLASSIFIER = [
    *(logkeys.loss("train"), logkeys.accuracy("val"), logkeys.accuracy("test"), logkeys.loss_term("task")),
    *(logkeys.loss_term("tv2"), logkeys.ACTIVE_KNOTS, logkeys.TV2, logkeys.LIPSCHITZ_BOUND, logkeys.LIPSCHITZ_LOWER),
]


def shown(chart, names):
    kind, patterns = chart
    assert kind == "Multiline"
    return [name for name in names if any(re.match(pattern, name) for pattern in patterns)]


def test_what_belongs_together_is_in_one_chart_or_side_by_side():
    found = layout(CLASSIFIER)
    assert list(found) == ["Lipschitz", "Quality", "Splines", "Loss"]
    together = shown(found["Lipschitz"]["bound and observed, p = 2"], CLASSIFIER)
    assert together == [logkeys.LIPSCHITZ_BOUND, logkeys.LIPSCHITZ_LOWER]
    assert list(found["Splines"]) == ["active knots", "TV2"]
    terms = shown(found["Loss"]["terms of the training loss"], CLASSIFIER)
    assert terms == ["train/loss", "loss/task", "loss/tv2"]


def test_certificates_stand_beside_the_accuracy():
    names = [*CLASSIFIER, logkeys.CERTIFIED_CLEAN, logkeys.certified("l2", 0.1), logkeys.attacked("l2", 0.1)]
    quality = layout(names)["Quality"]
    assert list(quality) == ["accuracy", "accuracy certified and under attack"]
    assert shown(quality["accuracy certified and under attack"], names) == names[-3:]


def test_the_chart_of_every_p_is_its_own():
    names = [logkeys.lipschitz(quantity, p) for quantity in ("bound", "lower") for p in (1, 2, float("inf"))]
    for p in ("1", "2", "inf"):
        chart = layout(names)["Lipschitz"][f"bound and observed, p = {p}"]
        assert shown(chart, names) == [f"lipschitz/bound_p{p}", f"lipschitz/lower_p{p}"]


def test_no_chart_is_empty():
    assert layout([]) == {}
    assert list(layout(["val/r2", "train/loss"])["Quality"]) == ["R2"]
    for charts in layout(CLASSIFIER).values():
        assert all(shown(chart, CLASSIFIER) for chart in charts.values())


def test_runs_have_charts_in_common():
    """TensorBoard joins charts of several runs that are the same; another term of the loss must not make another."""
    few, many = layout(["loss/task"]), layout(["loss/task", "loss/tv2", "val/acc"])
    assert few["Loss"] == many["Loss"]
