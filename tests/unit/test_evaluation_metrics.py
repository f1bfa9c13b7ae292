"""What is counted beside a model's own metrics, on numbers that can be checked by hand."""

import pytest
import torch

from tautnet.evaluation.metrics import Evaluation, _Classes


def counted(num_classes, probabilities, labels, batches=1):
    tally = _Classes(num_classes)
    for x, y in zip(torch.tensor(probabilities).log().chunk(batches), torch.tensor(labels).chunk(batches), strict=True):
        tally.watch(None, (), x)
        tally.on_test_batch_end(None, None, None, (x, y), 0)
    return tally


@pytest.mark.parametrize("batches", [1, 2])
def test_calibration_error_is_the_mean_gap_over_bins(batches):
    """Two of confidence 0.9, one right: |0.9 - 0.5|; two of 0.6, both right: |0.6 - 1|."""
    tally = counted(2, [[0.9, 0.1], [0.1, 0.9], [0.6, 0.4], [0.4, 0.6]], [0, 0, 0, 1], batches)
    assert tally.metrics("test") == pytest.approx({"test/ece": 0.5 * 0.4 + 0.5 * 0.4})
    assert tally.confusion_KK.tolist() == [[2, 1], [0, 1]]
    assert tally.num_samples == 4


def test_gaps_of_one_bin_cancel_and_those_of_two_do_not():
    same = counted(2, [[0.75, 0.25], [0.75, 0.25], [0.75, 0.25], [0.25, 0.75]], [0, 0, 0, 0])
    assert same.metrics("val")["val/ece"] == pytest.approx(0, abs=1e-7)
    apart = counted(2, [[0.55, 0.45], [0.95, 0.05]], [0, 1])
    assert apart.metrics("val")["val/ece"] == pytest.approx((0.45 + 0.95) / 2)


def test_the_best_five_of_ten_classes_count():
    steps = (torch.arange(10, 0, -1) / 55).tolist()  # class 0 is the likeliest, class 9 the least
    tally = counted(10, [steps] * 3, [0, 4, 5])
    assert tally.metrics("test")["test/top5"] == pytest.approx(2 / 3)
    assert "test/top5" not in counted(2, [[0.5, 0.5]], [0]).metrics("test")


def test_a_single_logit_and_soft_targets_are_read_as_classes():
    tally = _Classes(2)
    tally.watch(None, (), torch.tensor([[2.0], [-1.0]]))
    tally.on_test_batch_end(None, None, None, (None, torch.tensor([[0.3, 0.7], [0.2, 0.8]])), 0)
    assert tally.confusion_KK.tolist() == [[0, 0], [1, 1]]


def test_classes_without_samples_have_no_accuracy():
    evaluation = Evaluation(3, {}, [[1, 1, 0], [0, 0, 0], [0, 0, 1]])
    assert evaluation.per_class == [0.5, None, 1.0]
