"""Product, folded, matrix-inequality and paper bounds of whole networks against exact values and each other."""

import itertools
import math

import pytest
import torch
from torch import nn

from tautnet.activations import GELU, Absolute, GroupSort, LeakyReLU, LinearSpline, PReLU, ReLU
from tautnet.backbones import LayerFactory, convnet, mlp
from tautnet.backbones.blocks import Concatenation, Residual, Scale
from tautnet.lipschitz import UnboundedError, lipschitz_bound, paper_bound
from tautnet.lipschitz.lmi import log_lmi
from tautnet.normalizers import BatchNorm, no_output_norm, no_weight_norm

pytestmark = pytest.mark.usefixtures("float64_on_one_thread")
INF = math.inf


def linear(*rows):
    weight = torch.tensor(rows)
    layer = nn.Linear(weight.shape[1], weight.shape[0])
    layer.weight.data.copy_(weight)
    return layer


def spline(slopes_CP, grid_range=1.0):
    """Splines with these slopes between knots."""
    slopes = torch.as_tensor(slopes_CP)
    layer = LinearSpline(len(slopes), slopes.shape[1] + 1, grid_range)
    rises = slopes * (2 * grid_range / slopes.shape[1])
    layer.coefficients.data.copy_(torch.cat([torch.zeros(len(slopes), 1), rises.cumsum(1)], dim=1))
    return layer


def bounds(net, *shape, p=2):
    report = lipschitz_bound(net, shape, p=p)
    return [math.exp(log) for log in (report.log_product, report.log_folded, report.log_lmi)]


# --- products of matrices ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("first", "second", "product", "truth"),
    [
        (torch.diag(torch.tensor([2.0, 1.0])), torch.diag(torch.tensor([3.0, 1.0])), 6, 6),
        (torch.diag(torch.tensor([2.0, 1.0])), torch.diag(torch.tensor([1.0, 3.0])), 6, 3),
    ],
)
def test_diagonal_nets(first, second, product, truth):
    net = nn.Sequential(linear(*first.tolist()), spline([[1.0, 1.0]] * 2), linear(*second.tolist()))
    assert bounds(net, 2) == pytest.approx([product, product, truth], rel=1e-7)  # equal slopes merge two matrices


def test_rotations_keep_one():
    turn = [[math.cos(0.7), -math.sin(0.7)], [math.sin(0.7), math.cos(0.7)]]
    net = nn.Sequential(linear(*turn), Absolute(2), linear(*turn))
    assert bounds(net, 2) == pytest.approx([1, 1, 1], rel=1e-7)


# --- folding ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("p", [1, 2, INF])
def test_a_diagonal_layer_in_front_of_its_inverse_costs_nothing(p):
    """BatchNorm that undoes the scale of each row: the folded map is the identity."""
    norm = BatchNorm(3)
    norm.batch_norm.running_var.copy_(torch.tensor([1.0, 100.0, 0.01]) - norm.batch_norm.eps)
    net = nn.Sequential(linear([1.0, 0, 0], [0, 10.0, 0], [0, 0, 0.1]), norm)
    product, folded, _ = bounds(net, 3, p=p)
    assert product == pytest.approx(100)
    assert folded == pytest.approx(1)


def test_slopes_fold_forwards_through_pooling_and_flatten():
    """The steep channel meets small weights behind it, as the net (pool, flatten, dense) sees them."""
    activation = PReLU(2)
    activation.weight.data.copy_(torch.tensor([100.0, 1.0]))
    head = nn.Linear(8, 1)
    head.weight.data.copy_(torch.tensor([[0.01] * 4 + [1.0] * 4]))
    net = nn.Sequential(Scale(1.0), GroupSort(2), activation, nn.MaxPool2d(2), nn.Flatten(), head)
    product, folded, _ = bounds(net, 2, 4, 4)
    assert product == pytest.approx(100 * math.sqrt(4 * 1.0001))
    assert folded == pytest.approx(100 * math.sqrt(4 * (0.01**2 + 0.01**2)))


def test_slopes_fold_backwards_through_pooling():
    conv, activation = nn.Conv2d(1, 2, 1, bias=False), PReLU(2)
    conv.weight.data.copy_(torch.tensor([0.01, 1.0]).view(2, 1, 1, 1))
    activation.weight.data.copy_(torch.tensor([100.0, 1.0]))
    product, folded, _ = bounds(nn.Sequential(conv, nn.AvgPool2d(2), activation), 1, 4, 4)
    assert product == pytest.approx(100 * math.sqrt(1.0001) / 2)
    assert folded == pytest.approx(math.sqrt(2) / 2)


@pytest.mark.parametrize("p", [1, 2, INF])
def test_slopes_in_a_row_multiply_with_all_pairs_of_ends(p):
    """Slopes 1 and -1/2, a shift, and 1 and -3: between 0 and 1 the net has the slope 1 * -3, in no range by itself."""
    norm = BatchNorm(1, eps=1e-9)
    norm.batch_norm.running_mean.fill_(1.0)
    net = nn.Sequential(nn.LeakyReLU(-0.5), norm, nn.LeakyReLU(-3.0)).eval()
    with torch.no_grad():
        y_0, y_1 = net(torch.tensor([[0.2], [0.7]]))
    assert float(y_1 - y_0) == pytest.approx(0.5 * -3)
    assert bounds(net, 1, p=p) == pytest.approx([3, 3, 3])


@pytest.mark.parametrize("p", [1, 2, INF])
def test_slopes_without_a_map_in_front_fold_into_the_convolution_behind(p):
    norm, conv = BatchNorm(2), nn.Conv2d(2, 2, 1, bias=False)
    norm.batch_norm.weight.data.copy_(torch.tensor([100.0, 1.0]) * (1 + norm.batch_norm.eps) ** 0.5)
    conv.weight.data.copy_(torch.diag(torch.tensor([0.01, 1.0])).view(2, 2, 1, 1))
    product, folded, _ = bounds(nn.Sequential(norm, conv), 2, 3, 3, p=p)
    assert product == pytest.approx(100)
    assert folded == pytest.approx(1)


@pytest.mark.parametrize("behind", [False, True])
def test_gains_of_several_layers_fold_into_the_same_convolution(behind):
    conv, gains = nn.Conv2d(2, 2, 1, bias=False), [PReLU(2), PReLU(2)]
    conv.weight.data.copy_(torch.diag(torch.tensor([0.01, 1.0])).view(2, 2, 1, 1))
    for gain in gains:
        gain.weight.data.copy_(torch.tensor([10.0, 1.0]))
    layers = [gains[0], nn.MaxPool2d(1), gains[1]]
    product, folded, _ = bounds(nn.Sequential(*layers, conv) if behind else nn.Sequential(conv, *layers), 2, 3, 3)
    assert product == pytest.approx(100)
    assert folded == pytest.approx(1)


@pytest.mark.parametrize("p", [1, 2, INF])
def test_half_of_a_gain_on_either_side_is_tried_and_counts_beside_the_inequality(p):
    """diag(1, 0.1) diag(d) diag(1, 0.1), |d| <= (1, 100): on one side alone the gain leaves 10."""
    activation = PReLU(2)
    activation.weight.data.copy_(torch.tensor([-1.0, -100.0]))
    net = nn.Sequential(linear([1.0, 0], [0, 0.1]), activation, linear([1.0, 0], [0, 0.1]))
    assert bounds(net, 2, p=p) == pytest.approx([100, 1, 1])
    if p == 2:  # slopes of both signs: the inequality is the product with the gain in front
        ends = (torch.tensor([-1.0, -100.0]), torch.ones(2))
        assert math.exp(log_lmi([net[0].weight.detach(), net[2].weight.detach()], [ends])) == pytest.approx(10)


def test_a_zero_gain_cuts_the_net():
    assert bounds(nn.Sequential(linear([1.0]), spline([[0.0, 0.0]]), linear([5.0])), 1) == pytest.approx([0, 0, 0])


def test_a_map_of_other_channels_in_between_is_not_folded_into():
    """Per-feature gains behind Flatten cannot go back into channels."""
    net = nn.Sequential(nn.Conv2d(1, 2, 1), nn.Flatten(), PReLU(8), nn.Linear(8, 2))
    net[2].weight.data.uniform_(0.5, 3.0)
    for p in (1, 2, INF):
        product, folded, _ = bounds(net, 1, 2, 2, p=p)
        assert folded <= product * (1 + 1e-12)


@pytest.mark.parametrize("p", [1, 2, INF])
@pytest.mark.parametrize("seed", range(5))
def test_folding_never_makes_a_net_with_norms_worse(seed, p):
    torch.manual_seed(seed)
    net = convnet(LayerFactory(lambda c: LinearSpline(c, 7, 2.0), BatchNorm, no_weight_norm), (2, 6, 6), 3, (3, 4))
    for module in net.modules():
        if isinstance(module, (LinearSpline, nn.BatchNorm1d)):
            for parameter in module.parameters(recurse=False):
                parameter.data.normal_()
    report = lipschitz_bound(net, (2, 6, 6), p=p)
    assert report.log_folded < report.log_product
    assert report.log_total == min(report.log_folded, report.log_lmi)


# --- matrix inequalities ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["relu", "common", "own", "both_signs"])
@pytest.mark.parametrize("seed", range(4))
def test_the_inequality_bounds_every_slope_pattern_and_is_below_the_product(kind, seed):
    torch.manual_seed(seed)
    sizes = [3, 4, 4, 2]
    matrices = [torch.randn(o, i) for i, o in itertools.pairwise(sizes)]
    slopes = []
    for size in sizes[1:-1]:
        lo = {"relu": 0.0, "common": -0.3, "own": 0.2, "both_signs": -1.0}[kind] * torch.ones(size)
        hi = torch.ones(size) if kind in ("relu", "common") else 0.3 + torch.rand(size)
        slopes.append((lo, hi))
    bound = math.exp(log_lmi(matrices, slopes))
    (lo_1, hi_1), (lo_2, hi_2) = slopes
    largest = max(
        torch.linalg.matrix_norm(
            matrices[2]
            @ (torch.where(torch.tensor(second), hi_2, lo_2).unsqueeze(1) * matrices[1])
            @ (torch.where(torch.tensor(first), hi_1, lo_1).unsqueeze(1) * matrices[0]),
            ord=2,
        ).item()
        for first in itertools.product([False, True], repeat=4)
        for second in itertools.product([False, True], repeat=4)
    )
    scaled = [torch.maximum(lo.abs(), hi.abs()).unsqueeze(1) * w for (lo, hi), w in zip(slopes, matrices, strict=False)]
    product = math.prod(torch.linalg.matrix_norm(w, ord=2).item() for w in [*scaled, matrices[2]])
    assert largest < bound <= product * (1 + 1e-7)


def test_for_symmetric_slopes_the_inequality_is_the_product():
    matrices = [torch.randn(4, 3), torch.randn(2, 4)]
    ends = (-torch.ones(4), torch.ones(4))
    product = math.prod(torch.linalg.matrix_norm(w, ord=2).item() for w in matrices)
    assert math.exp(log_lmi(matrices, [ends])) == pytest.approx(product, rel=1e-7)


def test_for_relu_the_inequality_is_the_known_two_layer_value():
    """X_1 = 2 (I - A / (2 max e)) / max e for slopes in [0, 1], solved by hand for a diagonal net."""
    first, second = torch.diag(torch.tensor([1.0, 0.5])), torch.tensor([[1.0, 1.0]])
    inverse = torch.tensor([1.0, 1 / (2 - 0.25)])
    assert math.exp(log_lmi([first, second], [(torch.zeros(2), torch.ones(2))])) == pytest.approx(
        math.sqrt(float(inverse.sum())), rel=1e-7
    )


@pytest.mark.parametrize("width", [0.0, 1e-12, 1e-6, 1e-3])
def test_nearly_linear_layers_are_nearly_merged(width):
    matrices = [torch.randn(5, 4), torch.randn(3, 5)]
    slopes = torch.full((5,), -0.7)
    truth = torch.linalg.matrix_norm(0.7 * matrices[1] @ matrices[0], ord=2).item()
    bound = math.exp(log_lmi(matrices, [(slopes - width, slopes)]))
    assert truth * (1 - 1e-12) <= bound <= truth * 1.1


def test_dead_neurons_take_no_part():
    slopes = (torch.tensor([0.5, 0.0]), torch.tensor([1.0, 0.0]))
    both = log_lmi([torch.tensor([[1.0], [100.0]]), torch.tensor([[1.0, 100.0]])], [slopes])
    alone = log_lmi([torch.ones(1, 1), torch.ones(1, 1)], [(slopes[0][:1], slopes[1][:1])])
    assert both == pytest.approx(alone, abs=1e-7)


def test_dense_runs_inside_other_nets_use_the_inequality():
    head = mlp(LayerFactory(ReLU, no_output_norm, no_weight_norm), (3,), 2, (20, 20, 20))
    net = nn.Sequential(nn.Conv1d(1, 1, 1), head)
    report = lipschitz_bound(net, (1, 3))
    assert report.log_lmi < report.log_folded - 0.2


@pytest.mark.parametrize("p", [1, 2, INF])
def test_the_activation_behind_the_last_dense_layer_counts(p):
    """Positive values pass the first activation, and then fall with the slope 7."""
    net = nn.Sequential(linear([1.0]), nn.ReLU(), linear([-1.0]), nn.LeakyReLU(7.0))
    assert bounds(net, 1, p=p) == pytest.approx([7, 7, 7])


def test_normalizers_between_dense_layers_are_part_of_the_inequality():
    norm = BatchNorm(6)
    norm.batch_norm.weight.data.normal_()
    net = nn.Sequential(nn.Linear(4, 6), norm, ReLU(6), nn.Linear(6, 3)).eval()
    merged = nn.Sequential(nn.Linear(4, 6), ReLU(6), nn.Linear(6, 3))
    factor = (norm.batch_norm.weight / (1 + norm.batch_norm.eps) ** 0.5).unsqueeze(1)
    merged[0].weight.data.copy_(factor * net[0].weight)
    merged[2].load_state_dict(net[3].state_dict())
    assert lipschitz_bound(net, (4,)).log_lmi == pytest.approx(lipschitz_bound(merged, (4,)).log_lmi, abs=1e-7)


# --- branches ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("p", "truth"), [(1, 7.0), (2, 5.0), (INF, 4.0)])
def test_concatenation_is_the_norm_of_its_branches(p, truth):
    assert bounds(Concatenation(Scale(3.0), Scale(-4.0)), 2, p=p) == pytest.approx([truth] * 3)


def test_an_empty_or_repeated_branch_counts():
    identity, layer = nn.Sequential(), Scale(2.0)
    assert bounds(Concatenation(identity, layer, layer), 2) == pytest.approx([3.0] * 3)
    assert bounds(Residual(identity, identity), 2) == pytest.approx([2.0] * 3)


@pytest.mark.parametrize("p", [1, 2, INF])
def test_a_sum_adds_up(p):
    assert bounds(Residual(Scale(-0.5), nn.Identity()), 2, p=p) == pytest.approx([1.5] * 3)


# --- unknown layers ---------------------------------------------------------------------------------------------------


class Twice(nn.Module):
    def forward(self, x):
        return 2 * x


@pytest.mark.parametrize("p", [1, 2, INF])
def test_unknown_layers_make_every_bound_infinite_and_are_named(p):
    net = nn.Sequential(nn.Linear(2, 2), nn.Sequential(Twice(), Scale(0.0)), Residual(Twice(), nn.Identity()))
    report = lipschitz_bound(net, (2,), p=p)
    assert {report.total, report.log_product, report.log_folded, report.log_lmi} == {INF}
    assert [name.partition(" ")[0] for name in report.unbounded] == ["1.0", "2.body"]
    with pytest.raises(UnboundedError, match=r"1\.0 \(Twice: .*2\.body \(Twice: "):
        lipschitz_bound(net, (2,), p=p, strict=True)


def test_a_strict_bound_that_exists_is_returned():
    assert lipschitz_bound(nn.Linear(2, 2), (2,), strict=True).total < INF


# --- the paper's bound ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("activation", "bv2"), [(ReLU, 2.0), (Absolute, 3.0), (lambda c: LeakyReLU(c, 0.25), 1.75)])
def test_the_paper_bound_of_a_scalar_net_is_bv2(activation, bv2):
    net = nn.Sequential(linear([1.0]), activation(1))
    for p in (1, 2, INF):
        assert paper_bound(net, (1,), p=p).value == pytest.approx(bv2)
    assert lipschitz_bound(net, (1,)).total == pytest.approx(1)


@pytest.mark.parametrize(("p", "first", "second"), [(1, 2.0, 9.0), (2, 5**0.5, 27**0.5), (INF, 3.0, 3.0)])
def test_the_paper_bound_is_row_norms_times_norms_of_bv2(p, first, second):
    net = nn.Sequential(nn.Flatten(), linear([1.0, 2.0]), Absolute(1), linear([1.0], [0.5], [0.0]), Absolute(3))
    single = 3.0  # BV(2) of |x|
    assert paper_bound(net, (2,), p=p).value == pytest.approx(first * single * second)


def test_the_published_formula_leaves_out_the_outputs_of_a_bare_head():
    net = nn.Sequential(linear([1.0]), ReLU(1), linear(*[[1.0]] * 100))
    published = paper_bound(net, (1,), p=1, as_published=True)
    assert published.value == pytest.approx(2)
    assert published.remark == "not a guarantee: 2 (Linear) without activation"
    ours = paper_bound(net, (1,), p=1)
    assert ours.value == pytest.approx(200)
    assert ours.remark == ""
    assert lipschitz_bound(net, (1,), p=1).total == pytest.approx(100)  # the truth, which 2 is below


@pytest.mark.parametrize(("p", "outputs"), [(1, 100.0), (2, 10.0), (INF, 1.0)])
def test_the_outputs_of_a_bare_head_count_by_their_root(p, outputs):
    """As many identities, of BV(2) norm 1 each: the p-norm of 100 ones."""
    net = nn.Sequential(linear([1.0]), ReLU(1), linear(*[[1.0]] * 100))
    assert paper_bound(net, (1,), p=p).value == pytest.approx(2 * outputs)
    assert lipschitz_bound(net, (1,), p=p).total == pytest.approx(outputs)  # so that no smaller factor is a guarantee


def test_the_published_formula_fails_for_convolutions_and_norms_and_says_so():
    conv = nn.Conv2d(1, 1, 3, padding=1, bias=False)
    nn.init.ones_(conv.weight)
    net = nn.Sequential(conv, ReLU(1))
    published = paper_bound(net, (1, 8, 8), p=1, as_published=True)
    assert published.value == pytest.approx(2)
    assert published.remark.startswith("not a guarantee: 0 (Conv2d)")
    assert lipschitz_bound(net, (1, 8, 8), p=1).total == pytest.approx(9)
    ours = paper_bound(net, (1, 8, 8), p=1)
    assert ours.value == INF
    assert ours.remark == "for dense networks only: 0 (Conv2d), 1 (ReLU)"


@pytest.mark.parametrize("p", [1, 2, INF])
@pytest.mark.parametrize("sharing", ["channel", "layer"])
def test_the_paper_bound_is_well_above_ours(p, sharing):
    factory = LayerFactory(lambda c: LinearSpline(c, 9, 1.0, sharing=sharing), no_output_norm, no_weight_norm)
    net = mlp(factory, (5,), 3, (20, 20))
    assert paper_bound(net, (5,), p=p).value > 3 * lipschitz_bound(net, (5,), p=p).total


def test_bv2_of_smooth_activations_is_that_of_a_fine_interpolation():
    x = torch.linspace(-20, 20, 400_001)
    for activation in (GELU(1), LeakyReLU(1, -0.3)):
        y = activation(x.unsqueeze(1)).squeeze(1)
        slopes = y.diff() / x.diff()
        at = activation(torch.tensor([[0.0], [1.0]])).abs().sum()
        assert activation.bv2().item() == pytest.approx(float(slopes.diff().abs().sum() + at), rel=1e-4)


# --- what a first user broke ------------------------------------------------------------------------------------------


def steep_first(channels):
    activation = PReLU(channels)
    activation.weight.data = torch.ones(channels)
    activation.weight.data[0] = 10.0
    return activation


def second_only(inputs):
    """Reads the second channel."""
    layer = nn.Linear(inputs, inputs, bias=False)
    layer.weight.data = torch.zeros(inputs, inputs)
    layer.weight.data[1, 1] = 1.0
    return layer


@pytest.mark.parametrize("p", [1, 2, INF])
@pytest.mark.parametrize(
    "across", [nn.MaxPool1d(3, 1, 1), nn.AvgPool1d(3, 1, 1), nn.ZeroPad1d((1, -1)), nn.AdaptiveMaxPool1d(3)]
)
def test_a_pool_across_the_channels_lets_no_factor_pass(across, p):
    front = nn.Sequential(steep_first(3), across, second_only(3))
    report = lipschitz_bound(front, (3,), p=p)
    assert report.log_folded == pytest.approx(report.log_product)
    back = nn.Sequential(second_only(3), across, steep_first(3))
    assert lipschitz_bound(back, (3,), p=p).log_folded == pytest.approx(lipschitz_bound(back, (3,), p=p).log_product)


def test_a_pool_over_channels_and_pixels_lets_no_factor_pass():
    net = nn.Sequential(steep_first(3), nn.MaxPool3d((3, 1, 1), 1, (1, 0, 0)), nn.Conv2d(3, 3, 1))
    net[2].weight.data = second_only(3).weight.data.view(3, 3, 1, 1)
    assert lipschitz_bound(net, (3, 2, 2), p=INF).total == pytest.approx(10)


@pytest.mark.parametrize("container", [Residual, Concatenation])
@pytest.mark.parametrize("order", [1, -1])
def test_a_branch_that_writes_into_the_common_input_is_unbounded(container, order):
    net = container(*[nn.Sequential(nn.SELU(inplace=True), nn.Linear(3, 3)), nn.Identity()][::order])
    report = lipschitz_bound(net, (3,))
    assert report.total == INF
    assert "a branch writes into the input of both" in report.unbounded[0]
    behind = container(nn.Sequential(nn.Linear(3, 3), nn.SELU(inplace=True)), nn.Identity())
    assert lipschitz_bound(behind, (3,)).total < INF


class SevenTimes(ReLU):
    def forward(self, x):
        return 7 * super().forward(x)


def patched():
    conv = nn.Conv2d(1, 1, 3)
    conv._conv_forward = lambda x, weight, bias: 10 * nn.functional.conv2d(x, weight, bias)
    return conv


def hooked_inside():
    norm = BatchNorm(1)
    norm.batch_norm.register_forward_hook(lambda module, x, y: 50 * y)
    return norm


@pytest.mark.parametrize("make", [lambda: SevenTimes(1), patched, hooked_inside])
def test_changed_behaviour_is_unbounded(make):
    assert lipschitz_bound(make(), (1, 4, 4)).total == INF


def test_hooks_on_all_modules_make_everything_unbounded():
    handle = nn.modules.module.register_module_forward_hook(lambda module, x, y: 3 * y)
    try:
        assert lipschitz_bound(nn.Linear(2, 2), (2,)).total == INF
    finally:
        handle.remove()
    assert lipschitz_bound(nn.Linear(2, 2), (2,)).total < INF


def test_a_fixed_activation_of_another_width_counts_all_neurons_in_the_paper_bound():
    net = nn.Sequential(linear(*[[1.0]] * 64), ReLU(1))
    assert paper_bound(net, (1,), p=1).value == pytest.approx(128)


def test_a_layer_that_does_not_run_is_named():
    with pytest.raises(ValueError, match=r"1 \(Embedding\) does not run on zeros of shape \(1, 3\)"):
        lipschitz_bound(nn.Sequential(nn.Linear(3, 3), nn.Embedding(4, 2)), (3,))


class Noise(nn.Module):
    def forward(self, x):
        return x + torch.randn_like(x)


def test_a_random_layer_leaves_the_random_state_alone():
    state = torch.get_rng_state()
    assert lipschitz_bound(Noise(), (3,)).total == INF
    assert torch.equal(torch.get_rng_state(), state)


class Merging(nn.Module):
    """Merges a weight for evaluation, as low-rank adapters do."""

    def __init__(self):
        super().__init__()
        self.merged = False

    def train(self, mode=True):
        self.merged = not mode
        return super().train(mode)

    def forward(self, x):
        return x


def test_what_a_module_does_in_train_is_done_again():
    net = nn.Sequential(Merging(), nn.Sequential(Merging()).eval())
    lipschitz_bound(net, (2,))
    assert (net[0].training, net[0].merged) == (True, False)
    assert (net[1].training, net[1][0].merged) == (False, True)


@pytest.mark.parametrize("p", [True, torch.tensor(2.0), "inf", 2 + 0j, 3, 0])
def test_other_exponents_are_refused_by_every_bound(p):
    for bound in (lipschitz_bound, paper_bound):
        with pytest.raises(ValueError, match="1, 2 or inf"):
            bound(nn.Linear(2, 2), (2,), p=p)


def test_a_strict_bound_beyond_float_range_is_refused():
    layer = nn.Linear(1, 1)
    layer.weight.data.fill_(1e200)
    with pytest.raises(UnboundedError, match="within float range"):
        lipschitz_bound(nn.Sequential(layer, nn.Tanh(), layer), (1,), strict=True)
