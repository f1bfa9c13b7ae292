"""One rank and two ranks with the same global batches: the same weights, the same numbers, the same files."""

import json
import math
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace

import pytest
import pytorch_lightning as pl
import torch
import torch.distributed as dist
from conftest import CONF
from hub_files import numbers_of, write_shards
from hydra import compose, initialize_config_dir
from ranks import grouped, in_ranks
from torch import nn

from tautnet.activations import Slaf
from tautnet.callbacks.variance_monitor import Moments
from tautnet.command_line import register_schema
from tautnet.config import ConfigError, plain
from tautnet.data.image_stream import ImageStream
from tautnet.factories import DataError, synchronise_
from tautnet.job import execute
from tautnet.models import Classifier
from tautnet.models.ranks import joined, spread
from tautnet.regularizers import VarianceConstancy

# In float64 sums differ in their order alone. Certificates and spectra magnify that, means over a few samples do not.
TOLERANCE = 1e-9
QUICK = (
    "trainer.precision=64-true",
    "trainer.enable_progress_bar=false",
    "callbacks.lipschitz.num_samples=7",
    "callbacks.lipschitz.num_steps=2",
    "logger=csv",
)
JOBS = {
    "splines": (
        *("model.net.widths=[4,5]", "activation.num_knots=7", "activation.grid_range=1.0", "data.batch_size=48"),
        *("norm=unitize", "norm.output.unbiased_train_var=true", "norm/weight=spectral"),
        *("scheduler=none", "optimizer.lr=0.02", "callbacks.sparsify.budget=0.02"),
        "callbacks=[recalibrate,sparsify,ics,spectrum,certify]",
        *("callbacks.ics.every_n_steps=4", "callbacks.ics.num_samples=11", "callbacks.ics.num_projections=3"),
        *("callbacks.certify.num_samples=5", "callbacks.certify.num_steps=2", "callbacks.certify.num_restarts=2"),
        *("callbacks.certify.epsilons_l2=[0.1]", "callbacks.certify.epsilons_linf=[]"),
        *("trainer.limit_train_batches=5", "trainer.max_epochs=2"),
    ),
    "slaf": (
        *("data=breast_cancer", "model=mlp", "model.net.widths=[6,5]", "norm=batch", "data.batch_size=26"),
        *("activation=slaf", "activation.normalize=maxabs", "callbacks=[variance,alternate,ema]"),
        *("regularizer.variance.weight=0", "regularizer.variance.beta_from_data=true"),
        *("callbacks.alternate.every_n_steps=2", "trainer.max_epochs=2", "trainer.accumulate_grad_batches=2"),
    ),
    "odd": (
        *("data=diabetes", "model=mlp", "model.net.widths=[5]", "norm=none", "data.batch_size=32"),
        *("activation=slaf", "callbacks=[recalibrate]", "trainer.max_epochs=30", "data.val_fraction=0.115"),
        "+callbacks.stop={_target_:pytorch_lightning.callbacks.EarlyStopping,monitor:val/loss,patience:1,min_delta:9}",
    ),
}


def recorded(settings):
    """Do a job; return what this rank ends with."""
    found = {}

    def watched(method):
        def call(trainer, model, *arguments, **options):
            method(trainer, model, *arguments, **options)
            name = f"{trainer.state.fn.value}"
            found[name] = {key: float(value) for key, value in trainer.callback_metrics.items()}
            found["epochs"] = trainer.current_epoch
            found["weights"] = {key: value.clone() for key, value in model.state_dict().items()}

        return call

    pl.Trainer.fit, pl.Trainer.test = watched(pl.Trainer.fit), watched(pl.Trainer.test)
    found["objective"] = execute(settings)
    return found


@pytest.fixture(scope="module", params=JOBS)
def runs(request, tmp_path_factory):
    """The folder of each run and what its ranks ended with, of one rank and of two."""
    register_schema()
    made = []
    for world_size, trainer in ((1, "trainer=cpu"), (2, "trainer=ddp_cpu")):
        root = tmp_path_factory.mktemp(f"{request.param}{world_size}")
        folder = root / "run"
        folder.mkdir()
        with initialize_config_dir(str(CONF), version_base="1.3"):
            config = compose("train", overrides=[trainer, f"run_dir={folder}", *JOBS[request.param], *QUICK])
        settings = plain(config) | {"overrides": []}
        settings["trainer"] |= {"devices": world_size, "num_nodes": 1}
        made.append((folder, in_ranks(recorded, world_size, root, settings)))
    return made


def close(a, b):
    return a == b or (math.isnan(a) and math.isnan(b)) or math.isclose(a, b, rel_tol=TOLERANCE, abs_tol=1e-12)


def of_each_rank_alone(key):
    """Terms of the variance constancy loss, which sees the first samples of each rank's part of a batch."""
    return key.startswith("vcl/") and "kurtosis" not in key and "beta" not in key


def different(some, others):
    assert some.keys() == others.keys()
    return {
        key: (some[key], others[key])
        for key in some
        if not close(float(some[key]), float(others[key])) and not of_each_rank_alone(key)
    }


def test_weights_and_buffers_are_the_same(runs):
    (_, (alone,)), (_, (first, second)) = runs
    assert alone["epochs"] == first["epochs"] == second["epochs"]
    for name, value in alone["weights"].items():
        torch.testing.assert_close(first["weights"][name], value, rtol=TOLERANCE, atol=1e-11, msg=name)
        assert torch.equal(first["weights"][name], second["weights"][name]), name


@pytest.mark.parametrize("stage", ["fit", "test"])
def test_every_metric_is_the_same_on_one_rank_and_on_each_of_two(runs, stage):
    (_, (alone,)), (_, (first, second)) = runs
    assert different(first[stage], second[stage]) == {}
    assert different(alone[stage], first[stage]) == {}
    assert first["objective"] == second["objective"]
    assert close(alone["objective"], first["objective"])


def test_the_first_rank_alone_writes_and_it_writes_the_same_files(runs):
    (alone, _), (together, _) = runs
    some, others = ({str(path.relative_to(run)) for path in run.rglob("*")} for run in (alone, together))
    assert some == others
    metrics = [json.loads(Path(run, "result.json").read_text())["metrics"] for run in (alone, together)]
    for each in metrics:
        del each["time/fit_seconds"]
    assert different(*metrics) == {}


def test_what_is_logged_is_logged_once_and_the_same(runs):
    logged = [next(run.rglob("metrics.csv")).read_text().splitlines() for run, _ in runs]
    assert len(logged[0]) == len(logged[1]) > 3
    assert logged[0][0] == logged[1][0]
    names = logged[0][0].split(",")
    for some, others in zip(*(lines[1:] for lines in logged), strict=True):
        for name, a, b in zip(names, some.split(","), others.split(","), strict=True):
            assert a == b or of_each_rank_alone(name) or close(float(a), float(b)), name


def test_the_jobs_show_what_they_are_meant_to(runs, request):
    (run, (alone,)), _ = runs
    metrics = json.loads((run / "result.json").read_text())["metrics"]
    job = request.node.callspec.params["runs"]
    assert {
        "splines": lambda: metrics["sparsify/knots_after"] < metrics["sparsify/knots_before"],
        "slaf": lambda: metrics["vcl/kurtosis"] > 1,
        "odd": lambda: 1 < alone["epochs"] < 30,
    }[job]()


def test_a_penalty_that_a_part_of_the_batch_is_too_small_for_is_refused(settings, monkeypatch):
    composed = settings("regularizer=variance", "norm=none", "data.batch_size=36", "model.net.widths=[4,4]")
    model = Classifier(composed | {"input_shape": [1, 8, 8], "num_outputs": 10})
    monkeypatch.setattr(pl.LightningModule, "trainer", SimpleNamespace(world_size=3))
    model.setup("fit")
    monkeypatch.setattr(pl.LightningModule, "trainer", SimpleNamespace(world_size=4))
    model.setup("test")
    with pytest.raises(ConfigError, match=r"^regularizer\.variance\.sample_size=5: .* 9 samples in each of 4 ranks"):
        model.setup("fit")


# --- parts ------------------------------------------------------------------------------------------------------------

SHARE = 6  # of 11 samples: the first rank's
SPREADS = [(11, 1), (11, 3), (11, 4), (11, 11), (11, 99), (7, 5), (6, 2), (1, 3)]  # samples and how many are taken


def samples(*shape):
    return torch.randn(11, *shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def mine(x):
    """A rank's part of a batch; alone, all of it."""
    if not dist.is_initialized():
        return x
    return x[:SHARE] if dist.get_rank() == 0 else x[SHARE:]


def maximum():
    """A SLAF that divides by the largest input: output, gradients, running maximum. One maximum is attained twice."""
    x = samples(3, 2)
    x[0, 0, 0], x[10, 0, 1], x[3, 2, 0] = 7.0, -7.0, math.nan
    torch.manual_seed(0)
    layer = Slaf(3, degree=2, normalize="maxabs").double()
    synchronise_(layer)
    x = mine(x).clone().requires_grad_()
    y = layer(x)
    y.backward(mine(samples(3, 2)))
    return y.detach(), x.grad, layer.coefficients.grad, layer.running_max


def kurtosis():
    moments = Moments()
    for part in mine(samples(4) ** 3 + 5).split(4):
        moments.add(part)
    return moments.of_all_ranks().kurtosis()


def spreads():
    found = []
    for size, share in SPREADS:
        (x,), count = spread((_piece(size),), share)
        found.append((torch.cat([rows for (rows,) in joined([(x,)])]).tolist(), count))
    return found


def _piece(size):
    x = torch.arange(float(size))
    return x if not dist.is_initialized() else x.tensor_split(2)[dist.get_rank()]


def variance_constancy():
    """Gradients of the penalty through data-parallel training."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 2)).double()
    penalty = VarianceConstancy(weight=1.0, sample_size=2)
    penalty.attach(net, (4,))
    model = Penalised(net, penalty)
    x = samples(4)[:10]
    if dist.is_initialized():
        shared = nn.parallel.DistributedDataParallel(model)
        shared(x[5 * dist.get_rank() :][:5]).backward()
    else:
        for half in x.split(5):
            (model(half) / 2).backward()
    return [parameter.grad for parameter in model.parameters()]


class Penalised(nn.Module):
    def __init__(self, net, penalty):
        super().__init__()
        self.net, self.penalty = net, penalty

    def forward(self, x):
        return self.net(x).square().mean() + self.penalty()


def stream(folder, batch_size=4):
    """A stream of images as a rank of the group sees it."""
    data = ImageStream(folder, image_size=4, num_train=24, batch_size=batch_size, shuffle_buffer=4)
    place = SimpleNamespace(root_device=torch.device("cpu"))
    data.trainer = SimpleNamespace(global_rank=dist.get_rank(), world_size=dist.get_world_size(), strategy=place)
    return data


def streams(folder):
    """Evaluation batches; what is left of an epoch after two batches; what it is by the saved position; refusals."""
    data = stream(folder)
    colours = data.settings.colours
    mean, deviation = (value.view(-1, 1, 1) for value in (colours.mean, colours.deviation))
    evaluated = [numbers_of(x.double() * deviation + mean) for x, _ in data.val_dataloader()]
    batches = iter(data.train_dataloader())
    next(batches), next(batches)
    state = data.state_dict()
    left = [x for x, _ in batches]
    continued = stream(folder)
    continued.load_state_dict(state)
    refused = []
    for other in (state | {"others": []}, state | {"num_workers": 1}):
        try:
            stream(folder).load_state_dict(other)
        except DataError as error:
            refused.append(str(error))
    stream(folder).load_state_dict(state | {"others": [], "batches": 6})  # the epoch had ended
    try:
        list(data.test_dataloader())  # of a single sample
    except DataError as error:
        refused.append(str(error))
    return evaluated, left, [x for x, _ in continued.train_dataloader()], refused


def parts(folder):
    return {
        "maximum": maximum(),
        "kurtosis": kurtosis(),
        "spreads": spreads(),
        "variance": variance_constancy(),
        "streams": streams(folder) if folder else None,
    }


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    """What two ranks found."""
    folder = None
    if find_spec("datasets"):
        folder = tmp_path_factory.mktemp("shards")
        write_shards(folder, "train", [10, 14])
        write_shards(folder, "validation", [7, 3], start=100)
        write_shards(folder, "test", [1], start=200)
    return in_ranks(grouped, 2, tmp_path_factory.mktemp("ranks"), parts, folder and str(folder))


def test_the_largest_input_is_that_of_all_ranks(found):
    y, x_grad, weight_grad, running = maximum()
    ranks = [each["maximum"] for each in found]
    for i, whole in enumerate((y, x_grad)):
        torch.testing.assert_close(torch.cat([of[i] for of in ranks]), whole, rtol=1e-12, atol=1e-13, equal_nan=True)
    summed = ranks[0][2] + ranks[1][2]
    torch.testing.assert_close(summed, weight_grad, rtol=1e-12, atol=1e-13, equal_nan=True)
    assert x_grad[:, :2].isfinite().all()
    for of in ranks:
        torch.testing.assert_close(of[3], running, rtol=0, atol=0, equal_nan=True)


def test_kurtosis_is_that_of_the_samples_of_all_ranks(found):
    for each in found:
        torch.testing.assert_close(each["kurtosis"], kurtosis(), rtol=1e-10, atol=0)


def test_samples_are_spread_over_the_pieces_as_over_the_batch(found):
    assert found[0]["spreads"] == found[1]["spreads"] == spreads()


def test_the_variance_constancy_of_ranks_is_the_mean_of_their_parts(found):
    for each in found:
        for together, expected in zip(each["variance"], variance_constancy(), strict=True):
            torch.testing.assert_close(together, expected, rtol=1e-10, atol=1e-13)


def test_streams_evaluate_everything_once_however_uneven_and_continue_in_every_rank(found):
    pytest.importorskip("datasets")
    evaluated, left, continued, refused = zip(*(each["streams"] for each in found), strict=True)
    assert [len(batches) for batches in evaluated] == [4, 4]
    assert sorted(n for batches in evaluated for batch in batches for n in batch) == list(range(100, 110))
    assert evaluated[1][2:] == [[], []]
    for before, after in zip(left, continued, strict=True):
        assert len(before) == len(after) == 4
        assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))
    for messages in refused:
        assert "by 1 processes, there are 2" in messages[0]
        assert messages[1].startswith("num_workers=0: 1, ")
        assert "has samples to evaluate for 1 of 2 processes" in messages[2]
