"""How fast batches of CIFAR-10 are made, how long a training step waits for them, and whether streaming stays small.

    python benchmarks/data_speed.py [folder of CIFAR-10] [device]

Without a folder the images are random bytes, which cost the same. Every comparison is a ratio of two medians of the
same run, measured in turns; the times beside it are of this machine.
"""

from __future__ import annotations

import json
import platform
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from statistics import median

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset

from tautnet.activations import ReLU
from tautnet.backbones import LayerFactory, cifar_resnet
from tautnet.data.augment import Augmentation
from tautnet.data.image_samples import Colours, ImageSamples
from tautnet.data.images import Images
from tautnet.data.loader import TensorLoader
from tautnet.normalizers import BatchNorm, no_weight_norm

BATCH = 128
AUGMENTATION = Augmentation(crop=4, flip=True)
STREAM_BYTES = 2**30
STREAM_CAP = 320 * 2**20  # private memory that streaming may add to what is there before


class PerImage(Dataset[tuple[Tensor, Tensor]]):
    """The usual way: one Python call a sample, on Pillow images up to the conversion into a tensor."""

    def __init__(self, images: Tensor, classes: Tensor, colours: Colours) -> None:
        self.images, self.classes = images.movedim(1, 3).contiguous().numpy(), classes
        self.mean, self.deviation = (v.float().view(-1, 1, 1) / 255 for v in (colours.mean, colours.deviation))

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        padded = ImageOps.expand(Image.fromarray(self.images[index]), border=4)
        top, left = int(torch.randint(0, 9, ())), int(torch.randint(0, 9, ()))
        image = padded.crop((left, top, left + 32, top + 32))
        if torch.rand(()) < 0.5:
            image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        x = torch.from_numpy(np.array(image)).permute(2, 0, 1).contiguous().float().div(255)
        return x.sub_(self.mean).div_(self.deviation), self.classes[index]


class PerTensor(Dataset[tuple[Tensor, Tensor]]):
    """The same with tensors throughout."""

    def __init__(self, images: Tensor, classes: Tensor, colours: Colours) -> None:
        self.images, self.classes = images, classes
        self.mean, self.deviation = (v.float().view(-1, 1, 1) / 255 for v in (colours.mean, colours.deviation))

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        padded = F.pad(self.images[index].float() / 255, (4, 4, 4, 4))
        top, left, flip = torch.randint(0, 9, ()), torch.randint(0, 9, ()), torch.rand(()) < 0.5
        x = padded[:, top : top + 32, left : left + 32]
        return ((x.flip(-1) if flip else x) - self.mean) / self.deviation, self.classes[index]


def images_of(root: str | None) -> tuple[Tensor, Tensor]:
    """Training images without padding, and classes."""
    if root is None:
        return torch.randint(0, 256, (50_000, 3, 32, 32), dtype=torch.uint8), torch.randint(0, 10, (50_000,))
    train = Images("cifar10", root, val_fraction=0.01).splits.train
    assert isinstance(train, ImageSamples)
    return train.images, train.classes


def synchronise(device: torch.device) -> None:
    """Wait for the device's queue."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def seconds_a_sample(batches: Iterable[tuple[Tensor, Tensor]], device: torch.device, most: int) -> float:
    """Of up to ``most`` samples, after the first batch, which may start workers."""
    iterator = iter(batches)
    next(iterator)
    synchronise(device)
    start, count = time.perf_counter(), 0
    for x, _y in iterator:
        x.to(device)
        count += len(x)
        if count >= most:
            break
    synchronise(device)
    return (time.perf_counter() - start) / count


def compare_loaders(images: Tensor, classes: Tensor, device: torch.device) -> None:
    """Batches on the device, whole batches against single samples."""
    colours = Colours.of(images)
    whole = ImageSamples.padded(images, classes, 10, colours, AUGMENTATION).to(device)
    image, tensor = PerImage(images, classes, colours), PerTensor(images, classes, colours)
    ways: dict[str, tuple[Callable[[], Iterable[tuple[Tensor, Tensor]]], int]] = {
        "whole batches": (lambda: TensorLoader(whole, BATCH, shuffle=True, drop_last=True), 40_000),
        "Pillow images one by one, no worker": (lambda: DataLoader(image, BATCH, shuffle=True), 4_000),
        "Pillow images one by one, 2 workers": (lambda: DataLoader(image, BATCH, shuffle=True, num_workers=2), 8_000),
        "tensors one by one, no worker": (lambda: DataLoader(tensor, BATCH, shuffle=True), 6_000),
        "tensors one by one, 2 workers": (lambda: DataLoader(tensor, BATCH, shuffle=True, num_workers=2), 12_000),
    }
    times: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(5):
        for name, (make, most) in ways.items():
            times[name].append(seconds_a_sample(make(), device, most))
    ours = median(times["whole batches"])
    print(
        "| batches of CIFAR-10, crop and flip | samples a second | whole batches are faster by |\n| --- | --- | --- |"
    )
    for name, values in times.items():
        print(f"| {name} | {1 / median(values):,.0f} | {median(values) / ours:.1f} x |")


def share_of_waiting(images: Tensor, classes: Tensor, device: torch.device, steps: int) -> None:
    """Share of a ResNet-20 training step that passes until its batch is there."""
    samples = ImageSamples.padded(images, classes, 10, Colours.of(images), AUGMENTATION).to(device)
    net = cifar_resnet(LayerFactory(ReLU, BatchNorm, no_weight_norm), (3, 32, 32), 10).to(device)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    batches = iter(TensorLoader(samples, BATCH, shuffle=True, drop_last=True))
    waited, total = [], []
    for _ in range(steps + 3):
        start = time.perf_counter()
        x, y = next(batches)
        synchronise(device)
        ready = time.perf_counter()
        optimizer.zero_grad()
        F.cross_entropy(net(x), y).backward()
        optimizer.step()
        synchronise(device)
        waited.append(ready - start)
        total.append(time.perf_counter() - start)
    share = median(waited[3:]) / median(total[3:])
    print(f"\nResNet-20, batch {BATCH}: {share:.2%} of a training step is spent on its batch.")


def write_shards(folder: Path, size: int, shards: int = 16) -> None:
    """Uncompressed 64x64 images of random bytes in parquet shards, ``size`` bytes in all."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    header = bytes.fromhex(
        "424d36300000000000003600000028000000400000004000000001001800000000000030000000000000000000000000000000000000"
    )
    pixels = 64 * 64 * 3
    image = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    schema = pa.schema([("image", image), ("label", pa.int64())])
    generator = torch.Generator().manual_seed(0)
    for shard in range(shards + 1):
        name = f"train-{shard:05d}-of-{shards:05d}" if shard < shards else "test-00000-of-00001"
        count = size // shards // pixels if shard < shards else 64
        random = torch.randint(0, 256, (count, pixels), dtype=torch.uint8, generator=generator)
        rows = [{"bytes": header + row.numpy().tobytes(), "path": None} for row in random]
        table = pa.table({"image": rows, "label": [i % 10 for i in range(count)]}, schema)
        features = {"image": {"_type": "Image"}, "label": {"_type": "ClassLabel", "names": list("0123456789")}}
        metadata = {"huggingface": json.dumps({"info": {"features": features}})}
        pq.write_table(table.replace_schema_metadata(metadata), folder / f"{name}.parquet", row_group_size=512)


def stream_once(folder: str, count: int) -> None:
    """Read a stream to its end under a cap on private memory; run in a process of its own."""
    from tautnet.data.image_stream import ImageStream

    data = ImageStream(
        folder, image_size=64, num_train=count, batch_size=256, augmentation=Augmentation(crop=4, flip=True)
    )
    batches = iter(data.train_dataloader())
    seen = len(next(batches)[0])
    status = Path("/proc/self/status").read_text().splitlines()
    private = next(int(line.split()[1]) * 1024 for line in status if line.startswith("VmData"))
    resource.setrlimit(resource.RLIMIT_DATA, (private + STREAM_CAP, private + STREAM_CAP))
    start_peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for x, _y in batches:
        seen += len(x)
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - start_peak) / 1024
    print(f"{seen:,} images, peak memory grew by {grown:.0f} MiB after the first batch.")


def stream_memory() -> None:
    """A set larger than the cap."""
    with tempfile.TemporaryDirectory() as folder:
        write_shards(Path(folder), STREAM_BYTES)
        size = sum(path.stat().st_size for path in Path(folder).iterdir()) / 2**20
        count = STREAM_BYTES // 16 // (64 * 64 * 3) * 16
        command = [sys.executable, __file__, "--stream", folder, str(count)]
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    print(f"\nStreaming {size:,.0f} MiB under a cap of {STREAM_CAP // 2**20} MiB: {done.stdout.strip()}")


def main() -> None:
    """Run all three."""
    if sys.argv[1:2] == ["--stream"]:
        stream_once(sys.argv[2], int(sys.argv[3]))
        return
    root = sys.argv[1] if len(sys.argv) > 1 else None
    device = torch.device(sys.argv[2] if len(sys.argv) > 2 else "cpu")
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else f"{torch.get_num_threads()} threads"
    print(f"{platform.processor() or platform.machine()}, {name}, torch {torch.__version__}\n")
    images, classes = images_of(root)
    compare_loaders(images, classes, device)
    share_of_waiting(images, classes, device, steps=100 if device.type == "cuda" else 12)
    stream_memory()


if __name__ == "__main__":
    main()
