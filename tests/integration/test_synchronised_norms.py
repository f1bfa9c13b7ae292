"""Two processes with synchronised statistics give what one process gives with both batches."""

import pytest
import torch
import torch.distributed as dist
from ranks import grouped, in_ranks
from torch import nn

from tautnet.normalizers import BatchNorm, Unitize, synchronise_

SETTINGS = {
    "sample": lambda: Unitize(3),
    "official": lambda: Unitize(
        3, unbiased_train_var=True, alpha_shape="layer", alpha_constraint="sigmoid", alpha_init=0.3
    ),
    "pixel": lambda: Unitize(3, norm_axes="pixel", norm_scale="rms"),
    "batch": lambda: BatchNorm(3),
}
# Samples of the first process, shape of the whole batch.
BATCHES = {"even": (4, (8, 3, 4, 5)), "uneven": (6, (8, 3, 4, 5)), "dense": (7, (8, 3)), "all": (8, (8, 3, 4))}


def layer_and_batch(setting, batch):
    generator = torch.Generator().manual_seed(3)
    share, shape = BATCHES[batch]
    layer = SETTINGS[setting]().double()
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator, dtype=torch.float64))
    # Far apart: the processes' own statistics are no approximation of the common ones.
    x = torch.randn(shape, generator=generator, dtype=torch.float64) + 3 * torch.arange(8.0).view(
        -1, *[1] * (len(shape) - 1)
    )
    return layer, x, torch.randn(shape, generator=generator, dtype=torch.float64), share


def results(layer, x, grad):
    """Output and input gradient, gradients of the parameters, running statistics after two steps."""
    x.requires_grad_()
    layer(x)
    y = layer(x)
    y.backward(grad)
    return {
        "samples": [y.detach(), x.grad],
        "sums": [parameter.grad for parameter in layer.parameters()],
        "state": [buffer.double() for buffer in layer.buffers()],
    }


WAYS = {
    "marked": synchronise_,
    "converted": nn.SyncBatchNorm.convert_sync_batchnorm,  # replaces what is below in place
    "alone": lambda net: None,
}


def _own_results(rank, way):
    found = {}
    for setting in SETTINGS:
        for batch in BATCHES if way != "alone" else ("even", "uneven"):
            layer, x, grad, share = layer_and_batch(setting, batch)
            part = slice(0, share) if rank == 0 else slice(share, None)
            net = nn.Sequential(layer)
            WAYS[way](net)
            found[setting, batch] = results(net, x[part].clone(), grad[part])
    return found


def _ddp_gradients(rank):
    """Of the mean loss, as DistributedDataParallel averages them."""
    net = _net()
    synchronise_(net)
    net = nn.parallel.DistributedDataParallel(net)
    net(_images()[4 * rank : 4 * rank + 4]).square().mean().backward()
    return [parameter.grad for parameter in net.parameters()]


def _net():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 3, 3), Unitize(3), nn.ReLU(), nn.Conv2d(3, 2, 3), BatchNorm(2), nn.Tanh()
    ).double()


def _images():
    return torch.randn(8, 1, 9, 9, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def _work():
    rank = dist.get_rank()
    found = {way: _own_results(rank, way) for way in WAYS}
    return {"found": found, "ddp": _ddp_gradients(rank)}


@pytest.fixture(scope="module")
def ranks(tmp_path_factory):
    return in_ranks(grouped, 2, tmp_path_factory.mktemp("ranks"), _work)


def distances(setting, batch, parts):
    """Largest differences of what two processes found from one process's results, by kind."""
    layer, x, grad, _ = layer_and_batch(setting, batch)
    alone = results(layer, x, grad)
    joined = {
        "samples": [torch.cat(pair) for pair in zip(*(part["samples"] for part in parts), strict=True)],
        "sums": [sum(pair) for pair in zip(*(part["sums"] for part in parts), strict=True)],
        "state": parts[0]["state"],
    }
    return {
        kind: max(float((a - b).abs().max()) for a, b in zip(joined[kind], alone[kind], strict=True)) for kind in alone
    }


@pytest.mark.parametrize("setting", SETTINGS)
@pytest.mark.parametrize("batch", BATCHES)
@pytest.mark.parametrize("way", ["marked", "converted"])
def test_synchronised_processes_give_what_one_gives(ranks, setting, batch, way):
    parts = [rank["found"][way][setting, batch] for rank in ranks]
    assert max(distances(setting, batch, parts).values()) < 1e-10
    assert all(torch.equal(a, b) for a, b in zip(parts[0]["state"], parts[1]["state"], strict=True))


@pytest.mark.parametrize("setting", SETTINGS)
@pytest.mark.parametrize("batch", ["even", "uneven"])
def test_processes_for_themselves_do_not(ranks, setting, batch):
    parts = [rank["found"]["alone"][setting, batch] for rank in ranks]
    assert min(distances(setting, batch, parts).values()) > 1e-3


def test_data_parallel_training_gets_the_gradients_of_one_process(ranks):
    net = _net()
    net(_images()).square().mean().backward()
    for rank in ranks:
        for together, parameter in zip(rank["ddp"], net.parameters(), strict=True):
            torch.testing.assert_close(together, parameter.grad, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("setting", SETTINGS)
@pytest.mark.parametrize("batch", BATCHES)
def test_a_converted_layer_trains_without_a_process_group(setting, batch):
    layer, x, grad, _ = layer_and_batch(setting, batch)
    expected = results(layer, x.clone(), grad)
    layer = layer_and_batch(setting, batch)[0]
    actual = results(nn.SyncBatchNorm.convert_sync_batchnorm(nn.Sequential(layer)), x, grad)
    for kind in expected:
        torch.testing.assert_close(actual[kind], expected[kind], rtol=1e-10, atol=1e-12)
