"""Digits and Area."""

from math import pi

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits

from tautnet.data.area import Area, inside
from tautnet.data.digits import Digits

# --- Digits -----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def digits():
    return Digits()


def parts(data):
    return [(part.inputs, part.targets) for part in (data.splits.train, data.splits.val, data.splits.test)]


def test_digits_sizes_types_and_shapes(digits):
    assert [len(x) for x, _ in parts(digits)] == [1257, 180, 360]
    for x, y in parts(digits):
        assert x.shape[1:] == digits.input_shape == (1, 8, 8)
        assert (x.dtype, y.dtype) == (torch.float32, torch.int64)
        assert set(y.tolist()) == set(range(digits.num_outputs))


def test_digits_parts_are_disjoint_and_together_the_whole_set(digits):
    images, classes = load_digits(return_X_y=True)
    mean, deviation = restored_statistics(digits, images)
    seen = [
        (*np.rint(image.flatten().double().numpy() * deviation + mean).astype(int), int(label))
        for x, y in parts(digits)
        for image, label in zip(x, y, strict=True)
    ]
    assert sorted(seen) == sorted(
        (*image.astype(int), int(label)) for image, label in zip(images, classes, strict=True)
    )


def restored_statistics(data, images):
    """Mean and deviation of the pixels before standardisation, from the smallest and largest pixel, 0 and 16."""
    lowest, highest = (float(value) for value in data.splits.train.inputs.aminmax())
    deviation = (images.max() - images.min()) / (highest - lowest)
    return images.min() - lowest * deviation, deviation


def test_digits_are_stratified(digits):
    shares = [torch.bincount(y, minlength=10) / len(y) for _, y in parts(digits)]
    for share in shares:
        torch.testing.assert_close(share, shares[0], rtol=0, atol=0.006)


def test_digits_are_standardised_by_the_training_part_alone(digits):
    train, val, test = (x.double() for x, _ in parts(digits))
    assert train.mean().item() == pytest.approx(0, abs=1e-6)
    assert train.std(correction=0).item() == pytest.approx(1, abs=1e-6)
    assert abs(val.mean().item()) > 1e-4
    assert abs(test.mean().item()) > 1e-4


def test_digits_split_depends_on_the_split_seed_and_not_on_the_order_seed(digits):
    assert torch.equal(Digits(seed=5).splits.test.inputs, digits.splits.test.inputs)
    assert not torch.equal(Digits(split_seed=5).splits.test.inputs, digits.splits.test.inputs)


@pytest.mark.parametrize(("val", "test"), [(0.01, 0.01), (0.01, 0.98), (0.98, 0.01), (0.3, 0.5)])
def test_digits_fractions_are_shares_of_all_samples(val, test):
    data = Digits(batch_size=1, val_fraction=val, test_fraction=test)
    sizes = [len(x) for x, _ in parts(data)]
    assert sum(sizes) == 1797
    assert sizes[1:] == pytest.approx([1797 * val, 1797 * test], abs=1)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"batch_size": 0}, "batch_size=0"),
        ({"batch_size": 1258}, "batch_size=1258"),
        ({"val_fraction": 0.0}, "val_fraction=0.0"),
        ({"test_fraction": 1.0}, "test_fraction=1.0"),
        ({"test_fraction": float("nan")}, "test_fraction=nan"),
        ({"val_fraction": 0.5, "test_fraction": 0.5}, "val_fraction=0.5"),
    ],
)
def test_bad_digits_arguments_are_named_with_their_value(settings, message):
    with pytest.raises(ValueError, match=message):
        Digits(**settings)


def test_training_batches_are_full_and_evaluation_covers_everything(digits):
    assert {len(y) for _, y in digits.train_dataloader()} == {64}
    assert len(digits.train_dataloader()) == 1257 // 64
    assert sum(len(y) for _, y in digits.val_dataloader()) == 180
    assert sum(len(y) for _, y in digits.test_dataloader()) == 360


# --- Area -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("shape", "point", "expected"),
    [
        ("circle", (0.0, 0.0), True),
        ("circle", ((2 / pi) ** 0.5 - 1e-3, 0.0), True),
        ("circle", ((2 / pi) ** 0.5 + 1e-3, 0.0), False),
        ("circle", (-0.56, 0.56), True),
        ("circle", (-0.57, 0.57), False),
        ("s_shape", (0.0, 0.0), True),
        ("s_shape", (0.31, 0.0), False),
        ("s_shape", (-0.4, pi / 10), True),  # sin(-5 y) = -1: the S swings to the left
        ("s_shape", (0.4, pi / 10), False),
        ("s_shape", (0.4, -pi / 10), True),
        ("s_shape", (-0.69, pi / 10), True),
        ("s_shape", (-0.71, pi / 10), False),
        ("s_shape", (0.3, 0.79), True),
        ("s_shape", (0.3, 0.81), False),
    ],
)
def test_area_formulas(shape, point, expected):
    assert inside(torch.tensor([point]), shape).tolist() == [expected]


@pytest.mark.parametrize(("shape", "share"), [("circle", 0.5), ("s_shape", 0.24)])
def test_share_of_positives(shape, share):
    data = Area(shape=shape)
    train, val, test = (y.double().mean().item() for _, y in parts(data))
    assert test == pytest.approx(share, abs=2e-3)
    assert [train, val] == pytest.approx([share, share], abs=0.04)  # three deviations of 1500 draws


@pytest.mark.parametrize("shape", ["circle", "s_shape"])
def test_area_sizes_types_and_labels(shape):
    data = Area(shape=shape)
    assert [len(x) for x, _ in parts(data)] == [1500, 1500, 40_000]
    assert (data.input_shape, data.num_outputs) == ((2,), 2)
    for x, y in parts(data):
        assert (x.dtype, y.dtype) == (torch.float32, torch.int64)
        assert x.abs().max() <= 1
        assert torch.equal(y, inside(x, shape).long())


def test_area_points_fill_the_square():
    for x, _ in parts(Area())[:2]:
        quadrants = torch.bincount((x > 0).long() @ torch.tensor([1, 2]), minlength=4)
        assert (quadrants > 300).all()
        assert (x.amax(0) > 0.99).all()
        assert (x.amin(0) < -0.99).all()


def test_area_test_grid_is_200_by_200_cell_centres():
    x = Area().splits.test.inputs.double()
    axis = torch.linspace(-0.995, 0.995, 200, dtype=torch.float64)
    assert (axis[1] - axis[0]).item() == pytest.approx(0.01)
    torch.testing.assert_close(x.view(200, 200, 2)[:, :, 0], axis.view(-1, 1).expand(200, 200), rtol=0, atol=1e-6)
    torch.testing.assert_close(x.view(200, 200, 2)[:, :, 1], axis.expand(200, 200), rtol=0, atol=1e-6)


def test_area_points_depend_on_the_sample_seed_and_not_on_the_order_seed():
    base = Area()
    assert torch.equal(Area(seed=5).splits.train.inputs, base.splits.train.inputs)
    assert not torch.equal(Area(sample_seed=5).splits.train.inputs, base.splits.train.inputs)
    assert not torch.equal(base.splits.train.inputs, base.splits.val.inputs)


def test_training_order_depends_on_the_seed():
    first, again, other = (next(iter(Area(seed=seed).train_dataloader()))[0] for seed in (0, 0, 1))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert torch.equal(next(iter(Area(shuffle=False).train_dataloader()))[0], Area().splits.train.inputs[:10])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"shape": "square"}, "shape=square"),
        ({"num_points": 1}, "num_points=1"),
        ({"batch_size": 0}, "batch_size=0"),
        ({"num_points": 20, "batch_size": 21}, "batch_size=21"),
    ],
)
def test_bad_area_arguments_are_named_with_their_value(settings, message):
    with pytest.raises(ValueError, match=message):
        Area(**settings)
