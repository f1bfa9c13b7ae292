"""Networks of SLAF as polynomials: the values are the network's, the degree is the one that theory says."""

import copy
from itertools import product as grid
from types import SimpleNamespace

import pytest
import pytorch_lightning as pl
import torch
from lightning_fabric.utilities.exceptions import MisconfigurationException
from torch import nn

from tautnet.activations import LinearSpline, ReLU, Slaf
from tautnet.backbones.blocks import Concatenation, Residual, Scale
from tautnet.callbacks.polynomial_writer import PolynomialWriter
from tautnet.functional.monomials import exponents, num_monomials, product, substituted
from tautnet.models.base import AbstractModel
from tautnet.normalizers import BatchNorm, RmsNorm
from tautnet.slnn import Polynomial, degree_of, polynomial_of

pytestmark = pytest.mark.usefixtures("float64")


def trained_statistics(net, *shape):
    net.train()
    for _ in range(5):
        net(torch.randn(64, *shape))
    return net


def dense(num_inputs, widths, degree, norm=nn.Identity, **settings):
    layers, last = [nn.Flatten()], num_inputs
    for width in widths:
        layers += [nn.Linear(last, width), norm(width), Slaf(width, degree, **settings)]
        last = width
    return trained_statistics(nn.Sequential(*layers, nn.Linear(last, 2)), num_inputs)


def distance(net, *shape, radius=1.0):
    """Largest difference of the polynomials' values and the network's, relative to the latter."""
    x = radius * (2 * torch.rand(300, *shape) - 1)
    with torch.no_grad():
        y = copy.deepcopy(net).eval()(x)
    values = torch.stack([polynomial(x) for polynomial in polynomial_of(net, shape, tolerance=0.0)], dim=1)
    return ((values - y).abs().max() / y.abs().max()).item()


@pytest.mark.parametrize(("num_variables", "degree"), [(1, 5), (2, 3), (3, 4), (7, 1), (4, 0)])
def test_monomials_come_once_each_and_the_lower_degrees_first(num_variables, degree):
    found = exponents(num_variables, degree)
    wanted = {powers for powers in grid(range(degree + 1), repeat=num_variables) if sum(powers) <= degree}
    assert set(map(tuple, found.tolist())) == wanted
    assert len(found) == len(wanted) == num_monomials(num_variables, degree)
    assert (found.sum(1).diff() >= 0).all()
    lower = exponents(num_variables, max(degree - 1, 0))
    assert torch.equal(found[: len(lower)], lower)


@pytest.mark.parametrize("degrees", [(2, 3), (3, 1), (0, 2)])
def test_coefficients_of_products_and_compositions(degrees):
    x = torch.randn(50, 3)

    def values(coefficients_MC, degree):
        return (x[:, None] ** exponents(3, degree)).prod(2) @ coefficients_MC

    left, right = (torch.randn(num_monomials(3, degree), 4) for degree in degrees)
    wanted = values(left, degrees[0]) * values(right, degrees[1])
    assert torch.allclose(values(product(left, right, 3, degrees), sum(degrees)), wanted)
    outer_CP, inner = torch.randn(4, 4), values(left, degrees[0])
    wanted = sum(outer_CP[:, power] * inner**power for power in range(4))
    assert torch.allclose(values(substituted(outer_CP, left, 3, degrees[0]), 3 * degrees[0]), wanted)


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"basis": "taylor", "gate": True},
        {"basis": "chebyshev", "normalize": "maxabs"},
        {"basis": "legendre", "normalize": "input", "sharing": "layer"},
        {"basis": "hermite", "bias": False, "sharing": "neuron"},
        {"norm": BatchNorm},
        {"norm": nn.BatchNorm1d},
    ],
    ids=lambda settings: "-".join(map(str, settings.values())) or "power",
)
@pytest.mark.parametrize(("num_inputs", "widths", "degree"), [(3, [5, 4], 3), (10, [6, 6], 2), (2, [4, 3, 3], 2)])
def test_values_are_those_of_the_network(num_inputs, widths, degree, settings):
    net = dense(num_inputs, widths, degree, **settings)
    assert distance(net, num_inputs, radius=2.0) < 1e-11


def test_two_layers_of_degree_7():
    net = dense(2, [20, 20], 7)
    assert distance(net, 2) < 1e-10
    assert polynomial_of(net, (2,), tolerance=0.0)[0].degree == 49


@pytest.mark.parametrize(("degree", "depth"), [(2, 1), (3, 1), (2, 2), (3, 2), (2, 3), (1, 4)])
def test_the_degree_is_k_to_the_depth(degree, depth):
    net = dense(2, [3] * depth, degree)
    found = polynomial_of(net, (2,), tolerance=0.0)
    assert [polynomial.degree for polynomial in found] == [degree**depth] * 2
    assert degree_of(net, (2,)) == degree**depth
    assert len(found[0].terms) == num_monomials(2, degree**depth)


def test_images_branches_and_parametrised_weights():
    inner = Slaf(3, 2, sharing="neuron", spatial_shape=(2, 2))
    body = nn.Sequential(nn.Conv2d(3, 3, 1), inner, Scale(0.5))
    net = nn.Sequential(
        *(nn.ZeroPad2d(1), nn.Conv2d(1, 3, 3, stride=2), nn.BatchNorm2d(3), Slaf(3, 2), Residual(body, nn.Identity())),
        *(Concatenation(nn.Identity(), nn.Sequential(nn.Conv2d(3, 2, 1), Slaf(2, 1))), nn.AdaptiveAvgPool2d(1)),
        *(nn.Flatten(), nn.Dropout(0.5), nn.utils.parametrizations.spectral_norm(nn.Linear(5, 3))),
    )
    trained_statistics(net, 1, 3, 3)
    assert distance(net, 1, 3, 3) < 1e-11
    assert polynomial_of(net, (1, 3, 3))[2].degree == 4


def test_a_known_polynomial_is_written_down():
    """(x1 + 2 x2)^2 - 3 x3 + 0.5"""
    slaf = Slaf(2, 2, normalize="none", bias=False)
    net = nn.Sequential(nn.Linear(3, 2), slaf, nn.Linear(2, 1))
    with torch.no_grad():
        net[0].weight.copy_(torch.tensor([[1.0, 2, 0], [0, 0, 1]]))
        net[0].bias.zero_()
        slaf.coefficients.copy_(torch.tensor([[0.0, 1], [1, 0]]))
        net[2].weight.copy_(torch.tensor([[1.0, -3]]))
        net[2].bias.fill_(0.5)
    (found,) = polynomial_of(net, (3,))
    assert found.terms == {(1, 1, 0): 4, (0, 2, 0): 4, (0, 0, 1): -3, (2, 0, 0): 1, (0, 0, 0): 0.5}
    assert list(map(abs, found.terms.values())) == [4, 4, 3, 1, 0.5]
    assert str(polynomial_of(net, (3,), tolerance=3.5)[0]) in ("4 x1 x2 + 4 x2^2", "4 x2^2 + 4 x1 x2")
    assert polynomial_of(net, (3,), tolerance=9.0)[0] == Polynomial({})
    assert found(torch.tensor([[1.0, 1, 1], [0, 0, 0]])).tolist() == [6.5, 0.5]


def test_text():
    assert str(Polynomial({})) == "0"
    assert str(Polynomial({(0, 0, 0): 0.5, (1, 0, 0): 2.0, (2, 0, 1): -0.3})) == "0.5 + 2 x1 - 0.3 x1^2 x3"
    assert str(Polynomial({(0, 1): -1.0, (0, 0): -1e-7})) == "-1 x2 - 1e-07"


def test_a_learned_polynomial_is_recovered():
    """2 x1 x2^2 - x3 + 0.5, learned from values alone."""
    net = nn.Sequential(nn.Linear(3, 8), Slaf(8, 2), nn.Linear(8, 8), Slaf(8, 2), nn.Linear(8, 1))
    x = torch.randn(256, 3)
    y = 2 * x[:, 0] * x[:, 1] ** 2 - x[:, 2] + 0.5
    optimizer = torch.optim.Adam(net.parameters(), lr=0.05)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 300)
    for _ in range(300):
        optimizer.zero_grad()
        (net(x)[:, 0] - y).square().mean().backward()
        optimizer.step()
        schedule.step()
    (found,) = polynomial_of(net, (3,))
    first, second, third, *rest = found.terms.items()
    assert [first[0], second[0], third[0]] == [(1, 2, 0), (0, 0, 1), (0, 0, 0)]
    assert [first[1], second[1], third[1]] == pytest.approx([2, -1, 0.5], abs=0.05)
    assert all(abs(coefficient) < 0.05 for _, coefficient in rest)


def test_float32_networks_training_flags_and_buffers_stay_as_they_are():
    net = dense(3, [4], 2).float().train()
    before = copy.deepcopy(net.state_dict())
    (first, _) = polynomial_of(net, (3,), tolerance=0.0)
    assert all(module.training for module in net.modules())
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    x = torch.randn(20, 3)
    assert torch.allclose(first(x), net.eval()(x.float())[:, 0].double(), atol=1e-5)


@pytest.mark.parametrize("mode", [torch.inference_mode, torch.no_grad])
def test_it_is_the_same_without_autograd(mode):
    net = dense(3, [4], 2)
    wanted = polynomial_of(net, (3,))
    with mode():
        assert polynomial_of(net, (3,)) == wanted


def test_nan_is_not_left_out():
    net = dense(2, [2], 2)
    with torch.no_grad():
        net[-1].bias.fill_(float("nan"))
    assert "nan" in str(polynomial_of(net, (2,))[0])


@pytest.mark.parametrize(
    ("layer", "reason"),
    [
        (lambda: ReLU(2), r"net=1 \(ReLU\): affine layers and SLAF"),
        (lambda: LinearSpline(2), r"net=1 \(LinearSpline\)"),
        (lambda: RmsNorm(2), r"net=1 \(RmsNorm\)"),
        (lambda: Slaf(2, 2, basis="fourier", normalize="maxabs"), r"net=1 \(Slaf\), basis=fourier"),
        (lambda: Slaf(2, 2, hybrid="relu"), r"net=1 \(Slaf\), basis=power, hybrid=relu"),
        (lambda: type("Mine", (Slaf,), {})(2, 2), r"net=1 \(Mine\)"),
        (lambda: nn.Sequential(nn.Identity(), nn.Sigmoid()), r"net=1\.1 \(Sigmoid\)"),
    ],
)
def test_what_is_no_polynomial_is_refused_by_its_path(layer, reason):
    with pytest.raises(ValueError, match=reason):
        polynomial_of(nn.Sequential(nn.Linear(2, 2), layer()), (2,))


def test_a_normalizer_by_the_batch_is_refused():
    net = nn.Sequential(nn.Conv2d(1, 2, 1), nn.BatchNorm2d(2, track_running_stats=False))
    with pytest.raises(ValueError, match=r"net=1 \(BatchNorm2d\)"):
        polynomial_of(net, (1, 2, 2))


def test_a_hooked_layer_is_refused():
    net = dense(2, [2], 2)
    net[1].register_forward_hook(lambda *_: None)
    with pytest.raises(ValueError, match=r"net=1 \(Linear\): .* hooks"):
        polynomial_of(net, (2,))


def test_too_many_terms_are_refused_before_the_work():
    net = dense(30, [4, 4], 6)
    with pytest.raises(ValueError, match="max_terms=100000: polynomials of degree 36 in 30 inputs have "):
        polynomial_of(net, (30,))
    with pytest.raises(ValueError, match=r"max_terms=9: .* degree 3 in 2 inputs have 10"):
        polynomial_of(dense(2, [2], 3), (2,), max_terms=9)
    assert len(polynomial_of(dense(2, [2], 3), (2,), max_terms=10, tolerance=0.0)[0].terms) == 10
    with pytest.raises(ValueError, match="tolerance=-1: at least 0"):
        polynomial_of(net, (30,), tolerance=-1)


def test_a_coefficient_as_large_as_the_tolerance_is_left_out():
    net = nn.Linear(2, 1)
    with torch.no_grad():
        net.weight.copy_(torch.tensor([[0.5, -0.25]]))
        net.bias.fill_(0.125)
    assert polynomial_of(net, (2,), tolerance=0.25)[0].terms == {(1, 0): 0.5}


def test_branches_have_the_degree_of_the_steepest():
    net = nn.Sequential(nn.Linear(2, 2), Concatenation(nn.Identity(), Slaf(2, 3), Slaf(2, 2)))
    assert degree_of(net, (2,)) == 3


def test_what_mixes_samples_is_refused():
    with pytest.raises(ValueError, match="net=1"):
        polynomial_of(nn.Sequential(nn.Linear(2, 2), nn.Flatten(0)), (2,))


class Stub(AbstractModel):
    """A model that is nothing but its network."""

    def __init__(self, net, input_shape):
        pl.LightningModule.__init__(self)
        self.net, self.input_shape = net, input_shape

    def task_loss(self, batch, stage):
        raise NotImplementedError


def test_the_writer_writes_on_one_process_by_its_settings(tmp_path):
    net, path = nn.Linear(2, 2), tmp_path / "new" / "polynomial.txt"
    with torch.no_grad():
        net.weight.copy_(torch.tensor([[0.5, -0.25], [0.0, -3.0]]))
        net.bias.copy_(torch.tensor([0.125, 1.0]))
    writer, model = PolynomialWriter(str(path), tolerance=0.2, max_terms=3), Stub(net, (2,))
    writer.on_fit_end(SimpleNamespace(is_global_zero=False), model)
    assert not path.exists()
    writer.on_test_end(SimpleNamespace(is_global_zero=True), model)
    first = ["y1: 2 terms above 0.2, degree 1", "  0.5 x1", "  -0.25 x2"]
    assert path.read_text().splitlines() == [*first, "y2: 2 terms above 0.2, degree 1", "  -3 x2", "  1"]
    with pytest.raises(MisconfigurationException, match=r"callbacks\.polynomial\.max_terms=2: "):
        PolynomialWriter(str(path), max_terms=2).setup(None, model, "fit")
    with pytest.raises(ValueError, match="max_terms=2: "):
        PolynomialWriter(str(path), max_terms=2).on_fit_end(SimpleNamespace(is_global_zero=True), model)
