"""A run that is continued inside an epoch ends with the weights of the uninterrupted one, bit for bit."""

import pytest
import pytorch_lightning as pl
import torch
from data_files import write_npz
from hub_files import write_shards
from pytorch_lightning.callbacks import ModelCheckpoint

from tautnet.data.augment import Augmentation
from tautnet.data.image_stream import ImageStream
from tautnet.data.images import Images

pytestmark = pytest.mark.filterwarnings(
    "ignore:.*does not have many workers.*", "ignore:The dirpath has changed.*", "ignore:.*litlogger.*"
)
EVERYTHING = Augmentation(crop=1, flip=True, cutout=2, mixup=0.5, cutmix=1.0, label_smoothing=0.1)


class Net(pl.LightningModule):
    """A small network that records the batches it sees."""

    def __init__(self, size):
        super().__init__()
        torch.manual_seed(0)
        self.net = torch.nn.Sequential(
            torch.nn.Flatten(), torch.nn.Linear(size, 8), torch.nn.Tanh(), torch.nn.Linear(8, 10)
        )
        self.seen = []

    def training_step(self, batch, batch_idx):
        x, y = batch
        self.seen.append((self.current_epoch, batch_idx, x.double().sum().item()))
        return torch.nn.functional.cross_entropy(self.net(x), y)

    def validation_step(self, batch, batch_idx):
        pass

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.1, momentum=0.9)


def images(tmp_path):
    write_npz(tmp_path / "a.npz", 60, 20, shape=(3, 6, 6))
    return lambda: Images("npz", str(tmp_path / "a.npz"), batch_size=6, val_fraction=0.2, augmentation=EVERYTHING)


def shards(tmp_path, num_workers):
    write_shards(tmp_path / "s", "train", [70, 40, 50, 60], num_classes=10)
    write_shards(tmp_path / "s", "test", [20], num_classes=10)
    settings = {"image_size": 6, "num_train": 220, "batch_size": 27, "shuffle_buffer": 16, "num_workers": num_workers}
    return lambda: ImageStream(str(tmp_path / "s"), augmentation=EVERYTHING, **settings)


def fit(data, folder, continued=None, accumulate=1):
    keep = ModelCheckpoint(folder, "{step}", every_n_train_steps=3, save_top_k=-1, save_on_train_epoch_end=False)
    trainer = pl.Trainer(
        max_epochs=2,
        accelerator="cpu",
        callbacks=keep,
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        accumulate_grad_batches=accumulate,
        num_sanity_val_steps=0,
        default_root_dir=folder,
    )
    net = Net(108)
    trainer.fit(net, data, ckpt_path=continued)
    return net, trainer.global_step


@pytest.mark.parametrize("accumulate", [1, 2])
@pytest.mark.parametrize("kind", ["images", "stream", "stream with workers"])
def test_continued_inside_an_epoch(tmp_path, kind, accumulate):
    make = images(tmp_path) if kind == "images" else shards(tmp_path, 2 if "workers" in kind else 0)
    whole, steps = fit(make(), tmp_path / "whole", accumulate=accumulate)
    assert steps == 16 // accumulate
    checkpoints = sorted((tmp_path / "whole").glob("*.ckpt"), key=lambda path: int(path.stem.partition("=")[2]))
    assert len(checkpoints) == steps // 3
    for path in (checkpoints[0], checkpoints[-1]):
        step = int(path.stem.partition("=")[2])
        net, total = fit(make(), tmp_path / f"from{step}", path, accumulate)
        assert total == steps
        assert net.seen == whole.seen[step * accumulate :]
        for value, expected in zip(net.parameters(), whole.parameters(), strict=True):
            assert torch.equal(value, expected)
