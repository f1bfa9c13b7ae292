"""SplineMonitor: curves all of whose inputs lie outside their grid."""

import pytest
import pytorch_lightning as pl
import torch
from torch.utils.data import DataLoader, TensorDataset

from tautnet.activations import LinearSpline
from tautnet.callbacks import SplineMonitor
from tautnet.callbacks.spline_monitor import _num_inside
from tautnet.models import Classifier


@pytest.mark.parametrize("learn_scale", [False, True])
@pytest.mark.parametrize(("sharing", "shape"), [("channel", ()), ("layer", ()), ("neuron", (4, 2))])
def test_inputs_inside_are_counted_by_curve(sharing, shape, learn_scale):
    spline = LinearSpline(3, grid_range=1.0, sharing=sharing, spatial_shape=shape, learn_scale=learn_scale)
    if learn_scale:
        with torch.no_grad():
            spline.log_scale.copy_(torch.linspace(-1, 1, spline.num_curves))
    x = 2 * torch.randn(5, 3, 4, 2)
    scale_C = spline.log_scale.exp() if learn_scale else torch.ones(spline.num_curves)
    curves = {"channel": x.transpose(0, 1).flatten(1), "layer": x.reshape(1, -1), "neuron": x.flatten(1).T}[sharing]
    expected = ((scale_C[:, None] * curves).abs() <= 1.0).sum(1)
    found = _num_inside(spline, x, spline.points()[0][:, -1].float())
    assert torch.equal(found, expected)
    assert found.sum().item() == pytest.approx(x.numel() * (1 - spline.share_outside(x)))


@pytest.mark.parametrize(("shift", "lost"), [(0.0, 0), (50.0, 1)])
def test_a_curve_without_an_input_on_its_grid_is_named_once(settings, tmp_path, caplog, shift, lost):
    composed = settings("model=mlp", "model.net.widths=[8]", "norm=none")
    model = Classifier(composed | {"input_shape": [2], "num_outputs": 10}).eval()
    with torch.no_grad():
        model.net[1].bias[3] += shift
    (path,) = (path for path, module in model.net.named_modules() if isinstance(module, LinearSpline))
    x = torch.randn(40, 2)
    trainer = pl.Trainer(
        accelerator="cpu", logger=False, callbacks=[SplineMonitor()], enable_progress_bar=False,
        enable_checkpointing=False, enable_model_summary=False, default_root_dir=tmp_path,
    )  # fmt: skip
    batches = DataLoader(TensorDataset(x, torch.zeros(40, dtype=torch.long)), batch_size=16)
    logged = [trainer.validate(model, batches, verbose=False)[0] for _ in range(2)][1]
    told = [record.getMessage() for record in caplog.records if record.name == "tautnet.callbacks.spline_monitor"]
    assert len(told) == lost
    if lost:
        entered = model.net[1](x)
        share = (entered.abs() > 4).double().mean().item()
        assert logged[f"spline/outside/{path}"] == pytest.approx(share)
        words = f"{path}: {share:.0%} of the inputs, for 1 of 8 curves all, lie outside the spline's grid"
        assert told[0].startswith(words)
        assert f"grid_range=auto, or nearer to the largest input, {entered.abs().max().item():.4g}" in told[0]


def test_its_state_goes_into_a_checkpoint():
    monitor, other = SplineMonitor(), SplineMonitor()
    monitor._visited, monitor._warned = {"2": (-1.0, 2.0)}, {"2"}
    other.load_state_dict(monitor.state_dict())
    assert (other._visited, other._warned) == (monitor._visited, monitor._warned)
