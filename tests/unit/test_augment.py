"""Crop, flip, cutout, mixing and labels, compared pixel by pixel with plain loops."""

import math

import numpy as np
import pytest
import torch

from tautnet.data.augment import Augmentation, cut_out, draw, mirror, soft_targets, windows
from tautnet.data.image_samples import Colours, ImageSamples

pytestmark = pytest.mark.usefixtures("float64")
SIZE = (5, 7)
CLASSES = 4


def random_images(count=12, channels=3, size=SIZE):
    rng = np.random.default_rng(1)
    return torch.from_numpy(rng.integers(1, 256, (count, channels, *size), dtype=np.uint8))


def one_epoch(images, settings, order=None, seed=5, colours=None):
    """Order, draws and the one batch of an epoch."""
    classes = torch.arange(len(images)) % CLASSES
    colours = colours or Colours(torch.zeros(images.shape[1]).double(), torch.ones(images.shape[1]).double())
    order = torch.arange(len(images)) if order is None else order
    samples = ImageSamples.padded(images, classes, CLASSES, colours, settings)
    assert samples.sample_shape == tuple(images.shape[1:])
    batch = samples.start_epoch(order, np.random.default_rng(seed))(slice(0, len(order)))
    return order, draw(settings, tuple(images.shape[2:]), len(order), np.random.default_rng(seed)), batch


def changed_by_hand(image_CHW, settings, draws, i, mean, deviation):
    """Crop, flip, standardise and cut out one image."""
    C, H, W = image_CHW.shape
    padded = np.zeros((C, H + 2 * settings.crop, W + 2 * settings.crop))
    padded[:, settings.crop : settings.crop + H, settings.crop : settings.crop + W] = image_CHW
    x = padded[:, draws.top[i] : draws.top[i] + H, draws.left[i] : draws.left[i] + W]
    x = x[:, :, ::-1].copy() if settings.flip and draws.flip[i] else x
    x = (x - mean[:, None, None]) / deviation[:, None, None]
    top, left = (int(c) - settings.cutout // 2 for c in draws.centre[i])
    for row in range(H):
        for column in range(W):
            if 0 <= row - top < settings.cutout and 0 <= column - left < settings.cutout:
                x[:, row, column] = 0
    return x


def mixed_by_hand(x, y, other_x, other_y, draws, i):
    """Mixup, or cutmix where the draws say box."""
    share = draws.share[i].item()
    weight = np.full(x.shape[1:], share)
    if draws.box[i]:
        sides = [round(float(np.sqrt(np.float32(1) - np.float32(share)) * np.float32(n))) for n in x.shape[1:]]
        low = [
            round(float(np.float32(c.item()) * np.float32(n) - np.float32(s / 2)))
            for c, n, s in zip(draws.box_centre[i], x.shape[1:], sides, strict=True)
        ]
        for row in range(x.shape[1]):
            for column in range(x.shape[2]):
                inside = 0 <= row - low[0] < sides[0] and 0 <= column - low[1] < sides[1]
                weight[row, column] = 0 if inside else 1
        share = weight.mean()
    return weight * x + (1 - weight) * other_x, share * y + (1 - share) * other_y


@pytest.mark.parametrize(
    "settings",
    [
        Augmentation(crop=1),
        Augmentation(crop=4),
        Augmentation(flip=True),
        Augmentation(cutout=1),
        Augmentation(cutout=4),
        Augmentation(cutout=99),
        Augmentation(mixup=1.0),
        Augmentation(cutmix=1.0),
        Augmentation(mixup=0.3, cutmix=0.7),
        Augmentation(crop=2, flip=True, cutout=3, mixup=0.5, cutmix=1.0, label_smoothing=0.2),
    ],
    ids=str,
)
@pytest.mark.parametrize("channels", [1, 3])
def test_every_pixel_and_label(settings, channels):
    images = random_images(40, channels)
    mean, deviation = np.arange(1.0, channels + 1), np.arange(2.0, channels + 2)
    colours = Colours(torch.from_numpy(mean), torch.from_numpy(deviation))
    order, draws, (x, y) = one_epoch(images, settings, torch.randperm(40), colours=colours)
    one_hot = np.eye(CLASSES)[order % CLASSES] * (1 - settings.label_smoothing) + settings.label_smoothing / CLASSES
    plain = [changed_by_hand(images[n].numpy(), settings, draws, i, mean, deviation) for i, n in enumerate(order)]
    for i in range(40):
        expected = plain[i], one_hot[i]
        if settings.mixes:
            following = (i + 1) % 40
            expected = mixed_by_hand(*expected, plain[following], one_hot[following], draws, i)
        torch.testing.assert_close(x[i], torch.from_numpy(expected[0]), rtol=1e-12, atol=1e-12)
        found = y[i] if settings.softens else torch.eye(CLASSES)[y[i]]
        torch.testing.assert_close(found, torch.from_numpy(expected[1]), rtol=1e-6, atol=1e-7)  # shares are float32


def test_without_settings_images_are_standardised_and_nothing_else():
    images, settings = random_images(), Augmentation()
    order, _, (x, y) = one_epoch(images, settings, torch.randperm(12))
    assert torch.equal(x, images[order].double())
    assert torch.equal(y, order % CLASSES)
    assert y.dtype == torch.int64
    assert not settings.softens
    assert not settings.mixes


@pytest.mark.parametrize("channels", [1, 3])
def test_windows_equal_slices_at_every_place(channels):
    images = random_images(3, channels, (6, 8))
    places = [(n, top, left) for n in (2, 0, 1) for top in range(3) for left in range(5)]
    found = windows(images, *torch.tensor(places).T, (4, 4))
    for cut, (n, top, left) in zip(found, places, strict=True):
        assert torch.equal(cut, images[n, :, top : top + 4, left : left + 4])


def test_mirror_turns_left_to_right():
    images = random_images(3)
    assert torch.equal(
        mirror(images, torch.tensor([1, 0, 1])), torch.stack([images[0].flip(2), images[1], images[2].flip(2)])
    )


@pytest.mark.parametrize(
    ("centre", "side", "rows", "columns"),
    [
        ((2, 3), 2, (1, 3), (2, 4)),
        ((2, 3), 3, (1, 4), (2, 5)),
        ((0, 0), 4, (0, 2), (0, 2)),
        ((4, 6), 4, (2, 5), (4, 7)),
        ((4, 0), 1, (4, 5), (0, 1)),
        ((2, 3), 20, (0, 5), (0, 7)),
    ],
)
def test_cut_out_square_and_its_clipping(centre, side, rows, columns):
    expected = torch.ones(1, 2, *SIZE)
    expected[:, :, slice(*rows), slice(*columns)] = 0
    assert torch.equal(cut_out(torch.ones(1, 2, *SIZE), torch.tensor([centre]), side), expected)


def two_colours(settings, count=400):
    """Images of 0 and 200 in turn, so that a pixel tells whose it is: draws, own shares, own label, all labels."""
    images = (torch.arange(count) % 2 * 200).to(torch.uint8).view(-1, 1, 1, 1).expand(-1, 1, *SIZE).contiguous()
    _, draws, (x, y) = one_epoch(images, settings)
    own = 1 - (x - images.double()).abs() / 200  # share of the image itself in each pixel
    return draws, own, y[torch.arange(count), torch.arange(count) % CLASSES], y


def test_cutmix_labels_are_the_real_pixel_share_and_boxes_have_the_drawn_area():
    draws, own, label, y = two_colours(Augmentation(cutmix=1.0))
    assert set(own.unique().tolist()) == {0.0, 1.0}
    torch.testing.assert_close(label, own.mean((1, 2, 3)), rtol=0, atol=1e-7)
    torch.testing.assert_close(y.sum(1), torch.ones(400))
    drawn = 1 - draws.share.double()
    assert (1 - label <= (drawn.sqrt() * 5 + 0.51) * (drawn.sqrt() * 7 + 0.51) / 35).all()
    inner = ((draws.box_centre - 0.5).abs().amax(1) < 0.1) & (drawn < 0.5)  # away from the border: not clipped
    assert inner.sum() > 5
    assert (1 - label[inner] - drawn[inner]).abs().max() < 0.5 / 5 + 0.5 / 7
    assert ((own == 0).any(0).all()) & ((own == 1).any(0).all())  # boxes reach every pixel and leave every pixel
    assert label.unique().numel() > 10


def test_mixup_labels_are_the_share_of_the_image():
    draws, own, label, y = two_colours(Augmentation(mixup=0.4))
    torch.testing.assert_close(own.amin((1, 2, 3)), own.amax((1, 2, 3)))
    torch.testing.assert_close(label, own[:, 0, 0, 0], rtol=0, atol=1e-6)
    torch.testing.assert_close(y.sum(1), torch.ones(400))
    assert not draws.box.any()


@pytest.mark.parametrize("alpha", [0.2, 1.0, 4.0])
@pytest.mark.parametrize("kind", ["mixup", "cutmix"])
def test_shares_follow_the_beta_distribution(kind, alpha):
    share = draw(Augmentation(**{kind: alpha}), SIZE, 20_000, np.random.default_rng(0)).share.double()
    variance = 1 / (4 * (2 * alpha + 1))
    assert share.mean().item() == pytest.approx(0.5, abs=4 * math.sqrt(variance / 20_000))
    assert share.var().item() == pytest.approx(variance, rel=0.05)


def test_each_of_both_mixtures_takes_half_of_the_images_with_its_own_alpha():
    draws = draw(Augmentation(mixup=50.0, cutmix=0.05), SIZE, 10_000, np.random.default_rng(0))
    assert draws.box.double().mean().item() == pytest.approx(0.5, abs=0.02)
    assert (draws.share[~draws.box] - 0.5).abs().max() < 0.3
    assert ((draws.share[draws.box] - 0.5).abs() > 0.4).double().mean() > 0.7


def test_all_windows_occur_and_half_of_the_images_are_flipped():
    count = 1800
    image = torch.arange(1, 36, dtype=torch.uint8).view(1, 1, *SIZE).expand(count, -1, -1, -1).contiguous()
    _, _, (x, _) = one_epoch(image, Augmentation(crop=1, flip=True))
    flipped = x[:, 0, 2, 2] > x[:, 0, 2, 3]
    assert flipped.double().mean().item() == pytest.approx(0.5, abs=4 * 0.5 / math.sqrt(count))
    found, counts = x.flatten(1).unique(dim=0, return_counts=True)
    assert len(found) == 18  # 9 windows, both ways
    assert (counts - 100).abs().max() < 45
    upright = torch.where(flipped.view(-1, 1, 1, 1), x.flip(3), x)
    assert upright[:, 0, 2, 3].unique().tolist() == [10, 11, 12, 17, 18, 19, 24, 25, 26]


def test_cutout_is_centred_on_every_pixel_alike():
    _, _, (x, _) = one_epoch(torch.ones(3500, 1, *SIZE, dtype=torch.uint8), Augmentation(cutout=1))
    holes = (x == 0).sum((0, 1))
    assert holes.sum() == 3500
    assert (holes - 100).abs().max() < 45


def test_label_smoothing_sums_to_one():
    y = soft_targets(torch.tensor([2, 0]), 5, 0.1)
    torch.testing.assert_close(y, torch.tensor([[0.02, 0.02, 0.92, 0.02, 0.02], [0.92, 0.02, 0.02, 0.02, 0.02]]))
    torch.testing.assert_close(y.sum(1), torch.ones(2))


@pytest.mark.parametrize("name", ["crop", "cutout", "mixup", "cutmix", "label_smoothing"])
@pytest.mark.parametrize("value", [-1, float("nan"), float("inf")])
def test_values_out_of_range(name, value):
    with pytest.raises(ValueError, match=rf"\A{name}={value}: "):
        Augmentation(**{name: value})


def test_all_of_a_label_cannot_be_smoothed_away():
    with pytest.raises(ValueError, match=r"\Alabel_smoothing=1\.0: from 0 to below 1"):
        Augmentation(label_smoothing=1.0)
