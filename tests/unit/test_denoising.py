"""Noise as a function of its place, patches of gray images, and whole ones."""

import math
import re

import numpy as np
import pytest
import torch
from data_files import write_gray_images

from tautnet.data.denoising import Denoising, NoisyImages, PatchSamples
from tautnet.data.noise import normal_at

# --- noise ------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def noise():
    return normal_at(torch.arange(4000), 7, 50).double()


def test_moments_and_tails_of_the_noise(noise):
    flat, count = noise.flatten(), noise.numel()
    for power, expected in ((1, 0), (2, 1), (3, 0), (4, 3), (6, 15)):
        variance = math.prod(range(1, 2 * power, 2)) - expected**2  # of x^power
        assert flat.pow(power).mean().item() == pytest.approx(expected, abs=4 * math.sqrt(variance / count))
    for limit in (0.5, 1.0, 2.0, 3.0):
        tail = math.erfc(limit / math.sqrt(2))
        share = (flat.abs() > limit).double().mean().item()
        assert share == pytest.approx(tail, abs=4 * math.sqrt(tail / count))
    assert flat.isfinite().all()
    assert flat.unique().numel() > 0.97 * count  # float32 numbers near 0 meet now and then


def test_noise_is_uncorrelated_between_places_numbers_and_seeds(noise):
    other = normal_at(torch.arange(4000), 8, 50).double()
    pairs = [(noise[1:], noise[:-1]), (noise[:, 1:], noise[:, :-1]), (noise, other), (noise.square(), other.square())]
    pairs += [(noise.flatten()[1:], other.flatten()[:-1]), (noise.flatten()[:-1], other.flatten()[1:])]
    pairs += [(noise[1:].square(), noise[:-1].square()), (noise[1:, 1:], other[:-1, :-1])]
    for a, b in pairs:
        correlation = torch.corrcoef(torch.stack([a.flatten(), b.flatten()]))[0, 1].item()
        assert abs(correlation) < 4.5 / math.sqrt(a.numel())


def mixed(z):
    """SplitMix's 64-bit mix with Python's integers."""
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB), (31, 1)):
        z = (z ^ (z >> shift)) * factor % 2**64
    return z


@pytest.mark.parametrize("seed", [0, 5, 2**62 - 1])
def test_noise_against_integers_without_overflow(seed):
    found, step = normal_at(torch.tensor([0, 3, 2**33]), seed, 4).double(), 0x9E3779B97F4A7C15
    for row, place in enumerate((0, 3, 2**33)):
        for i in range(4):
            z = mixed(((place * 4 + i + 1) * step + mixed(seed * step % 2**64)) % 2**64)
            low, high = (z % 2**24 + 0.5) / 2**24, (z >> 32) % 2**24 / 2**24
            expected = math.sqrt(-2 * math.log(low)) * math.cos(2 * math.pi * high)
            assert found[row, i].item() == pytest.approx(expected, abs=1e-5)


def test_noise_depends_on_seed_and_place_alone():
    places = torch.randperm(100)
    whole = normal_at(places, 3, 17)
    assert whole.dtype == torch.float32
    assert torch.equal(torch.cat([normal_at(part, 3, 17) for part in places.split(7)]), whole)
    assert torch.equal(normal_at(places.flip(0), 3, 17), whole.flip(0))
    assert torch.equal(normal_at(torch.arange(100), 3, 17)[places], whole)
    assert not torch.equal(normal_at(places, 4, 17), whole)


@pytest.mark.parametrize("seed", [0, 2**62 - 1])
def test_noise_far_out(seed):
    x = normal_at(torch.tensor([0, 2**40]), seed, 5000).double()
    assert x.isfinite().all()
    assert x.std().item() == pytest.approx(1, abs=0.04)
    assert not torch.equal(x[0], x[1])


# --- patches ----------------------------------------------------------------------------------------------------------


def pixels(count, height, width):
    """Images whose every pixel value is different, up to 256 of them."""
    return torch.arange(count * height * width).view(count, 1, height, width).to(torch.uint8)


def one_epoch(samples, seed=0):
    order = torch.randperm(len(samples))
    return order, *samples.start_epoch(order, np.random.default_rng(seed))(slice(0, len(order)))


def test_every_patch_is_a_window_of_its_image_and_all_kinds_occur(float64):
    images = pixels(2, 5, 6)
    samples = PatchSamples(images, 4, 300, 25.0)
    assert (len(samples), samples.sample_shape, samples.nbytes) == (600, (1, 4, 4), 60)
    order, noisy, clean = one_epoch(samples)
    kinds = {}
    for n in range(2):
        for top in range(2):
            for left in range(3):
                window = images[n, 0, top : top + 4, left : left + 4]
                for k, turned in enumerate((window, window.flip(1), window.T, window.flip(1).T)):
                    kinds[tuple(turned.flatten().tolist())] = (n, top, left, k)
    found = [kinds[tuple(patch)] for patch in (clean * 255).round().long().flatten(1).tolist()]
    assert [n for n, *_ in found] == (order % 2).tolist()
    counts = [found.count(kind) for kind in kinds.values()]
    assert len(counts) == 48
    assert min(counts) >= 2
    assert max(counts) < 35
    assert noisy.shape == clean.shape == (600, 1, 4, 4)
    torch.testing.assert_close(clean * 255, (clean * 255).round())
    assert one_epoch(PatchSamples(images, 4, 300, 25.0), seed=1)[2].ne(clean).any()


def test_noise_of_patches_has_its_deviation_and_is_not_that_of_another_epoch(float64):
    samples = PatchSamples(pixels(4, 8, 8), 8, 100, 25.0)
    order = torch.arange(400)
    noise = []
    for seed in (0, 1):
        noisy, clean = samples.start_epoch(order, np.random.default_rng(seed))(slice(0, 400))
        noise.append((noisy - clean) * 255 / 25)
    for epoch in noise:
        assert epoch.mean().item() == pytest.approx(0, abs=4 / math.sqrt(25_600))
        assert epoch.var().item() == pytest.approx(1, abs=4 * math.sqrt(2 / 25_600))
        assert len(epoch.flatten(1).unique(dim=0)) == 400
    assert abs((noise[0] * noise[1]).mean().item()) < 4 / math.sqrt(25_600)


# --- whole images -----------------------------------------------------------------------------------------------------


def test_whole_images_of_any_size_have_the_same_noise_in_every_epoch(float64):
    images = [pixels(1, 5, 6)[0, 0], pixels(1, 60, 40)[0, 0], pixels(1, 5, 6)[0, 0]]
    samples = NoisyImages(images, 15.0)
    epochs = [
        samples.start_epoch(order, np.random.default_rng(7)) for order in (torch.arange(3), torch.tensor([2, 0, 1]))
    ]
    batches = [epochs[0](slice(i, i + 1)) for i in range(3)]
    for (noisy, clean), image in zip(batches, images, strict=True):
        assert noisy.shape == clean.shape == (1, 1, *image.shape)
        torch.testing.assert_close(clean[0, 0] * 255, image.double())
    for place, image in ((0, 2), (1, 0), (2, 1)):
        assert torch.equal(epochs[1](slice(place, place + 1))[0], batches[image][0])
    assert not torch.equal(batches[0][0], batches[2][0])  # equal images, noise of their own
    noise = (batches[1][0] - batches[1][1]) * 255 / 15
    assert noise.var().item() == pytest.approx(1, abs=4 * math.sqrt(2 / 2400))


# --- the data set -----------------------------------------------------------------------------------------------------


@pytest.fixture
def folders(tmp_path):
    train = write_gray_images(tmp_path / "train", [(9, 8)] * 6)
    test = write_gray_images(tmp_path / "test", [(5, 6), (7, 4)], seed=1)
    return {"root": str(tmp_path / "train"), "test_root": str(tmp_path / "test")}, train, test


def test_parts_of_the_set(folders):
    roots, train, test = folders
    small = {"patch_size": 4, "patches_per_image": 3, "num_val": 2, "batch_size": 4}
    data = Denoising(**roots, **small)
    assert (data.task, data.input_shape, data.num_outputs) == ("denoising", (1, 4, 4), 1)
    batches = list(data.train_dataloader())
    assert [tuple(x.shape) for x, _ in batches] == [(4, 1, 4, 4)] * 3
    held = [(clean[0, 0] * 255).round().numpy() for _, clean in data.val_dataloader()]
    kept = list(data.splits.train.images[:, 0].numpy())
    assert len(held) == 2
    assert sorted(image.astype(np.uint8).tobytes() for image in held + kept) == sorted(i.tobytes() for i in train)
    found = [(clean[0, 0] * 255).round().numpy() for _, clean in data.test_dataloader()]
    assert all(np.array_equal(a, b) for a, b in zip(found, test, strict=True))
    again, other = (Denoising(**roots, **small, seed=3, split_seed=seed) for seed in (0, 1))
    assert torch.equal(again.splits.train.images, data.splits.train.images)
    assert not torch.equal(other.splits.train.images, data.splits.train.images)
    assert next(iter(data.val_dataloader()))[0].dtype == torch.float32


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"sigma": 0.0}, "sigma=0.0: "),
        ({"sigma": float("inf")}, "sigma=inf: "),
        ({"sigma": float("nan")}, "sigma=nan: "),
        ({"patch_size": 0}, "patch_size=0: "),
        ({"patch_size": 9}, "patch_size=9: at most 8"),
        ({"patches_per_image": 0}, "patches_per_image=0: "),
        ({"num_val": 0}, "num_val=0: "),
        ({"num_val": 6}, "num_val=6: below 6"),
    ],
)
def test_bad_arguments_are_named_with_their_value(folders, settings, message):
    with pytest.raises(ValueError, match=rf"\A{re.escape(message)}"):
        Denoising(**folders[0], **{"patch_size": 4, "num_val": 2, "batch_size": 4} | settings)


def test_training_images_of_several_sizes_are_refused(folders):
    roots = folders[0]
    with pytest.raises(ValueError, match=r"\Aroot=[^\n]*several sizes"):
        Denoising(root=roots["test_root"], test_root=roots["root"], patch_size=4, num_val=1)
