"""What stands beside AON: orthogonal weights, weight normalisation, weight standardisation."""

import copy
import math

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations, parametrize

from tautnet.lipschitz import lipschitz_bound, lipschitz_lower
from tautnet.normalizers.orthogonal import Orthogonal
from tautnet.normalizers.weight_normalization import WeightNormalization
from tautnet.normalizers.weight_standardization import WeightStandardization
from tautnet.optim.roles import parameters_by_role

pytestmark = pytest.mark.usefixtures("float64_on_one_thread")

LAYERS = {
    "wide": (lambda: nn.Linear(7, 4), (7,)),
    "tall": (lambda: nn.Linear(4, 7), (4,)),
    "square": (lambda: nn.Linear(5, 5), (5,)),
    "1d": (lambda: nn.Conv1d(2, 3, 4, 2), (2, 9)),
    "2d": (lambda: nn.Conv2d(3, 4, 3, padding=1), (3, 6, 5)),
    "groups": (lambda: nn.Conv2d(4, 6, (2, 3), groups=2), (4, 6, 7)),
    "3d": (lambda: nn.Conv3d(2, 2, (3, 1, 2), padding=1), (2, 4, 3, 4)),
}
NORMS = {
    "orthogonal": Orthogonal,
    "householder": lambda: Orthogonal("householder", use_trivialization=False),
    "cayley": lambda: Orthogonal("cayley"),
    "weight norm": WeightNormalization,
    "standardization": lambda: WeightStandardization("fan_in", "per_row"),
}
KINDS = pytest.mark.parametrize("kind", LAYERS)


def step_(layer, x, rate=0.1):
    layer.zero_grad()
    layer(x).sin().sum().backward()
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.sub_(rate * parameter.grad)


@KINDS
@pytest.mark.parametrize("norm", NORMS)
def test_layers_keep_their_class_train_copy_save_and_bake(kind, norm):
    make, shape = LAYERS[kind]
    layer, twin, plain = (NORMS[norm]()(make()) for _ in range(2)), None, make()
    layer, twin = layer
    assert isinstance(layer, type(plain))
    assert layer.weight.shape == plain.weight.shape
    x = torch.randn(5, *shape)
    before = layer.weight.detach().clone()
    for _ in range(3):
        step_(layer, x)
    assert (layer.weight - before).abs().max() > 1e-3
    twin.load_state_dict(layer.state_dict())
    y = layer.eval()(x)
    assert torch.equal(twin(x), y)
    assert torch.equal(copy.deepcopy(layer)(x), y)
    parametrize.remove_parametrizations(layer, "weight", leave_parametrized=True)
    assert torch.equal(layer(x), y)


@KINDS
@pytest.mark.parametrize("norm", NORMS)
def test_the_bound_is_that_of_the_weight_in_force_and_reading_it_changes_nothing(kind, norm):
    make, shape = LAYERS[kind]
    layer, plain = NORMS[norm]()(make()).train(), make()
    step_(layer, torch.randn(5, *shape))
    state, generator = {name: value.clone() for name, value in layer.state_dict().items()}, torch.get_rng_state()
    total = lipschitz_bound(layer, shape).total
    assert torch.equal(torch.get_rng_state(), generator)
    assert layer.training
    assert all(torch.equal(value, state[name]) for name, value in layer.state_dict().items())
    plain.weight = nn.Parameter(layer.weight.detach())
    assert total == pytest.approx(lipschitz_bound(plain, shape).total, rel=1e-12)
    assert lipschitz_lower(nn.Sequential(layer, nn.Flatten()), torch.randn(50, *shape)) <= total


@pytest.mark.parametrize("norm", NORMS)
def test_other_layers_are_refused(norm):
    for layer, message in (
        (nn.ConvTranspose2d(2, 2, 3), "^layer=ConvTranspose2d: "),
        (NORMS[norm]()(nn.Linear(2, 2)), "^layer=ParametrizedLinear: "),
    ):
        with pytest.raises(ValueError, match=message):
            NORMS[norm]()(layer)


# --- orthogonal -------------------------------------------------------------------------------------------------------


@KINDS
@pytest.mark.parametrize(
    "settings", [(None, True), ("matrix_exp", True), ("cayley", True), ("householder", True), ("householder", False)]
)
def test_matrices_are_orthonormal_group_by_group_while_training(kind, settings):
    make, shape = LAYERS[kind]
    layer = Orthogonal(*settings)(make())
    for _ in range(3):
        for matrix in layer.weight.detach().chunk(getattr(layer, "groups", 1)):
            values = torch.linalg.svdvals(matrix.flatten(1))
            torch.testing.assert_close(values, torch.ones_like(values), atol=1e-10, rtol=0)
        step_(layer, torch.randn(5, *shape), rate=0.5)
    if kind in ("wide", "tall", "square"):
        assert lipschitz_bound(layer, shape).total == pytest.approx(1, rel=1e-9)


def test_of_a_dense_layer_it_is_torchs_own():
    layer = nn.Linear(5, 5)
    twin = copy.deepcopy(layer)
    torch.testing.assert_close(Orthogonal()(layer).weight, parametrizations.orthogonal(twin).weight)
    x = torch.randn(3, 5)
    for either in (layer, twin):
        step_(either, x)
    torch.testing.assert_close(layer.weight, twin.weight)


def test_orthonormal_weights_stay():
    layer = nn.Conv2d(2, 3, 2)
    with torch.no_grad():
        layer.weight.copy_(nn.init.orthogonal_(torch.empty(3, 8)).view(3, 2, 2, 2))
    before = layer.weight.detach().clone()
    torch.testing.assert_close(Orthogonal()(layer).weight, before)


def test_without_trivialization_no_base_is_stored():
    names = {"bias", "parametrizations.weight.original"}
    assert set(Orthogonal("householder", use_trivialization=False)(nn.Linear(6, 4)).state_dict()) == names
    base = "parametrizations.weight.0.map.base"
    assert set(Orthogonal("householder")(nn.Linear(6, 4)).state_dict()) == names | {base}


@pytest.mark.parametrize("orthogonal_map", ["matrix_exp", "cayley", "householder"])
def test_orthonormal_weights_are_as_exact_under_autocast(orthogonal_map):
    layer = Orthogonal(orthogonal_map)(nn.Linear(6, 6)).float()
    step_(layer, torch.randn(5, 6, dtype=torch.float32))
    exact = layer.weight.detach()
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(layer.weight, exact)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("expm",), "^orthogonal_map=expm: "),
        ((None, False), "^use_trivialization=False: "),
        (("cayley", False), "^use_trivialization=False: "),
    ],
)
def test_orthogonal_refuses_what_torch_cannot_start_from(arguments, message):
    with pytest.raises(ValueError, match=message):
        Orthogonal(*arguments)


# --- weight normalisation ---------------------------------------------------------------------------------------------


@KINDS
def test_it_computes_what_torchs_computes(kind):
    make, shape = LAYERS[kind]
    layer = make()
    twin, plain = parametrizations.weight_norm(copy.deepcopy(layer)), layer.weight.detach().clone()
    WeightNormalization()(layer)
    torch.testing.assert_close(layer.weight, plain)
    x = torch.randn(5, *shape)
    for _ in range(3):
        step_(layer, x)
        step_(twin, x)
    torch.testing.assert_close(layer.weight, twin.weight)
    length = layer.parametrizations.weight[0].length
    torch.testing.assert_close(layer.weight.flatten(1).norm(dim=1), length.abs())


def test_length_and_direction_have_roles_of_their_own():
    layer = WeightNormalization()(nn.Conv2d(3, 4, 2))
    originals = layer.parametrizations.weight
    assert parameters_by_role(layer) == {
        "weight": [originals.original],
        "bias": [layer.bias],
        "norm": [originals[0].length],
    }


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16])
def test_a_row_of_zeros_stays_zero(dtype):
    layer = nn.Linear(3, 2, dtype=dtype)
    with torch.no_grad():
        layer.weight[0] = 0
    WeightNormalization()(layer)
    layer.weight.sum().backward()
    assert not layer.weight[0].any()
    assert all(parameter.grad.isfinite().all() for name, parameter in layer.named_parameters() if name != "bias")


# --- weight standardisation -------------------------------------------------------------------------------------------


@KINDS
@pytest.mark.parametrize("scale", ["unit", "fan_in"])
def test_rows_have_mean_zero_and_one_deviation(kind, scale):
    layer = LAYERS[kind][0]()
    with torch.no_grad():
        layer.weight.mul_(3).add_(1)
    rows = WeightStandardization(scale)(layer).weight.flatten(1)
    assert rows.mean(1).abs().max() < 1e-12
    expected = 1.0 if scale == "unit" else rows.shape[1] ** -0.5
    torch.testing.assert_close(rows.std(1, correction=0), torch.full_like(rows[:, 0], expected), rtol=1e-7, atol=0)
    if scale == "fan_in":
        torch.testing.assert_close(rows.norm(dim=1), torch.ones_like(rows[:, 0]), rtol=1e-7, atol=0)


def test_exact_values():
    layer = nn.Linear(4, 1, bias=False)
    with torch.no_grad():
        layer.weight.copy_(torch.tensor([[1.0, 3.0, 5.0, 7.0]]))
    transform = WeightStandardization(eps=4.0)(layer)
    expected = torch.tensor([[-3.0, -1.0, 1.0, 3.0]]) / 3  # variance 5, and 4
    torch.testing.assert_close(transform.weight, expected)


def test_its_gradient_sees_mean_and_deviation():
    transform = WeightStandardization("fan_in", "per_row", 1e-3)(nn.Conv2d(2, 3, 2)).parametrizations.weight[0]
    assert torch.autograd.gradcheck(transform, torch.randn(3, 2, 2, 2, requires_grad=True))


def test_the_gain_is_of_the_role_norm_and_multiplies():
    layer = WeightStandardization(gain="per_row")(nn.Linear(6, 3))
    gain, before = layer.parametrizations.weight[0].gain, layer.weight.detach().clone()
    assert parameters_by_role(layer)["norm"] == [gain]
    with torch.no_grad():
        gain.copy_(torch.tensor([1.0, -2.0, 0.5]))
    torch.testing.assert_close(layer.weight, before * gain[:, None])


def test_equal_entries_become_zeros_with_a_gradient():
    layer = nn.Linear(4, 2).float()
    nn.init.constant_(layer.weight, 0.5)
    WeightStandardization()(layer).weight.square().sum().backward()
    assert not layer.weight.any()
    assert layer.parametrizations.weight.original.grad.isfinite().all()


def test_sixteen_bits_are_computed_in_float32():
    layer = WeightStandardization()(nn.Linear(1000, 2, dtype=torch.float16))
    assert layer.weight.dtype == torch.float16
    assert layer.weight.double().std(1, correction=0).sub(1).abs().max() < 1e-3


@pytest.mark.parametrize(
    ("name", "value"), [("scale", "row"), ("gain", "scalar"), ("eps", 0.0), ("eps", math.inf), ("eps", math.nan)]
)
def test_standardization_refuses_settings_out_of_range(name, value):
    with pytest.raises(ValueError, match=f"^{name}={value}: "):
        WeightStandardization(**{name: value})


def test_rows_of_one_entry_have_no_deviation():
    with pytest.raises(ValueError, match=r"^layer=Linear\(in_features=1, .*rows of at least two entries"):
        WeightStandardization()(nn.Linear(1, 3))


@pytest.mark.parametrize("trivialization", [True, False])
def test_weight_decay_leaves_rectangular_orthogonal_weights_orthonormal(trivialization):
    torch.manual_seed(0)
    layer = Orthogonal("householder", use_trivialization=trivialization)(nn.Linear(20, 10))
    signs = layer.parametrizations.weight.original.detach().diagonal().sign()
    optimizer = torch.optim.AdamW(layer.parameters(), lr=1e-2, weight_decay=0.5)
    for _ in range(5):
        optimizer.zero_grad()
        (layer(torch.randn(32, 20)) - 1).square().mean().backward()
        optimizer.step()
    torch.testing.assert_close(torch.linalg.svdvals(layer.weight), torch.ones(10))
    assert torch.equal(layer.parametrizations.weight.original.detach().diagonal().sign(), signs)
