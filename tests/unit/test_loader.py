"""The order of batches, what processes share, and going on inside an epoch."""

import numpy as np
import pytest
import torch
from lightning_fabric.utilities.exceptions import MisconfigurationException

from tautnet.data.augment import Augmentation
from tautnet.data.base import AbstractTensorData, Splits
from tautnet.data.denoising import PatchSamples
from tautnet.data.image_samples import Colours, ImageSamples
from tautnet.data.loader import TensorLoader, TensorSamples

EVERYTHING = Augmentation(crop=2, flip=True, cutout=3, mixup=0.5, cutmix=1.0, label_smoothing=0.1)


def loader(num_samples=10, batch_size=3, *, seed=0, shuffle=True, drop_last=False, **more):
    index = torch.arange(num_samples)
    samples = TensorSamples(index.view(-1, 1).float(), index)
    return TensorLoader(samples, batch_size, seed=seed, shuffle=shuffle, drop_last=drop_last, **more)


def order(data_loader, epoch=0):
    data_loader.sampler.set_epoch(epoch)
    return torch.cat([targets for _, targets in data_loader]).tolist()


def images(count=22):
    rng = np.random.default_rng(0)
    x = torch.from_numpy(rng.integers(0, 256, (count, 3, 6, 8), dtype=np.uint8))
    return ImageSamples.padded(x, torch.arange(count) % 4, 4, Colours.of(x), EVERYTHING)


def patches():
    rng = np.random.default_rng(0)
    return PatchSamples(torch.from_numpy(rng.integers(0, 256, (11, 1, 9, 7), dtype=np.uint8)), 5, 2, 25.0)


RANDOM = pytest.mark.parametrize("make", [images, patches])


def batches(samples, batch_size=8, *, seed=3, epoch=1, shuffle=True, drop_last=False, **more):
    data_loader = TensorLoader(samples, batch_size, seed=seed, shuffle=shuffle, drop_last=drop_last, **more)
    data_loader.sampler.set_epoch(epoch)
    return list(data_loader)


def assert_same(some, others):
    assert len(some) == len(others)
    for batch, other in zip(some, others, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(batch, other, strict=True))


def differ(some, others):
    return all(not torch.equal(x, other) for (x, _), (other, _) in zip(some, others, strict=True))


# --- order ------------------------------------------------------------------------------------------------------------


def test_order_is_a_function_of_seed_and_epoch():
    shared = loader(100, seed=3)
    orders = {epoch: order(shared, epoch) for epoch in (0, 1, 2)}
    torch.manual_seed(99)
    torch.rand(7)
    assert order(shared, 1) == order(loader(100, seed=3), 1) == orders[1]
    assert len({tuple(o) for o in orders.values()}) == 3
    assert order(loader(100, seed=4), 1) != orders[1]


def test_neighbouring_seeds_do_not_share_their_epochs():
    orders = [tuple(order(loader(100, seed=seed), epoch)) for seed in range(4) for epoch in range(4)]
    assert len(set(orders)) == 16


@pytest.mark.parametrize("shuffle", [True, False])
def test_batches_cover_the_data_once_and_keep_pairs_together(shuffle):
    found = list(loader(10, 3, shuffle=shuffle))
    assert [len(targets) for _, targets in found] == [3, 3, 3, 1]
    assert sorted(torch.cat([targets for _, targets in found]).tolist()) == list(range(10))
    assert all(torch.equal(inputs[:, 0].long(), targets) for inputs, targets in found)


def test_without_shuffling_the_order_is_the_given_one_in_every_epoch():
    data_loader = loader(shuffle=False)
    assert order(data_loader, 0) == order(data_loader, 5) == list(range(10))


@pytest.mark.parametrize(
    ("num_samples", "batch_size", "drop_last", "sizes"),
    [
        (10, 3, True, [3, 3, 3]),
        (9, 3, True, [3, 3, 3]),
        (9, 3, False, [3, 3, 3]),
        (2, 3, True, []),
        (2, 3, False, [2]),
        (0, 3, False, []),
    ],
)
def test_length_is_the_number_of_batches(num_samples, batch_size, drop_last, sizes):
    data_loader = loader(num_samples, batch_size, drop_last=drop_last)
    assert [len(targets) for _, targets in data_loader] == sizes
    assert len(data_loader) == len(sizes)


# --- random samples ---------------------------------------------------------------------------------------------------


@RANDOM
def test_iterating_does_not_touch_the_global_random_states(make):
    samples = make()
    before, numpy_before = torch.get_rng_state(), np.random.get_state()[1].copy()  # noqa: NPY002
    batches(samples)
    assert torch.equal(torch.get_rng_state(), before)
    assert np.array_equal(np.random.get_state()[1], numpy_before)  # noqa: NPY002


@RANDOM
@pytest.mark.parametrize("shuffle", [True, False])
def test_samples_are_a_function_of_seed_and_epoch(make, shuffle):
    found = batches(make(), shuffle=shuffle)
    torch.manual_seed(99)
    np.random.seed(99)  # noqa: NPY002
    assert_same(batches(make(), shuffle=shuffle), found)
    assert differ(batches(make(), shuffle=shuffle, epoch=2), found)
    assert differ(batches(make(), shuffle=shuffle, seed=4), found)


@RANDOM
@pytest.mark.parametrize("drop_last", [True, False])
@pytest.mark.parametrize("world_size", [2, 4])
def test_processes_together_see_what_one_process_sees(make, drop_last, world_size):
    alone = batches(make(), drop_last=drop_last)
    assert [len(x) for x, _ in alone] == ([8, 8] if drop_last else [8, 8, 6])
    shares = [batches(make(), drop_last=drop_last, rank=rank, world_size=world_size) for rank in range(world_size)]
    assert_same([tuple(map(torch.cat, zip(*pieces, strict=True))) for pieces in zip(*shares, strict=True)], alone)
    assert all(len(share[0][0]) == 8 // world_size for share in shares)


@RANDOM
def test_samples_do_not_depend_on_the_batch_size(make):
    found, smaller = (batches(make(), size) for size in (22, 5))
    assert_same([tuple(map(torch.cat, zip(*smaller, strict=True)))], found)


@RANDOM
@pytest.mark.parametrize("finished", [0, 1, 2, 3])
def test_a_continued_epoch_has_the_batches_that_are_left(make, finished):
    assert_same(batches(make(), finished_batches=lambda: finished), batches(make())[finished:])


def test_finished_batches_are_asked_for_anew_in_every_epoch():
    done = [2, 0]
    data_loader = loader(10, 3, finished_batches=lambda: done.pop(0))
    assert [len(list(data_loader)), len(list(data_loader))] == [2, 4]
    assert len(loader(10, 3, finished_batches=lambda: 2)) == 4  # of the whole epoch: the trainer counts from its start


def test_every_process_has_the_same_number_of_samples_in_full_batches():
    with pytest.raises(ValueError, match=r"\Abatch_size=6: a multiple of the 4 processes"):
        loader(10, 6, drop_last=True, world_size=4)


def test_parts_differ_by_one_sample_at_most_and_the_first_process_has_one():
    shares = [loader(10, 4, shuffle=False, rank=rank, world_size=3) for rank in range(3)]
    parts = [[y.tolist() for _, y in share] for share in shares]
    assert parts == [[[0, 1], [4, 5], [8]], [[2], [6], [9]], [[3], [7], []]]
    *_, (x, y) = shares[2]
    assert (x.shape, y.shape) == ((0, 1), (0,))


# --- data modules -----------------------------------------------------------------------------------------------------


class Numbers(AbstractTensorData):
    """Samples that are their own numbers."""

    def __init__(self, batch_size=4, seed=0, shuffle=True, shape=(1,)):
        self.shape = shape
        super().__init__(batch_size, seed, shuffle)

    @property
    def num_outputs(self):
        return 1

    def load(self):
        index = torch.arange(2100)
        parts = (index[:10], index[:7], index)
        return Splits(
            *(TensorSamples(part.view(-1, *[1] * len(self.shape)).expand(-1, *self.shape), part) for part in parts)
        )


def test_training_leaves_out_the_rest_and_evaluation_covers_everything_in_order():
    data = Numbers()
    assert [len(y) for _, y in data.train_dataloader()] == [4, 4]
    assert torch.cat([y for _, y in data.val_dataloader()]).tolist() == list(range(7))
    assert [len(y) for _, y in data.test_dataloader()] == [1024, 1024, 52]


def test_batches_of_large_samples_take_16_mebibytes_in_evaluation():
    assert [len(y) for _, y in Numbers(shape=(2, 2048)).test_dataloader()] == [1024, 1024, 52]
    assert [len(y) for _, y in Numbers(shape=(1, 8192)).test_dataloader()] == [512] * 4 + [52]


class Place:
    """What a data module asks of its trainer."""

    training = False

    def __init__(self, rank, world_size):
        self.global_rank, self.world_size, self.strategy = rank, world_size, self
        self.root_device = torch.device("cpu")


def test_processes_share_the_evaluation_of_a_data_module():
    data = Numbers()
    parts = []
    for rank in range(2):
        data.trainer = Place(rank, 2)
        parts.append([y.tolist() for _, y in data.test_dataloader()])
    data.trainer = None
    together = [a + b for a, b in zip(*parts, strict=True)]
    assert together == [y.tolist() for _, y in data.test_dataloader()]


def test_an_evaluation_of_fewer_samples_than_processes_is_refused():
    data = Numbers()
    data.trainer = Place(0, 8)
    with pytest.raises(MisconfigurationException, match=r"^trainer\.devices: 8 processes .* has 7 samples"):
        data.val_dataloader()


def test_training_order_follows_seed_and_shuffle():
    first, again, other = (order(Numbers(seed=seed).train_dataloader()) for seed in (0, 0, 1))
    assert first == again != other
    assert order(Numbers(shuffle=False).train_dataloader(), 3) == list(range(8))


@pytest.mark.parametrize("batch_size", [0, -1, 11])
def test_batch_size_out_of_range(batch_size):
    with pytest.raises(ValueError, match=rf"\Abatch_size={batch_size}: "):
        Numbers(batch_size=batch_size)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@RANDOM
def test_batches_on_a_gpu_are_those_of_the_cpu(make):
    """The draws are made on the CPU for both; what is left is rounding."""
    for there, here in zip(batches(make().to(torch.device("cuda"))), batches(make()), strict=True):
        for a, b in zip(there, here, strict=True):
            assert a.device.type == "cuda"
            torch.testing.assert_close(a.cpu(), b, rtol=1e-5, atol=1e-5)
