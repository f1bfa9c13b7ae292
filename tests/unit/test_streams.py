"""Sets in the formats of the public hub, read while training goes on."""

import re
from functools import partial

import numpy as np
import pytest
import torch
from hub_files import numbered_image, numbers_of, write_shards

from tautnet.data.augment import Augmentation
from tautnet.data.image_stream import ImageStream
from tautnet.data.stream import CHUNK, StreamPosition

pytest.importorskip("datasets")
pytestmark = pytest.mark.filterwarnings("ignore:This DataLoader will create:UserWarning")  # more workers than cores
SHARDS = [100, 40, 70]  # several chunks of 32 and a rest each, none alike


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """210 training images in uneven shards, 25 and 7 to evaluate."""
    root = tmp_path_factory.mktemp("shards")
    write_shards(root, "train", SHARDS)
    write_shards(root, "validation", [5, 2], start=1000)
    return str(write_shards(root, "test", [20, 5], start=2000))


def numbers(data, batches):
    """The numbers of the images, batch by batch; their classes must fit."""
    mean, deviation = (value.view(-1, 1, 1) for value in (data.settings.colours.mean, data.settings.colours.deviation))
    found = [numbers_of(x.double() * deviation + mean) for x, _ in batches]
    assert [[n % 3 for n in batch] for batch in found] == [y.tolist() for _, y in batches]
    return found


def flat(batches):
    return [n for batch in batches for n in batch]


def train_numbers(data, epoch=0):
    loader = data.train_dataloader()
    loader.set_epoch(epoch)
    return numbers(data, list(loader))


stream = partial(ImageStream, image_size=4, batch_size=21, shuffle_buffer=16)


class Place:
    """What a data module asks of its trainer."""

    training, sanity_checking = True, False

    def __init__(self, rank, world_size):
        self.global_rank, self.world_size, self.strategy = rank, world_size, self
        self.root_device = torch.device("cpu")


def placed(data, rank=0, world_size=1):
    data.trainer = Place(rank, world_size)
    return data


def test_size_classes_and_parts_of_a_stream(folder):
    data = stream(folder, num_train=210)
    assert (data.task, data.num_outputs, data.input_shape) == ("classification", 3, (3, 4, 4))
    assert len(data.train_dataloader()) == 10
    assert numbers(data, list(data.val_dataloader())) == [list(range(1000, 1007))]
    assert numbers(data, list(data.test_dataloader())) == [list(range(2000, 2021)), list(range(2021, 2025))]
    swapped = stream(folder, num_train=210, val_part="test", test_part="validation", num_classes=7)
    assert swapped.num_outputs == 7
    assert numbers(swapped, list(swapped.test_dataloader())) == [list(range(1000, 1007))]


@pytest.mark.parametrize("num_workers", [0, 1, 2, 5])
@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_every_sample_exactly_once_over_processes_and_workers(folder, world_size, num_workers):
    data = [
        placed(stream(folder, num_train=210, batch_size=3 * world_size, num_workers=num_workers), rank, world_size)
        for rank in range(world_size)
    ]
    if world_size == 3:  # shards are given away whole: the largest common number of batches
        for one in data:
            one._num_train = 120
    assert data[0].train_dataloader().num_workers == min(num_workers, 3 if world_size == 2 else 3 // world_size)
    found = [train_numbers(one) for one in data]
    assert [len(batches) for batches in found] == [len(data[0].train_dataloader())] * world_size
    together = flat(map(flat, found))
    assert len(set(together)) == len(together)
    assert len(together) == (210 if world_size < 3 else 117)
    assert all(len(batch) == 3 for batches in found for batch in batches)


@pytest.mark.parametrize("num_workers", [0, 2])
def test_order_is_a_function_of_seed_and_epoch(folder, num_workers):
    make = partial(stream, folder, num_train=210, num_workers=num_workers)
    data = make(seed=1)
    first = train_numbers(data, 0)
    assert sorted(flat(first)) == list(range(210))
    assert first != [list(range(i, i + 21)) for i in range(0, 210, 21)]
    second = train_numbers(data, 1)
    assert sorted(flat(second)) == list(range(210))
    torch.manual_seed(5)
    assert train_numbers(make(seed=1), 0) == first == train_numbers(data, 0)
    assert train_numbers(make(seed=1), 1) == second != first
    assert train_numbers(make(seed=2), 0) != first
    plain = make(shuffle=False)
    assert train_numbers(plain, 0) == train_numbers(plain, 1)
    if num_workers == 0:
        assert flat(train_numbers(plain)) == list(range(210))


def batches_of(data, epoch=1):
    loader = data.train_dataloader()
    loader.set_epoch(epoch)
    return loader


@pytest.mark.parametrize(("num_workers", "batch_size"), [(0, 21), (0, CHUNK), (0, 100), (2, 21), (2, 32), (3, 50)])
def test_continued_at_every_batch_it_gives_the_batches_that_are_left(folder, num_workers, batch_size):
    settings = Augmentation(crop=1, flip=True, mixup=0.5, cutmix=1.0)
    make = partial(stream, folder, num_train=210, num_workers=num_workers, batch_size=batch_size, augmentation=settings)
    whole, states = [], []
    data = placed(make())
    states.append(data.state_dict())
    for batch in batches_of(data):
        whole.append(batch)
        states.append(data.state_dict())
    assert len(whole) == 210 // batch_size
    for done in range(0, len(whole), 1 if num_workers == 0 else 2):
        data = placed(make())
        data.load_state_dict(states[done])
        left = list(batches_of(data))
        assert len(left) == len(whole) - done
        for batch, expected in zip(left, whole[done:], strict=True):
            assert torch.equal(batch[0], expected[0]), (num_workers, done)
            assert torch.equal(batch[1], expected[1])


def test_augmentation_follows_seed_epoch_batch_and_process(folder):
    crop = Augmentation(mixup=1.0)
    make = partial(stream, folder, num_train=210, shuffle=False, augmentation=crop)
    first, again, other = (list(batches_of(make(seed=seed), 0)) for seed in (0, 0, 1))
    assert torch.equal(first[0][1], again[0][1])
    assert not torch.equal(first[0][1], other[0][1])
    assert not torch.equal(first[0][1], next(iter(batches_of(make(), 1)))[1])
    assert not torch.equal(first[0][1].amax(1), first[1][1].amax(1))
    shares = [next(iter(placed(make(batch_size=42), rank, 2).train_dataloader()))[1].amax(1) for rank in (0, 1)]
    assert not torch.equal(*shares)
    for x, y in list(make().test_dataloader()):
        assert (x.dtype, y.dtype) == (torch.float32, torch.int64)


def test_iterating_does_not_touch_the_global_random_state(folder):
    loader = stream(folder, num_train=210).train_dataloader()
    before = torch.get_rng_state()
    next(iter(loader))
    assert torch.equal(torch.get_rng_state(), before)


def test_all_processes_have_the_same_number_of_batches(folder):
    data = [placed(stream(folder, num_train=210, batch_size=9), rank, 3) for rank in range(3)]
    assert [len(list(one.train_dataloader())) for one in data] == [23] * 3


def test_colours_are_those_of_the_training_images(folder):
    images = np.stack([numbered_image(n) for n in range(210)]).astype(float)
    colours = stream(folder, num_train=210).settings.colours
    np.testing.assert_allclose(colours.mean, images.mean((0, 2, 3)), rtol=1e-12)
    np.testing.assert_allclose(colours.deviation, images.std((0, 2, 3)), rtol=1e-12)


def test_scale_takes_differences_back_to_pixels_from_0_to_1(folder):
    data = stream(folder, num_train=210)
    assert data.input_scale.shape == (3,)
    (x, _), *_ = data.test_dataloader()
    in_pixels = x.double() * data.input_scale.view(3, 1, 1) * 255 + data.settings.colours.mean.view(3, 1, 1)
    assert numbers_of(in_pixels) == list(range(2000, 2021))


def test_processes_share_the_evaluation(folder):
    data = [placed(stream(folder, num_train=210, batch_size=6), rank, 2) for rank in (0, 1)]
    found = [flat(numbers(one, list(one.test_dataloader()))) for one in data]
    assert sorted(flat(found)) == list(range(2000, 2025))


def test_another_number_of_workers_cannot_go_on_inside_an_epoch(folder):
    data = stream(folder, num_train=210, num_workers=2)
    data.load_state_dict({**vars(StreamPosition()), "num_workers": 0})  # between epochs it can
    with pytest.raises(ValueError, match=r"\Anum_workers=2: "):
        data.load_state_dict({**vars(StreamPosition(0, 3)), "num_workers": 0})


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"image_size": 0}, "image_size=0: "),
        ({"batch_size": 0}, "batch_size=0: "),
        ({"batch_size": 211}, "batch_size=211: at most the 210 training samples"),
        ({"shuffle_buffer": 0}, "shuffle_buffer=0: "),
        ({"num_workers": -1}, "num_workers=-1: "),
        ({"num_train": 0}, "num_train=0: "),
        ({"num_train": None}, "num_train=None: a number is needed"),
        ({"num_classes": 0}, "num_classes=0: "),
        ({"val_part": "dev"}, "val_part=dev: no such part"),
        ({"test_part": "dev"}, "test_part=dev: no such part"),
    ],
)
def test_bad_arguments_are_named_with_their_value(folder, settings, message):
    with pytest.raises(ValueError, match=rf"\A{re.escape(message)}"):
        ImageStream(**{"path": folder, "image_size": 4, "num_train": 210, "batch_size": 21} | settings)
