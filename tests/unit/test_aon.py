"""AON: the polynomial's exact values, its invariances, the power iteration's clock, layers of every kind, bounds."""

import copy
import math
from functools import partial
from itertools import pairwise

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrize
from torch.utils.checkpoint import checkpoint

from tautnet.activations import Absolute
from tautnet.backbones import LayerFactory, convnet, mlp
from tautnet.functional.inverse_root import gram, inverse_root_taylor, scaled_inverse_root
from tautnet.kernels import spectral
from tautnet.lipschitz import lipschitz_bound, lipschitz_lower
from tautnet.normalizers import no_output_norm, power_iteration
from tautnet.normalizers.aon import Aon, AonWeight
from tautnet.normalizers.power_iteration import singular_value
from tautnet.normalizers.weight import parametrised_layers, weights_at_once
from tautnet.optim.roles import parameters_by_role

pytestmark = pytest.mark.usefixtures("float64_on_one_thread")

SHAPES = [(4, 9), (9, 4), (5, 5), (1, 6), (6, 1)]
DIAGONAL = {
    1: (1.0, 0.6875, 0.3671875),
    2: (1.0, 0.79296875, 0.4495849609375),
    3: (1.0, 0.85888671875, 0.5139579772949219),
}
PRESCALES = ("spectral", "frobenius", "none", "row_bound")


def singular_values(weight):
    return torch.linalg.svdvals(weight.detach().flatten(1))


def polynomial(s, order):
    return s * sum(math.comb(2 * k, k) / 4**k * (1 - s**2) ** k for k in range(order + 1))


def dense(matrix, **settings):
    """A dense layer with this weight and the exact vectors."""
    layer = nn.Linear(matrix.shape[1], matrix.shape[0], bias=False)
    layer.weight = nn.Parameter(matrix.clone())
    layer = Aon(**settings)(layer)
    if vectors_of(layer) is not None:
        converge_(layer)
    return layer.eval()


def vectors_of(layer):
    return layer.parametrizations.weight[0].vectors


def original_of(layer):
    return layer.parametrizations.weight.original.detach()


@torch.no_grad()
def converge_(layer):
    transform, original = layer.parametrizations.weight[0], layer.parametrizations.weight.original
    matrix = transform._matrix(original)
    shared = transform.settings.prescale == "spectral"
    u, _, vh = torch.linalg.svd(matrix if shared else transform._near_orthonormal(matrix), full_matrices=False)
    vectors_of(layer).u_GO.copy_(u[:, :, 0])
    vectors_of(layer).v_GI.copy_(vh[:, 0])


def state(layer):
    return {name: value.clone() for name, value in vectors_of(layer).named_buffers()}


def moved(layer, before):
    return any(not torch.equal(value, before[name]) for name, value in vectors_of(layer).named_buffers())


def update_(layer):
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))


# --- the polynomial ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("order", [0, 1, 2, 3, 5, 8])
@pytest.mark.parametrize("shape", SHAPES)
def test_singular_values_go_through_the_polynomial_and_vectors_stay(shape, order):
    u, s, vh = torch.linalg.svd(torch.randn(2, 3, *shape), full_matrices=False)
    s = s / s.amax() * 1.2
    expected = u @ torch.diag_embed(polynomial(s, order)) @ vh
    torch.testing.assert_close(inverse_root_taylor(u @ torch.diag_embed(s) @ vh, order), expected, atol=1e-12, rtol=0)


@pytest.mark.parametrize(
    ("s", "values"),
    [(0.1, (0.1495, 0.1863, 0.2166)), (1.2, (0.9360, 1.0231, 0.9912)), (1.9, (-0.5795, 4.2741, -6.28))],
)
def test_table_of_the_polynomial(s, values):
    for order, value in enumerate(values, 1):
        assert inverse_root_taylor(torch.tensor([[s]]), order).item() == pytest.approx(
            value, abs=5e-5 if s < 1.5 else 0.005
        )


@pytest.mark.parametrize("shape", [(2, 3), (3, 2), (3, 3)])
@pytest.mark.parametrize("order", [1, 4])
def test_the_polynomial_is_differentiable_twice(shape, order):
    matrix = (torch.randn(2, *shape) / 3).requires_grad_()
    assert torch.autograd.gradcheck(lambda a: inverse_root_taylor(a, order), matrix)
    assert torch.autograd.gradgradcheck(lambda a: inverse_root_taylor(a, order), matrix)
    assert torch.autograd.gradcheck(gram, matrix)


def test_a_negative_order_is_refused():
    with pytest.raises(ValueError, match=r"^order=-1: "):
        inverse_root_taylor(torch.eye(2), -1)


def test_gaussian_matrices_come_near_their_polar_factor_order_by_order():
    matrix = torch.randn(6, 20)
    u, s, vh = torch.linalg.svd(matrix, full_matrices=False)
    distances = []
    for order in (0, 1, 2, 4, 8, 16, 64, 256):
        result = inverse_root_taylor(matrix / s[0], order)
        distances.append(float(torch.linalg.matrix_norm(result @ result.T - torch.eye(6))))
    assert all(later < earlier for earlier, later in pairwise(distances))
    assert distances[0] > 1
    assert distances[-1] < 1e-6
    torch.testing.assert_close(result, u @ vh, atol=1e-6, rtol=0)


# --- the weight in force ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("order", DIAGONAL)
def test_exact_values_of_a_diagonal(order):
    weight = dense(torch.diag(torch.tensor([2.0, 1.0, 0.5])), taylor_order=order).weight
    torch.testing.assert_close(weight, torch.diag(torch.tensor(DIAGONAL[order])), atol=1e-12, rtol=0)


def test_exact_singular_values_of_a_full_matrix():
    weight = dense(torch.tensor([[3.0, 0.0], [4.0, 5.0]])).weight
    torch.testing.assert_close(singular_values(weight), torch.tensor([1.0, (3 - 1 / 9) / 6]), atol=1e-12, rtol=0)


@pytest.mark.parametrize("prescale", PRESCALES)
@pytest.mark.parametrize("order", [1, 2, 5])
@pytest.mark.parametrize("shape", SHAPES)
def test_the_largest_is_one_the_others_rise_and_keep_their_order(shape, order, prescale):
    u, s, vh = torch.linalg.svd(torch.randn(shape), full_matrices=False)
    s = s / s[0] * (0.9 if prescale == "none" else 3.0)
    weight = dense(u @ torch.diag(s) @ vh, taylor_order=order, prescale=prescale).weight
    values = (u.T @ weight @ vh.T).diagonal()
    assert singular_values(weight)[0] == pytest.approx(1, abs=1e-9)
    assert (values >= s / s[0] - 1e-9).all()
    assert (values.diff() <= 1e-9).all()
    a = {"spectral": s / s[0], "frobenius": s / s.norm(), "none": s}.get(prescale)
    if a is not None:
        torch.testing.assert_close(values, polynomial(a, order) / polynomial(a[0], order), atol=1e-9, rtol=0)


@pytest.mark.parametrize("shape", [(4, 9), (9, 4), (5, 5)])
def test_orthogonal_weights_stay_and_scale_rotation_and_transposition_pass_through(shape):
    q, r = (nn.init.orthogonal_(torch.empty(size, size)) for size in shape)
    orthogonal = nn.init.orthogonal_(torch.empty(shape))
    torch.testing.assert_close(dense(orthogonal).weight, orthogonal, atol=1e-12, rtol=0)
    matrix = torch.randn(shape)
    h = dense(matrix, taylor_order=2).weight
    torch.testing.assert_close(dense(7.3 * matrix, taylor_order=2).weight, h, atol=1e-9, rtol=0)
    torch.testing.assert_close(dense(q @ matrix @ r, taylor_order=2).weight, q @ h @ r, atol=1e-9, rtol=0)
    torch.testing.assert_close(dense(matrix.T, taylor_order=2).weight, h.T, atol=1e-9, rtol=0)


def test_he_weights_fold_without_a_prescale_and_nearly_nothing_happens_with_frobenius():
    matrix = nn.init.kaiming_normal_(torch.empty(64, 196), nonlinearity="relu")
    s = singular_values(matrix)
    assert s[0] > math.sqrt(3)
    values = {
        name: singular_values(dense(matrix, prescale=name, final_normalization=name != "none").weight)
        for name in PRESCALES
    }
    largest = dense(matrix, prescale="none", final_normalization=False).weight
    u, _, vh = torch.linalg.svd(matrix, full_matrices=False)
    assert (u[:, 0] @ largest @ vh[0]).item() == pytest.approx(polynomial(s[0], 1).item())
    assert polynomial(s[0], 1) < 0
    plain = s[0] / s.median()
    flatness = {name: v[0] / v.median() for name, v in values.items()}
    assert flatness["spectral"] < flatness["row_bound"] < flatness["frobenius"] < plain
    assert flatness["spectral"] < 0.85 * plain
    assert flatness["frobenius"] > 0.98 * plain
    ratios = [
        (v[0] / v.median()).item() for v in (singular_values(dense(matrix, taylor_order=k).weight) for k in (1, 2, 4))
    ]
    assert ratios[0] > ratios[1] > ratios[2] > 1


def test_the_row_bound_is_never_too_low():
    for shape in SHAPES:
        for scale in (1e-3, 1.0, 1e3):
            weight = dense(scale * torch.randn(shape), prescale="row_bound", final_normalization=False).weight
            assert singular_values(weight)[0] <= 1 + 1e-12


def test_an_estimate_that_is_too_low_does_little_harm():
    """Vectors one per cent off: sigma is too low by 5e-5, and the norm is off by as much, not more."""
    layer = dense(torch.diag(torch.tensor([2.0, 1.0, 0.5])))
    vectors_of(layer).v_GI[0, 1] = 0.01
    assert 1 - 1e-4 < singular_values(layer.eval().weight)[0] < 1 + 1e-3


# --- gradients --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("prescale", PRESCALES)
@pytest.mark.parametrize("final_normalization", [True, False])
def test_gradients_are_those_of_the_whole_function(prescale, final_normalization, monkeypatch):
    layer = dense(torch.randn(2, 3) / 3, taylor_order=2, prescale=prescale, final_normalization=final_normalization)
    transform = layer.parametrizations.weight[0].eval()
    weight = layer.parametrizations.weight.original.detach().clone().requires_grad_()
    assert torch.autograd.gradcheck(transform, weight)
    monkeypatch.setattr(power_iteration, "_NUM_AT_START", 0)  # vectors are constants for every gradient
    assert torch.autograd.gradgradcheck(transform, weight)


def test_with_converged_vectors_the_gradient_is_that_with_the_exact_sigma():
    layer = dense(torch.randn(3, 5))
    original, mix = layer.parametrizations.weight.original, torch.randn(3, 5)

    def exact(weight):
        return inverse_root_taylor(weight / torch.linalg.matrix_norm(weight, ord=2), 1)

    (found,) = torch.autograd.grad((layer.eval().weight * mix).sum(), original)
    (expected,) = torch.autograd.grad((exact(original) * mix).sum(), original)
    torch.testing.assert_close(found, expected, atol=1e-9, rtol=0)


@pytest.mark.parametrize("prescale", ["spectral", "frobenius", "row_bound"])
@pytest.mark.parametrize("conv", ["matrix", "operator"])
def test_the_gradient_is_orthogonal_to_the_weight_unless_sigma_is_detached(prescale, conv):
    along = {}
    for detach in (False, True):
        layer = Aon(prescale=prescale, conv=conv, detach_sigma=detach)(nn.Conv2d(3, 4, 2))
        original = layer.parametrizations.weight.original
        (gradient,) = torch.autograd.grad((layer.weight * torch.randn_like(original)).sum(), original)
        along[detach] = abs((gradient * original).sum() / gradient.norm() / original.norm()).item()
    assert along[False] < 1e-12
    assert along[True] > 1e-3


@pytest.mark.parametrize("prescale", PRESCALES)
@pytest.mark.parametrize("conv", ["matrix", "operator"])
@pytest.mark.parametrize("rows", [0, 2])
def test_zeros_and_lost_ranks_stay_and_have_small_gradients(prescale, conv, rows):
    layer = nn.Conv2d(4, 4, 2, bias=False).float()
    with torch.no_grad():
        layer.weight[rows:] = 0
    layer = Aon(prescale=prescale, conv=conv)(layer)
    layer.weight.sum().backward()
    assert not layer.weight[rows:].any()
    assert layer.weight.isfinite().all()
    assert layer.parametrizations.weight.original.grad.abs().max() < 1e3
    if conv == "matrix":
        assert all(
            value.norm().item() == pytest.approx(1, abs=1e-5)
            for value in (vectors_of(layer).u_GO, vectors_of(layer).v_GI)
        )
        with torch.no_grad():  # the vectors are usable when weights come back
            layer.parametrizations.weight.original.normal_(std=0.2)
            vectors_of(layer).advance_(layer.parametrizations.weight[0]._matrix(original_of(layer)), 200)
        assert singular_values(layer.weight)[0].item() == pytest.approx(1, abs=1e-3)


@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("shape", [(6, 4), (4, 10)])
@pytest.mark.parametrize("settings", [{}, {"detach_sigma": True}, {"eps": 1.0}, {"gain": "per_row"}], ids=str)
@pytest.mark.parametrize("scale", [1.0, 1e-5, -1e5])
def test_the_derivative_by_hand_is_that_of_the_formula(shape, groups, settings, scale):
    """Which vmap over several gradients at once, as differentiating twice, takes instead."""
    layer = nn.Conv1d(shape[1] * groups, shape[0] * groups, 1, groups=groups, bias=False)
    layer = Aon(**settings)(layer)
    update_(layer)
    original = layer.parametrizations.weight.original
    with torch.no_grad():
        original.mul_(scale)
    weight, grad = layer.weight, torch.randn(2, *original.shape)
    (together,) = torch.autograd.grad(weight, original, grad, is_grads_batched=True, retain_graph=True)
    for index in range(2):
        (by_hand,) = torch.autograd.grad(weight, original, grad[index], retain_graph=True)
        torch.testing.assert_close(by_hand, together[index], rtol=1e-9, atol=1e-12 / abs(scale))


@pytest.mark.parametrize("signs", [(1, 1), (-1, 1), (-1, -1)])
@pytest.mark.parametrize("shape", [(1, 3, 4), (1, 4, 3), (1, 3, 3), (2, 3, 4)])
@pytest.mark.parametrize("compiler", [True, False])
def test_the_derivative_by_hand_follows_finite_differences_whatever_the_vectors(signs, shape, compiler, monkeypatch):
    groups, *sizes = shape
    u, v = (
        sign * torch.nn.functional.normalize(torch.randn(groups, size), dim=1)
        for sign, size in zip(signs, sizes, strict=True)
    )
    if not compiler:
        monkeypatch.setattr(spectral, "_library", lambda: None)

    def formula(matrix):
        root = inverse_root_taylor(matrix / singular_value(matrix, (u, v)), 1)
        return root / singular_value(root, (u, v))

    matrix = (3 * torch.randn(shape)).requires_grad_()
    run = partial(scaled_inverse_root, vectors=(u, v), formula=formula, eps=1e-12, detached=False)
    torch.testing.assert_close(run(matrix), formula(matrix))
    assert torch.autograd.gradcheck(run, matrix)
    assert torch.autograd.gradgradcheck(run, matrix)


# --- the power iteration's clock --------------------------------------------------------------------------------------


def test_vectors_start_after_fifteen_iterations_and_leave_the_random_state_alone():
    torch.manual_seed(3)
    layer = nn.Linear(40, 30)
    before = torch.get_rng_state()
    twin = copy.deepcopy(layer)
    Aon()(layer)
    assert torch.equal(torch.get_rng_state(), before)
    again = vectors_of(Aon()(twin))
    assert torch.equal(again.u_GO, vectors_of(layer).u_GO)
    matrix, (u, v) = original_of(layer), (starts[0] for starts in start_vectors(1, 30, 40))
    for _ in range(15):
        u = torch.nn.functional.normalize(matrix @ v, dim=0)
        v = torch.nn.functional.normalize(matrix.T @ u, dim=0)
    torch.testing.assert_close(vectors_of(layer).u_GO[0], u)
    torch.testing.assert_close(vectors_of(layer).v_GI[0], v)
    held = vectors_of(layer)
    sigma = singular_value(layer.parametrizations.weight.original.detach()[None], (held.u_GO, held.v_GI)).item()
    assert 0.97 < sigma / singular_values(layer.parametrizations.weight.original)[0].item() <= 1 + 1e-12


def start_vectors(groups, *sizes):
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(groups, size, generator=generator) for size in sizes]


def test_without_a_spectral_prescale_vectors_start_from_what_sigma_divides():
    """Order 1 folds 1.9 to -0.58: the largest of the result lies where W has its second."""
    layer = nn.Linear(2, 2, bias=False)
    layer.weight = nn.Parameter(torch.diag(torch.tensor([1.9, 1.0])))
    assert singular_values(Aon(prescale="none")(layer).eval().weight)[0].item() == pytest.approx(1, abs=1e-6)


@pytest.mark.parametrize("prescale", ["spectral", "none"])
def test_one_advance_for_each_update_however_often_the_weight_is_read(prescale):
    layer = Aon(prescale=prescale)(nn.Linear(6, 4))
    x, before = torch.randn(5, 6), state(layer)
    layer(x)
    assert not moved(layer, before)
    for _ in range(3):
        update_(layer)
        before = state(layer)
        layer(x)
        assert moved(layer, before)
        after = state(layer)
        for _ in range(3):
            layer(x).sum().backward()
        assert not moved(layer, after)


def test_the_advance_is_one_iteration_with_the_weight_of_the_step():
    layer = Aon(num_power_iterations=1)(nn.Linear(6, 4))
    twice = Aon(num_power_iterations=2)(copy.deepcopy(nn.Linear(6, 4)))
    for aon, iterations in ((layer, 1), (twice, 2)):
        update_(aon)
        matrix, v = original_of(aon), vectors_of(aon).v_GI[0]
        for _ in range(iterations):
            u = torch.nn.functional.normalize(matrix @ v, dim=0)
            v = torch.nn.functional.normalize(matrix.T @ u, dim=0)
        aon(torch.randn(2, 6))
        torch.testing.assert_close(vectors_of(aon).u_GO[0], u)
        torch.testing.assert_close(vectors_of(aon).v_GI[0], v)


@pytest.mark.parametrize("optimizer", [torch.optim.SGD, torch.optim.Adam])
@pytest.mark.parametrize("fused", [False, True])
def test_every_step_of_an_optimizer_counts_as_an_update(optimizer, fused):
    layer = Aon()(nn.Linear(6, 4))
    steps = optimizer(layer.parameters(), lr=0.1, fused=fused)
    for _ in range(3):
        layer(torch.randn(5, 6)).square().sum().backward()
        before = state(layer)
        steps.step()
        layer(torch.randn(5, 6))
        assert moved(layer, before)


def test_only_groups_that_changed_advance():
    layer = Aon()(nn.Conv1d(6, 8, 3, groups=2))
    before = state(layer)
    with torch.no_grad():
        layer.parametrizations.weight.original[4:].add_(torch.randn(4, 3, 3))
    layer(torch.randn(2, 6, 5))
    assert torch.equal(vectors_of(layer).v_GI[0], before["v_GI"][0])
    assert not torch.equal(vectors_of(layer).v_GI[1], before["v_GI"][1])


@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")  # the compiler's own
def test_a_compiled_layer_advances_once_for_each_update():
    layer = Aon()(nn.Linear(6, 4))
    twin, x = copy.deepcopy(layer), torch.randn(5, 6)
    compiled = torch.compile(layer, backend="eager", fullgraph=True)
    for _ in range(2):
        for copied in (layer, twin):
            copied.parametrizations.weight.original.data.add_(torch.ones(4, 6))
        torch.testing.assert_close(compiled(x), twin(x))
        torch.testing.assert_close(compiled(x), twin(x))
        torch.testing.assert_close(vectors_of(layer).v_GI, vectors_of(twin).v_GI)


def test_nothing_moves_in_evaluation_or_without_gradients():
    layer = Aon()(nn.Linear(6, 4))
    x, before = torch.randn(5, 6), state(layer)
    update_(layer)
    with torch.no_grad():
        layer(x)
    with torch.inference_mode():
        layer(x)
    layer.eval()
    assert torch.equal(layer(x), layer(x))
    for mode in (True, False):
        layer.train(mode)
        jacobian = torch.func.jacrev(
            lambda weight: torch.func.functional_call(layer, {"parametrizations.weight.original": weight}, x)
        )
        assert jacobian(original_of(layer)).isfinite().all()
    layer.train()
    assert not moved(layer, before)
    layer(x)
    assert moved(layer, before)


def test_checkpointing_recomputes_with_the_same_vectors():
    layer = Aon()(nn.Linear(6, 6))
    twin = copy.deepcopy(layer)
    x = torch.randn(5, 6)
    for _ in range(3):
        checkpoint(lambda z: layer(layer(z)), x, use_reentrant=False).square().sum().backward()
        twin(twin(x)).square().sum().backward()
        grads = [copied.parametrizations.weight.original.grad for copied in (layer, twin)]
        assert torch.equal(*grads)
        assert torch.equal(vectors_of(layer).u_GO, vectors_of(twin).u_GO)
        for copied in (layer, twin):
            copied.parametrizations.weight.original.data.add_(torch.eye(6))


def test_two_updates_before_one_backward_do_not_disturb_each_other():
    layer = Aon()(nn.Linear(6, 4))
    x = torch.randn(5, 6)
    first = layer.weight
    vectors_of(layer).advance_(torch.randn(1, 4, 6), 1)
    (first.sum() + layer(x).sum()).backward()
    assert layer.parametrizations.weight.original.grad.isfinite().all()


def test_checkpoints_hold_the_vectors_and_what_they_have_seen():
    """Not the probe, which every layer of the same shape draws again."""
    names = {"bias", "parametrizations.weight.original"}
    names |= {f"parametrizations.weight.0.vectors.{name}" for name in ("u_GO", "v_GI", "seen_GO")}
    assert set(Aon()(nn.Linear(6, 4)).state_dict()) == names


def test_vectors_that_lost_their_length_do_not_change_sigma():
    """As an average of them does, or a cast."""
    layer = dense(torch.randn(4, 6))
    weight = layer.eval().weight
    vectors_of(layer).u_GO.mul_(0.5)
    torch.testing.assert_close(layer.weight, weight)


def test_sigma_has_no_sign():
    """Of a weight that has changed its sign since the vectors advanced."""
    layer = dense(torch.randn(4, 6))
    weight = layer.weight.detach().clone()
    layer.parametrizations.weight.original.data.neg_()
    torch.testing.assert_close(layer.weight, -weight)


@pytest.mark.parametrize("value", [math.nan, math.inf, 0.0])
@pytest.mark.parametrize("entries", [slice(None), (0, 0)])
def test_vectors_outlive_a_step_with_weights_that_have_no_direction(value, entries):
    layer = Aon()(nn.Linear(6, 4))
    original_of(layer)[entries] = value
    layer(torch.randn(2, 6))
    for vector in (vectors_of(layer).u_GO, vectors_of(layer).v_GI):
        assert vector.norm().item() == pytest.approx(1, rel=1e-12)


# --- layers -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("prescale", PRESCALES)
@pytest.mark.parametrize("groups", [2, 4])
def test_groups_are_blocks_of_their_own(groups, prescale):
    conv = nn.Conv2d(4, 8, (2, 3), groups=groups, bias=False)
    with torch.no_grad():
        conv.weight.mul_(torch.rand(8, 1, 1, 1)).div_(3)
    rows = conv.weight.detach().flatten(1).chunk(groups)
    settings = {"taylor_order": 2, "prescale": prescale}
    conv = Aon(**settings)(conv)
    converge_(conv.eval())
    blocks = [dense(block, **settings).weight for block in rows]
    torch.testing.assert_close(conv.weight.flatten(1), torch.cat(blocks), atol=1e-9, rtol=0)


@pytest.mark.parametrize(
    ("layer", "shape"),
    [(nn.Linear(7, 4), (7,)), (nn.Conv1d(2, 3, 4, 2), (2, 9)), (nn.Conv3d(2, 2, (3, 1, 2), padding=1), (2, 4, 3, 4))],
    ids=["dense", "1d", "3d"],
)
@pytest.mark.parametrize("gain", ["none", "scalar", "per_row"])
def test_layers_copy_save_bake_and_train(layer, shape, gain):
    layer, plain = copy.deepcopy(layer).double(), copy.deepcopy(layer).double()
    assert Aon(gain=gain)(layer) is layer
    twin = Aon(gain=gain)(plain)
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.1)
    x = torch.randn(5, *shape)
    for _ in range(3):
        optimizer.zero_grad()
        layer(x).square().mean().backward()
        optimizer.step()
    twin.load_state_dict(layer.state_dict())
    layer.eval()
    y = layer(x)
    assert torch.equal(twin.eval()(x), y)
    assert torch.equal(copy.deepcopy(layer)(x), y)
    parametrize.remove_parametrizations(layer, "weight", leave_parametrized=True)
    assert type(layer.weight) is nn.Parameter
    assert torch.equal(layer(x), y)


@pytest.mark.parametrize(("gain", "shape"), [("none", None), ("scalar", ()), ("per_row", (4,))])
def test_the_gain_multiplies_and_is_of_the_role_norm(gain, shape):
    layer = Aon(gain=gain)(nn.Conv2d(3, 4, 2))
    transform, found = layer.parametrizations.weight[0], parameters_by_role(layer)
    assert found["weight"] == [layer.parametrizations.weight.original]
    weight = layer.eval().weight.detach()
    if shape is None:
        assert "norm" not in found
        return
    assert found["norm"] == [transform.gain]
    assert transform.gain.shape == shape
    assert (transform.gain == 1).all()
    factor = torch.rand(shape) + 0.5
    with torch.no_grad():
        transform.gain.copy_(factor)
    torch.testing.assert_close(layer.weight, weight * factor.reshape(-1, 1, 1, 1))


@pytest.mark.parametrize("conv", ["matrix", "operator"])
def test_autocast_and_memory_format_change_nothing(conv):
    layer = Aon(conv=conv, taylor_order=2)(nn.Conv2d(8, 8, 3).float())
    exact = layer.eval().weight.detach()
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(layer.weight, exact)
    layer.to(memory_format=torch.channels_last)
    torch.testing.assert_close(layer.weight, exact)


def test_sixteen_bits_are_computed_in_float32():
    weight = nn.init.orthogonal_(torch.empty(64, 96)).to(torch.bfloat16)
    layer = nn.Linear(96, 64, bias=False).to(torch.bfloat16)
    layer.weight = nn.Parameter(weight)
    layer = Aon(gain="scalar")(layer)
    assert layer.weight.dtype == torch.bfloat16
    assert {value.dtype for value in vectors_of(layer).buffers()} == {torch.float32}
    layer(torch.randn(2, 96, dtype=torch.bfloat16)).sum().backward()
    assert layer.parametrizations.weight.original.grad.isfinite().all()
    reference = dense(weight.float(), gain="scalar")
    torch.testing.assert_close(layer.weight.float(), reference.weight.float(), atol=0.004, rtol=0)
    layer.to(torch.bfloat16)  # the vectors too; still near norm 1
    assert singular_values(layer.weight.double())[0].item() == pytest.approx(1, abs=0.02)


@pytest.mark.parametrize("conv", ["matrix", "operator"])
def test_layers_can_be_made_without_memory(conv):
    with torch.device("meta"):
        for layer in (nn.Linear(4, 6), nn.Conv2d(4, 6, 3, groups=2)):
            assert Aon(conv=conv)(layer).weight.is_meta


@pytest.mark.parametrize(
    ("settings", "layer", "message"),
    [
        ({"conv": "operator"}, nn.Conv2d(2, 2, 3, padding=1, padding_mode="reflect"), "padding_mode=reflect: zeros"),
        ({}, nn.ConvTranspose2d(2, 2, 3), "layer=ConvTranspose2d: nn.Linear, nn.Conv1d, nn.Conv2d or nn.Conv3d"),
        ({}, Aon()(nn.Linear(2, 2)), "layer=ParametrizedLinear: "),
    ],
)
def test_other_layers_are_refused(settings, layer, message):
    with pytest.raises(ValueError, match=message):
        Aon(**settings)(layer)


def test_reflecting_padding_is_no_matter_of_the_matrix():
    assert Aon()(nn.Conv2d(2, 2, 3, padding=1, padding_mode="reflect")).weight.isfinite().all()


@pytest.mark.parametrize(
    ("name", "value", "others"),
    [
        ("taylor_order", 0, {}),
        ("taylor_order", 9, {}),
        ("prescale", "l2", {}),
        ("gain", "both", {}),
        ("conv", "image", {}),
        ("num_power_iterations", 0, {}),
        ("eps", 0.0, {}),
        ("eps", 2.0, {}),
        ("eps", math.nan, {}),
        ("conv", "operator", {"final_normalization": False}),
        ("num_power_iterations", 2, {"prescale": "frobenius", "final_normalization": False}),
        ("num_power_iterations", 2, {"prescale": "row_bound", "conv": "operator"}),
        ("detach_sigma", True, {"prescale": "none", "final_normalization": False}),
    ],
)
def test_settings_out_of_range_or_without_effect_are_refused(name, value, others):
    with pytest.raises(ValueError, match=f"^{name}={value}: "):
        Aon(**{name: value}, **others)


# --- bounds -----------------------------------------------------------------------------------------------------------

CONVOLUTIONS = {
    "dense": (lambda: nn.Linear(7, 5), (7,)),
    "1d": (lambda: nn.Conv1d(3, 2, 4, 2, padding=3), (3, 11)),
    "2d": (lambda: nn.Conv2d(3, 4, 3, padding=1), (3, 9, 8)),
    "stride": (lambda: nn.Conv2d(2, 5, 3, 2, padding=1), (2, 9, 9)),
    "groups": (lambda: nn.Conv2d(4, 6, (2, 3), dilation=2, groups=2), (4, 6, 7)),
}


@pytest.mark.parametrize("kind", CONVOLUTIONS)
@pytest.mark.parametrize("prescale", PRESCALES)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_as_operators_layers_never_exceed_their_gain(kind, prescale, dtype):
    make, shape = CONVOLUTIONS[kind]
    layer = make().to(dtype)
    with torch.no_grad():
        layer.weight.normal_(std=3.0)
    layer = Aon(prescale=prescale, conv="operator", gain="scalar", taylor_order=2)(layer)
    for gain in (1.0, -2.5):
        update_(layer)
        with torch.no_grad():
            layer.parametrizations.weight[0].gain.fill_(gain)
        for mode in (True, False):
            total = lipschitz_bound(exact_twin(layer.train(mode), make), shape).total
            assert (0.4 if dtype == torch.bfloat16 else 0.7) * abs(gain) < total <= abs(gain) * (1 + 1e-6)


def exact_twin(layer, make):
    plain = make()
    plain.weight = nn.Parameter(layer.weight.detach().double())
    return plain


def test_the_matrix_of_a_kernel_is_no_map_of_images():
    """Why ``matrix`` promises nothing: a constant kernel has matrix norm 1 and acts with 3."""
    conv = nn.Conv2d(1, 1, 3, padding=1, bias=False)
    nn.init.ones_(conv.weight)
    conv = Aon()(conv)
    assert singular_values(conv.weight)[0].item() == pytest.approx(1)
    assert lipschitz_bound(conv, (1, 24, 24)).total > 2.9


@pytest.mark.parametrize("shape", [(3,), (2, 6, 6)])
@pytest.mark.parametrize("conv", ["matrix", "operator"])
def test_bounds_of_networks_are_sound_and_reading_them_changes_nothing(shape, conv):
    factory = LayerFactory(Absolute, no_output_norm, Aon(conv=conv, taylor_order=3))
    net = mlp(factory, shape, 3, (7, 5)) if len(shape) == 1 else convnet(factory, shape, 3, (4, 3))
    net.train()
    update_(net)
    before = {name: value.clone() for name, value in net.state_dict().items()}
    report = lipschitz_bound(net, shape)
    lower = lipschitz_lower(net, torch.randn(100, *shape))
    assert 0 < lower <= report.total
    if conv == "operator":
        assert report.total <= 1 + 1e-5
    assert net.training
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    assert all(parameter.grad is None for parameter in net.parameters())


def test_training_keeps_the_largest_singular_value_near_one():
    net = nn.Sequential(Aon()(nn.Linear(12, 16)), nn.Tanh(), Aon(gain="scalar")(nn.Linear(16, 4)))
    optimizer = torch.optim.Adam(net.parameters(), lr=0.01)
    x, y = torch.randn(64, 12), torch.randn(64, 4)
    losses = []
    for _ in range(150):
        optimizer.zero_grad()
        loss = (net(x) - y).square().mean()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.8 * losses[0]
    for layer in (net[0], net[2]):
        gain = layer.parametrizations.weight[0].gain
        largest = singular_values(layer.weight)[0].item() / (1 if gain is None else abs(gain.item()))
        assert largest == pytest.approx(1, abs=0.02)


@pytest.mark.parametrize("mode", ["eval", "no_grad"])
def test_weights_that_no_forward_has_seen_are_normalised_all_the_same(mode):
    torch.manual_seed(0)
    layer = Aon()(nn.Linear(50, 40)).train(mode != "eval")
    before = copy.deepcopy(vectors_of(layer).state_dict())
    with torch.no_grad():
        layer.parametrizations.weight.original.copy_(torch.randn(40, 50))
        first, second = layer.weight, layer.weight
    assert singular_values(first)[0] == pytest.approx(1, abs=0.05)
    assert torch.equal(first, second)
    assert all(torch.equal(value, before[name]) for name, value in vectors_of(layer).state_dict().items())


def test_the_weights_of_a_forward_pass_are_computed_at_once_and_once(monkeypatch):
    computed = []
    forward = AonWeight.forward
    monkeypatch.setattr(AonWeight, "forward", lambda self, weight: computed.append(self) or forward(self, weight))
    net = mlp(LayerFactory(Absolute, no_output_norm, Aon()), (4,), 3, (5, 6))
    x, layers = torch.randn(7, 4), parametrised_layers(net)
    assert len(layers) == 3
    plain = torch.autograd.grad(net(x).sum(), list(net.parameters()))
    computed.clear()
    with weights_at_once(layers):
        assert len(computed) == 3
        y = net(x)
    assert len(computed) == 3
    for found, expected in zip(torch.autograd.grad(y.sum(), list(net.parameters())), plain, strict=True):
        torch.testing.assert_close(found, expected)
