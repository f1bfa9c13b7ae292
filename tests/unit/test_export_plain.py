"""Networks in plain torch operations: the same outputs, and what cannot be exported is refused."""

from collections import Counter
from contextlib import nullcontext
from importlib.util import find_spec

import pytest
import torch
from architectures import trained_a_little
from torch import nn

from tautnet.activations import LinearSpline, Slaf
from tautnet.backbones import LayerFactory, Residual, mlp
from tautnet.data.preparation import Preparation
from tautnet.errors import ConfigError
from tautnet.export import DiffersError, onnx_file, plain_net
from tautnet.export.curves import Clips, Lookup
from tautnet.export.layers import Affine, InverseNorm, Standardize
from tautnet.export.onnx_file import check_packages
from tautnet.export.probes import largest_error, raw_probes
from tautnet.export.program import traced, write_pt2
from tautnet.normalizers import BatchNorm, RmsNorm, Spectral, Unitize, no_weight_norm
from tautnet.splines import sparsify_

CHANNELS = 4
SHAPE = (CHANNELS, 3, 2)


def difference(net: nn.Module, other: nn.Module, *shape: int, size: float = 2.0) -> float:
    """As a share of the largest output."""
    x = size * torch.randn(50, *shape)
    with torch.no_grad():
        y = net(x)
        return float((other(x) - y).abs().max() / y.abs().max())


# --- plain networks ---------------------------------------------------------------------------------------------------


def kinds(net: nn.Module) -> Counter:
    return Counter(type(module) for module in net.modules())


@pytest.mark.parametrize("conv", [nn.Conv1d(3, 6, 3, bias=False), nn.Conv2d(3, 6, 2, groups=3), nn.Linear(3, 6)])
def test_batch_normalisation_goes_into_the_layer_in_front(conv):
    shape = (3, *[5] * (conv.weight.dim() - 2))
    net = trained_a_little(nn.Sequential(conv, nn.Dropout(), BatchNorm(6), BatchNorm(6)), *shape)
    plain = plain_net(net)
    assert type(plain) is type(conv)
    assert difference(net, plain, *shape) < 1e-6


def test_the_original_stays_as_it_is():
    net = trained_a_little(nn.Sequential(Spectral()(nn.Conv2d(4, 4, (3, 2))), Unitize(4), LinearSpline(4)), *SHAPE)
    before = {name: value.clone() for name, value in net.state_dict().items()}
    random = torch.get_rng_state()
    plain = plain_net(net)
    assert torch.equal(torch.get_rng_state(), random)
    assert not any(parameter.requires_grad for parameter in plain.parameters())
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    assert all(parameter.requires_grad for parameter in net.parameters())
    assert "parametrizations" not in "".join(plain.state_dict())


def test_unitize_without_alpha_is_batch_normalisation():
    net = trained_a_little(nn.Sequential(nn.Conv2d(4, 4, (3, 2)), Unitize(4, learn_alpha=False)), *SHAPE)
    assert type(plain_net(net)) is nn.Conv2d
    assert difference(net, plain_net(net), *SHAPE) < 1e-6


@pytest.mark.parametrize("axes", ["sample", "pixel"])
@pytest.mark.parametrize("scale", ["official", "l2", "per_pixel", "rms"])
@pytest.mark.parametrize("shape", [(4,), (4, 3, 5)])
def test_unitize_with_every_norm(axes, scale, shape):
    unitize = Unitize(4, norm_axes=axes, norm_scale=scale, norm_divisor=3.0, alpha_init=0.7)
    net = trained_a_little(nn.Sequential(unitize), *shape)
    assert kinds(plain_net(net))[InverseNorm] == 1
    assert difference(net, plain_net(net), *shape) < 1e-6


def test_rms_norm():
    net = trained_a_little(nn.Sequential(RmsNorm(4)), 4, 3)
    assert difference(net, plain_net(net), 4, 3) < 1e-6


def test_branches_and_modules_that_are_used_twice():
    twice = LinearSpline(4)
    inner = Residual(nn.Sequential(nn.Conv2d(4, 4, 3, padding=1), BatchNorm(4), twice), nn.Sequential())
    net = trained_a_little(nn.Sequential(nn.Conv2d(4, 4, (3, 2)), twice, inner, twice, nn.Flatten()), *SHAPE)
    plain = plain_net(net)
    assert (kinds(plain)[Lookup], kinds(plain)[Affine]) == (3, 0)
    assert difference(net, plain, *SHAPE) < 1e-5


SPLINES = {
    "channel": lambda: LinearSpline(4, 9, 1.0),
    "layer": lambda: LinearSpline(4, 9, 1.0, sharing="layer"),
    "neuron": lambda: LinearSpline(4, 9, 1.0, sharing="neuron", spatial_shape=(3, 2)),
    "scale": lambda: LinearSpline(4, 9, 1.0, learn_scale=True, slope_min=-1, slope_max=1, init="absolute"),
    "even": lambda: LinearSpline(4, 8, 1.0, linear_term=True),
}


@pytest.mark.parametrize("kind", SPLINES)
@pytest.mark.parametrize("knots", [0, 1, 5, 30])
def test_splines_of_any_number_of_knots(kind, knots, monkeypatch):
    spline = trained_a_little(SPLINES[kind](), 4, 3, 2)
    if knots < 9:
        positions, _ = spline.points()
        chosen, slopes = positions[:, 1 : knots + 1], 0.3 * torch.randn(spline.num_curves, knots + 1).double()
        spline.set_values_(
            slopes[:, :1] * positions
            + sum(slopes[:, j + 1, None] * (positions - chosen[:, j, None]).relu() for j in range(knots))
        )
    else:
        monkeypatch.setattr("tautnet.export.plain.FEW_KNOTS", 0)
    plain = plain_net(nn.Sequential(spline))
    assert type(plain) is (Lookup if knots > 8 else Clips if knots else Affine)
    assert difference(spline, plain, 4, 3, 2) < 2e-6
    for value in (float("nan"), float("inf"), -float("inf"), 1e30, -1e30):
        x = torch.full((1, 4, 3, 2), value)
        torch.testing.assert_close(plain(x), spline(x), equal_nan=True, rtol=1e-4, atol=0)


def test_straight_splines_of_neurons_are_not_folded_into_a_convolution():
    spline = LinearSpline(4, 9, 1.0, sharing="neuron", spatial_shape=(2, 1))
    spline.set_values_(torch.randn(8, 1).double() * spline.points()[0])
    net = nn.Sequential(nn.Conv2d(4, 4, 2), spline)
    assert [type(layer) for layer in plain_net(net)] == [nn.Conv2d, Affine]
    assert difference(net.eval(), plain_net(net), *SHAPE) < 1e-6


def test_sparse_splines_become_few_operations():
    net = nn.Sequential(nn.Linear(3, 4), LinearSpline(4, init="leaky_relu"))
    sparsify_(net, 1e-2)
    plain = plain_net(net)
    assert kinds(plain)[Clips] == 1
    targets = [node.target for node in traced(plain, (3,)).graph.nodes if node.op == "call_function"]
    called = Counter(getattr(target, "overloadpacket", target).__name__ for target in targets)
    of_constants = Counter(view=9, unbind=2, getitem=3)  # ONNX folds them
    assert called - of_constants == {"linear": 1, "minimum": 1, "maximum": 1, "mul": 2, "add": 2}


@pytest.mark.parametrize("basis", ["power", "taylor", "fourier", "chebyshev", "legendre", "hermite"])
@pytest.mark.parametrize("settings", [{}, {"sharing": "layer", "hybrid": "relu"}, {"sharing": "neuron"}, {"degree": 9}])
def test_every_slaf(basis, settings, monkeypatch):
    monkeypatch.setattr("tautnet.kernels.native.available", lambda *_: False)  # compiling takes seconds
    shape = (3, 2) if settings.get("sharing") == "neuron" else ()
    normalize = "maxabs" if basis == "fourier" else "input" if settings else "basis"
    slaf = trained_a_little(Slaf(4, basis=basis, spatial_shape=shape, normalize=normalize, **settings), 4, 3, 2)
    assert difference(slaf, plain_net(slaf), 4, 3, 2) < 2e-6


def test_what_nobody_knows_is_copied_and_traced(tmp_path):
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.norm = BatchNorm(3)

        def forward(self, x):
            return 2 * self.norm(x)

    net = trained_a_little(nn.Sequential(nn.Linear(3, 3), Twice()), 3)
    plain = plain_net(net)
    assert plain[1] is not net[1]
    assert kinds(plain)[Affine] == 1
    exported = write_pt2(traced(plain, (3,)), {}, tmp_path / "model.pt2")
    assert largest_error("model.pt2", exported, net, [torch.randn(4, 3)]) < 1e-6


# --- refused ----------------------------------------------------------------------------------------------------------


def test_hooks_and_other_precisions_are_refused():
    net = nn.Sequential(nn.Linear(2, 2))
    with pytest.raises(ValueError, match=r"0\.weight: numbers in torch\.float64"):
        plain_net(net.double())
    net.float()[0].register_forward_hook(lambda *_: None)
    with pytest.raises(ValueError, match="0: a Linear with hooks"):
        plain_net(net)


def test_a_network_that_depends_on_its_input_is_refused_in_a_line():
    class Branching(nn.Module):
        def forward(self, x):
            return x if x.sum() > 0 else -x

    with pytest.raises(ConfigError, match=r"^torch.export cannot trace this network: ") as refused:
        traced(Branching(), (3,))
    assert "\n" not in str(refused.value)


def test_operators_of_ours_are_refused():
    with pytest.raises(ConfigError, match=r"^tautnet\.\S+: an operator that torch alone does not have$"):
        traced(nn.Sequential(LinearSpline(3).eval().requires_grad_(False)), (3,))


def test_onnx_without_its_packages_names_the_cure(monkeypatch):
    monkeypatch.setattr(onnx_file, "find_spec", lambda name: None if name == "onnxscript" else find_spec(name))
    with pytest.raises(ConfigError, match=r"needs onnxscript, not installed; pip install 'tautnet\[export\]'"):
        check_packages()


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        (lambda y: y + 2e-5 * y.abs().max(), "differ from the network's by 2e-05"),
        (lambda y: y[:, :1], r"outputs of shape \(5, 1\); \(5, 3\)"),
        (lambda y: y * float("nan"), "differ from the network's by nan"),
    ],
)
def test_a_file_that_computes_something_else_is_refused(wrong, said):
    net = nn.Linear(2, 3)
    with pytest.raises(DiffersError, match=said), torch.no_grad():
        largest_error("model.onnx", lambda x: wrong(net(x)), net, [torch.randn(5, 2)])


@pytest.mark.parametrize(("own", "accepted"), [(5e-6, True), (1e-6, False)])
def test_ten_times_the_rounding_of_the_network_is_accepted(own, accepted):
    def net(x):
        return x * (1 + own)

    off = pytest.raises(DiffersError, match="differ from the network's by 4e-05") if not accepted else nullcontext(4e-5)
    with off as expected:
        found = largest_error("model.pt2", lambda x: net(x) * (1 + 4e-5), net, [torch.ones(2, 1)], torch.Tensor.double)
        assert found == pytest.approx(expected, rel=0.01)


def test_where_the_network_is_not_finite_there_is_nothing_to_compare():
    net = nn.Sequential(nn.Linear(2, 3))
    x = torch.tensor([[1.0, torch.inf], [0.0, 0.0]])
    assert largest_error("model.onnx", net, net, [x]) == 0
    with pytest.raises(DiffersError, match="no finite outputs"):
        largest_error("model.onnx", net, net, [x[:1]])


# --- inputs -----------------------------------------------------------------------------------------------------------


def test_standardize_is_the_preparation():
    preparation = Preparation([1e4, -3.0, 2.0], [0.5, 7.0, 0.0])
    offset, scale = (torch.tensor(v, dtype=torch.float64) for v in (preparation.offset, preparation.scale))
    x = torch.randn(5, 3) + torch.tensor(preparation.offset)
    torch.testing.assert_close(Standardize(offset, scale)(x), preparation.prepared(x), rtol=1e-6, atol=1e-6)
    assert (Standardize(offset, scale)(x)[:, 2] == 0).all()


def test_probes_cover_the_data():
    ordinary, wide, unit, zero = raw_probes((1, 8, 8), Preparation([0.5], [0.25]))
    assert abs(float(ordinary.mean()) - 0.5) < 0.1
    assert float((wide - 0.5).abs().max()) > 1.5
    assert (float(unit.min()) >= 0, float(unit.max()) <= 1, zero.abs().max()) == (True, True, 0)


def test_a_whole_net_with_raw_inputs(tmp_path):
    net = trained_a_little(mlp(LayerFactory(LinearSpline, Unitize, no_weight_norm), (3,), 2, widths=(4, 4)), 3)
    offset, scale = torch.tensor([5.0, 0.0, -2.0]).double(), torch.tensor([2.0, 0.1, 1.0]).double()
    raw = nn.Sequential(Standardize(offset, scale), plain_net(net))
    assert difference(nn.Sequential(Standardize(offset, scale), net), raw, 3, size=5.0) < 2e-6
