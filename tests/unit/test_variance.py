"""Variance constancy: exact values, its theory by Monte Carlo, layers and betas, what training sees and leaves."""

import copy
import math
import pickle

import pytest
import pytorch_lightning as pl
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from tautnet.activations import ELU, GroupSort, LinearSpline, ReLU
from tautnet.backbones import LayerFactory, mlp
from tautnet.backbones.blocks import Residual
from tautnet.callbacks.discriminant_monitor import DiscriminantMonitor, discriminant
from tautnet.callbacks.variance_monitor import Moments, VarianceMonitor
from tautnet.factories import Observed, Observer
from tautnet.functional.variance_constancy import subset_variances, variance_constancy
from tautnet.lipschitz import lipschitz_bound
from tautnet.losses.nothing import NoLoss
from tautnet.models.base import AbstractModel
from tautnet.models.stage_metrics import SampleMean
from tautnet.normalizers import BatchNorm, Unitize, no_output_norm, no_weight_norm
from tautnet.optim.roles import parameters_by_role
from tautnet.regularizers import SecondOrderVariation
from tautnet.regularizers.variance import VarianceConstancy

pytestmark = pytest.mark.usefixtures("float64")

FIRST = torch.tensor([[1.0, 0.0], [2.0, 0.0], [3.0, 3.0]], dtype=torch.float64)
SECOND = torch.tensor([[0.0, 1.0], [2.0, 1.0], [4.0, 1.0]], dtype=torch.float64)


def pair_loss(x, beta, n=3, **options):
    return variance_constancy(subset_variances(x, n, 2), torch.as_tensor(beta), **options)


def attached(net, shape=(4,), **settings):
    penalty = VarianceConstancy(**settings)
    penalty.attach(net, shape)
    return penalty


def dense(activation=ELU, norm=no_output_norm, widths=(5, 6)):
    return mlp(LayerFactory(activation, norm, no_weight_norm), (4,), 3, widths)


def conv():
    return nn.Sequential(
        nn.Conv2d(2, 3, 3, padding=1), ReLU(3), nn.Conv2d(3, 4, 3), ELU(4), nn.Flatten(), nn.Linear(16, 2)
    )


# --- the function -----------------------------------------------------------------------------------------------------


def test_the_exact_example():
    x, beta = torch.cat([FIRST, SECOND]), torch.ones(2, requires_grad=True)
    terms = pair_loss(x, beta)
    torch.testing.assert_close(terms.detach(), torch.tensor([0.64, 4.0]))
    assert terms.mean().item() == pytest.approx(2.32, abs=1e-14)
    terms.mean().backward()
    torch.testing.assert_close(beta.grad, torch.tensor([0.032, -6.0]), rtol=1e-12, atol=0)


def test_limits():
    x = torch.randn(6, 7)
    same = torch.cat([x, x[torch.randperm(6)]])
    assert pair_loss(same, 0.0, n=6).abs().max() < 1e-25
    torch.testing.assert_close(pair_loss(torch.randn(12, 7), 1e9, n=6), torch.ones(7))
    constant = torch.ones(12, 7, requires_grad=True)
    terms = pair_loss(constant, 1e-3, n=6)
    assert torch.equal(terms, torch.ones(7))
    terms.sum().backward()
    assert constant.grad.isfinite().all()


@pytest.mark.parametrize("form", ["two_sample", "population"])
def test_invariances(form):
    x, beta = torch.randn(12, 7), torch.rand(7) + 0.5
    terms = pair_loss(x, beta, n=6, form=form)
    torch.testing.assert_close(pair_loss(x + torch.randn(7), beta, n=6, form=form), terms)
    torch.testing.assert_close(pair_loss(3 * x, 9 * beta, n=6, form=form), terms)
    shuffled = torch.cat([x[torch.randperm(6)], x[6 + torch.randperm(6)]])
    torch.testing.assert_close(pair_loss(shuffled, beta, n=6, form=form), terms)
    assert (terms > 0).all()


def test_population_compares_with_the_mean():
    terms = pair_loss(torch.cat([FIRST, SECOND]), [0.0, 0.5], form="population")  # variances (1, 3) and (4, 0)
    torch.testing.assert_close(terms, torch.tensor([0.36, (0.25 + 1) / 2]))


@pytest.mark.parametrize("form", ["two_sample", "population"])
@pytest.mark.parametrize("pool", [False, True])
def test_gradients(form, pool):
    x, beta = torch.randn(12, 2, 3, requires_grad=True), torch.rand(2) + 0.3
    beta = beta if pool else beta.unsqueeze(1)

    def loss(x, beta):
        return variance_constancy(subset_variances(x, 3, 4, pool), beta, form)

    assert torch.autograd.gradcheck(loss, (x, beta.requires_grad_()))


def test_pooled_variances_and_those_of_single_positions():
    x = torch.randn(11, 2, 3, 4)
    subsets = x[:10].unflatten(0, (2, 5))
    torch.testing.assert_close(subset_variances(x, 5, 2), subsets.var(1))
    pooled = subset_variances(x, 5, 2, pool_positions=True)
    torch.testing.assert_close(pooled, subsets.transpose(1, 2).flatten(2).var(2))
    torch.testing.assert_close(subset_variances(x[..., 0, 0], 5, 2, pool_positions=True), subsets[..., 0, 0].var(1))


def test_without_the_denominators_gradient_the_second_subset_gets_none():
    x, beta = torch.randn(6, 2, requires_grad=True), torch.ones(2, requires_grad=True)
    pair_loss(x, beta, detach_denominator=True).sum().backward()
    assert (x.grad[:3] != 0).all()
    assert (x.grad[3:] == 0).all()
    assert (beta.grad != 0).all()


def test_low_precision_is_computed_in_float32():
    x = (10 + 0.1 * torch.randn(10, 50)).bfloat16()
    assert subset_variances(x, 5, 2).dtype == torch.float32
    torch.testing.assert_close(subset_variances(x, 5, 2), subset_variances(x.double(), 5, 2).float())


@pytest.mark.parametrize(("n", "count"), [(1, 2), (5, 3), (5, 0)])
def test_too_few_samples_are_refused(n, count):
    with pytest.raises(ValueError, match=f"sample_size={n}: |num_subsets={count}: "):
        subset_variances(torch.randn(10, 2), n, count)


# --- the theory -------------------------------------------------------------------------------------------------------

DRAWS = 400_000
DISTRIBUTIONS = {  # of variance 1, and their kurtosis
    "gaussian": (3.0, lambda *shape: torch.randn(*shape)),
    "uniform": (1.8, lambda *shape: (torch.rand(*shape) - 0.5) * math.sqrt(12)),
    "two atoms": (1.0, lambda *shape: torch.randint(0, 2, shape) * 2.0 - 1),
    "laplace": (
        6.0,
        lambda *shape: torch.empty(*shape).exponential_(math.sqrt(2)) * (torch.randint(0, 2, shape) * 2 - 1),
    ),
}
TABLE = {2: (2, 1.4, 1, 3.5), 3: (1, 0.6, 1 / 3, 2), 5: (0.5, 0.26, 0.1, 1.1), 10: (2 / 9, 0.1022, 0.0222, 0.5222),
         25: (0.0833, 0.0353, 0.0033, 0.2033)}  # fmt: skip


@pytest.mark.parametrize("name", DISTRIBUTIONS)
def test_the_expectation_is_that_of_the_kurtosis(name):
    """(kurtosis - (n - 3) / (n - 1)) / n, the table of the notes, against the reference 1 given through beta."""
    torch.set_default_dtype(torch.float32)
    kurtosis, draw = DISTRIBUTIONS[name]
    column = list(DISTRIBUTIONS).index(name)
    for n, row in TABLE.items():
        draws = DRAWS * (4 if n <= 3 else 1)
        first = subset_variances(draw(n, draws), n, 1)
        found = (
            variance_constancy(torch.cat([first, torch.zeros_like(first)]), torch.tensor(1.0)).double().mean().item()
        )
        assert found == pytest.approx((kurtosis - (n - 3) / (n - 1)) / n, rel=0.02)
        assert found == pytest.approx(row[column], rel=0.025)


def test_gaussian_units_with_the_official_settings_have_the_value_of_the_notes():
    torch.set_default_dtype(torch.float32)
    found = pair_loss(torch.randn(10, 1_000_000), 1.0, n=5).double().mean().item()
    assert found == pytest.approx(0.394, abs=0.005)


# --- the penalty of a network -----------------------------------------------------------------------------------------


def by_hand(net, x, paths, n=5, beta=1.0):
    entering = {}
    for path in paths:
        entering[path] = net[: int(path)](x)
    return sum(pair_loss(each, torch.tensor(beta), n=n).mean() for each in entering.values())


def test_the_penalty_is_the_sum_over_layers():
    net, x = dense(), torch.randn(13, 4)
    penalty = attached(net, weight=0.3, beta_init=2.0)
    net(x)
    value = penalty()
    torch.testing.assert_close(value, 0.3 * by_hand(net, x, ("3", "6"), beta=2.0))
    assert set(penalty.unit_terms) == {"3", "6"}
    assert not any(terms.requires_grad for terms in penalty.unit_terms.values())


def test_the_mean_over_layers_and_chosen_layers():
    net, x = dense(), torch.randn(13, 4)
    penalty = attached(net, weight=1.0, reduction="mean")
    net(x)
    torch.testing.assert_close(penalty(), by_hand(net, x, ("3", "6")) / 2)
    for settings, path in (({"include": ["6"]}, "6"), ({"exclude": ["last"]}, "3")):
        net = dense()
        penalty = attached(net, weight=1.0, **settings)
        net(x)
        torch.testing.assert_close(penalty(), by_hand(net, x, (path,)))


def test_all_pairs():
    net, x = dense(widths=(5,)), torch.randn(17, 4)
    penalty = attached(net, weight=1.0, pairs="all", sample_size=2)
    net(x)
    y = net[:2](x)
    expected = sum(pair_loss(y[start : start + 4], 1.0, n=2).mean() for start in (0, 4, 8, 12)) / 4
    torch.testing.assert_close(penalty(), expected)


@pytest.mark.parametrize(
    ("unit", "beta_shape", "sizes"),
    [
        ("position", "unit", {"1": (3, 4, 4), "3": (4, 2, 2)}),
        ("position", "channel", {"1": (3, 1, 1), "3": (4, 1, 1)}),
        ("position", "layer", {"1": (1, 1, 1), "3": (1, 1, 1)}),
        ("channel", "unit", {"1": (3,), "3": (4,)}),
        ("channel", "channel", {"1": (3,), "3": (4,)}),
        ("channel", "layer", {"1": (1,), "3": (1,)}),
    ],
)
def test_shapes_of_beta(unit, beta_shape, sizes):
    net, x = conv(), torch.randn(10, 2, 4, 4)
    penalty = attached(net, (2, 4, 4), unit=unit, beta_shape=beta_shape, weight=1.0)
    assert {path: tuple(beta.shape) for path, beta in penalty.betas().items()} == sizes
    with torch.no_grad():
        penalty.beta.copy_(torch.rand_like(penalty.beta) + 0.1)
    net(x)
    pool = unit == "channel"
    expected = sum(
        variance_constancy(subset_variances(net[: int(path)](x), 5, 2, pool), beta).mean()
        for path, beta in penalty.betas().items()
    )
    torch.testing.assert_close(penalty(), expected)


def test_beta_has_a_role_and_a_floor():
    net = dense()
    penalty = attached(net, beta_min=0.5)
    assert parameters_by_role(penalty) == {"regularizer": [penalty.beta]}
    with torch.no_grad():
        penalty.beta.copy_(torch.linspace(-1, 2, 11))
    penalty.project_()
    torch.testing.assert_close(penalty.beta.detach(), torch.linspace(-1, 2, 11).clamp(min=0.5))
    free = attached(dense(), beta_min=None, learn_beta=False)
    assert parameters_by_role(free) == {}
    with torch.no_grad():
        free.beta.fill_(-1.0)
    free.project_()
    assert (free.beta == -1).all()


def test_beta_from_data_measures_each_unit_and_leaves_no_other_trace():
    net, x = dense(norm=BatchNorm), torch.randn(40, 4)
    before = {name: value.clone() for name, value in net.state_dict().items()}
    penalty = attached(net, beta_init=0.5, beta_from_data=True, beta_min=1e-3)
    state = torch.get_rng_state()
    net(x)
    with pytest.raises(ValueError, match="beta_from_data=True: calibrate_"):
        penalty()
    net.load_state_dict(before)
    penalty.calibrate_(net, x)
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    assert torch.equal(torch.get_rng_state(), state)
    torch.testing.assert_close(penalty.betas()["3"], 0.5 * net[:3](x).var(0))
    net(x)
    assert penalty().isfinite()


def test_beta_from_data_is_shared_as_beta_is_and_floored():
    net = conv()
    net[0].weight.data[0] = 0  # constant
    x = torch.randn(30, 2, 4, 4)
    penalty = attached(net, (2, 4, 4), beta_from_data=True, beta_shape="channel", beta_min=0.01)
    penalty.calibrate_(net, x)
    expected = net[0](x).var(0).mean((1, 2)).clamp(min=0.01)
    torch.testing.assert_close(penalty.betas()["1"].flatten(), expected)
    assert expected[0] == 0.01
    fresh = attached(conv(), (2, 4, 4), beta_from_data=True, beta_shape="channel")
    fresh.load_state_dict(penalty.state_dict())  # a continued run is not calibrated again
    assert fresh.eval()() == 0


def test_the_warm_up():
    net, x = dense(), torch.randn(13, 4)
    penalty = attached(net, weight=2.0, warmup=0.2)
    values = []
    for progress in (0.0, 0.05, 0.2, 0.9):
        penalty.progress = progress
        net(x)
        values.append(penalty().item())
    assert values == pytest.approx([0.0, 0.25 * values[3], values[3], values[3]])
    assert values[3] > 0


def test_a_batch_too_small_gives_zero_that_reaches_beta():
    net = dense()
    penalty = attached(net)
    net(torch.randn(9, 4))
    value = penalty()
    assert value == 0
    value.backward()
    assert torch.equal(penalty.beta.grad, torch.zeros(11))
    assert penalty.unit_terms == {}


def test_samples_beyond_the_two_subsets_get_no_gradient():
    net, x = dense(), torch.randn(13, 4, requires_grad=True)
    penalty = attached(net)
    net(x)
    penalty().backward()
    assert (x.grad[10:] == 0).all()
    assert (x.grad[:10] != 0).any(1).all()


def test_a_norm_in_front_makes_the_loss_nearly_independent_of_scale():
    x = torch.randn(200, 4) * 30
    values = []
    for norm in (no_output_norm, BatchNorm, lambda c: Unitize(c, affine=True)):
        torch.manual_seed(0)
        net = dense(norm=norm)
        penalty = attached(net, weight=1.0, pairs="all")
        net(x)
        values.append(penalty().item())
    assert values[0] > 2 * max(values[1:])
    assert max(values[1:]) < 2


# --- which layers -----------------------------------------------------------------------------------------------------


def test_layers_are_found_wherever_they_are_but_for_the_output():
    body = nn.Sequential(nn.Linear(4, 4), nn.LeakyReLU())
    middle = (GroupSort(4), nn.Linear(4, 6), LinearSpline(6, 9, 2.0), nn.Flatten())
    net = nn.Sequential(Residual(body, nn.Identity()), *middle, nn.Linear(6, 2), nn.Sigmoid(), nn.Flatten())
    penalty = attached(net)
    assert list(penalty.betas()) == ["0.body.1", "1", "3"]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: nn.Sequential(nn.Linear(4, 4)), "no activation"),
        (lambda: nn.Sequential(nn.Linear(4, 4), nn.ReLU()), "no activation"),
        (lambda: nn.Sequential(nn.Linear(4, 4), nn.ReLU(inplace=True), nn.Linear(4, 4)), "exclude=.*1 is overwritten"),
        (lambda: (lambda act: nn.Sequential(act, nn.Linear(4, 4), act, nn.Linear(4, 4)))(nn.ReLU()), "0 runs 2 times"),
    ],
)
def test_networks_that_do_not_do(make, message):
    with pytest.raises(ValueError, match=message):
        attached(make())


def test_an_excluded_activation_may_run_twice():
    act = nn.ReLU()
    net = nn.Sequential(act, nn.Linear(4, 4), act, nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 4))
    assert list(attached(net, exclude=["0"]).betas()) == ["4"]


def test_a_pattern_without_a_layer_is_named():
    with pytest.raises(ValueError, match="include=9: matches none of the layers 3, 6"):
        attached(dense(), include=["9"])


def test_a_second_network_is_refused():
    penalty = attached(dense())
    with pytest.raises(ValueError, match="attached already"):
        penalty.attach(dense(), (4,))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"weight": -1.0}, "weight=-1.0: "),
        ({"sample_size": 1}, "sample_size=1: "),
        ({"pairs": 2}, "pairs=2: one of 1, all"),
        ({"beta_init": 0.0}, "beta_init=0.0: "),
        ({"beta_init": 1e-4}, "beta_init=0.0001: at least beta_min"),
        ({"beta_min": -1.0}, "beta_min=-1.0: "),
        ({"beta_min": None, "beta_from_data": True}, "beta_min=None: "),
        ({"beta_shape": "pixel"}, "beta_shape=pixel: "),
        ({"unit": "layer"}, "unit=layer: "),
        ({"form": "ideal"}, "form=ideal: "),
        ({"reduction": "max"}, "reduction=max: "),
        ({"warmup": 1.0}, "warmup=1.0: "),
    ],
)
def test_bad_arguments(settings, message):
    with pytest.raises(ValueError, match=message):
        VarianceConstancy(**settings)


def test_images_of_another_size_need_a_shared_beta():
    net = nn.Sequential(nn.Conv2d(1, 2, 1), ReLU(2), nn.AdaptiveAvgPool2d(1))
    penalty = attached(net, (1, 4, 4))
    net(torch.randn(10, 1, 5, 5))
    with pytest.raises(ValueError, match="beta_shape=unit: beta of 1 is for units"):
        penalty()
    net = nn.Sequential(nn.Conv2d(1, 2, 1), ReLU(2), nn.AdaptiveAvgPool2d(1))
    penalty = attached(net, (1, 4, 4), beta_shape="channel")
    net(torch.randn(10, 1, 5, 5))
    assert penalty() > 0


# --- what training sees and leaves ------------------------------------------------------------------------------------


def gradients(net, penalty):
    return [
        parameter.grad.clone() for parameter in (*net.parameters(), *penalty.parameters()) if parameter.grad is not None
    ]


def test_evaluation_and_passes_without_gradients_leave_nothing():
    net, x = dense(), torch.randn(20, 4)
    penalty = attached(net)
    net.eval()(x)
    assert penalty.eval()() == 0
    with torch.no_grad():
        net.train()(x)
    assert penalty._observed.inputs == {}
    with pytest.raises(RuntimeError, match="no forward"):
        penalty.train()()
    net(x)
    net.eval()(torch.randn(20, 4))
    value = penalty()
    torch.testing.assert_close(value, 0.01 * by_hand(net, x, ("3", "6")))
    assert penalty._observed.inputs == {}
    with pytest.raises(RuntimeError, match="no forward"):
        penalty()


def test_predictions_are_those_without():
    net, x = dense(), torch.randn(20, 4)
    expected = net(x)
    attached(net)
    assert torch.equal(net(x), expected)
    assert torch.equal(net.eval()(x), expected)


def test_attaching_leaves_buffers_and_chance_alone():
    net = nn.Sequential(nn.Linear(4, 5), nn.BatchNorm1d(5), nn.Dropout(), nn.ReLU(), nn.Linear(5, 2))
    before, state = copy.deepcopy(net.state_dict()), torch.get_rng_state()
    attached(net)
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    assert torch.equal(torch.get_rng_state(), state)
    assert all(module.training for module in net.modules())


def test_the_latest_forward_counts():
    net, x = dense(), torch.randn(20, 4)
    penalty = attached(net)
    net(torch.randn(20, 4))
    net(x)
    torch.testing.assert_close(penalty(), 0.01 * by_hand(net, x, ("3", "6")))


def test_calls_of_a_layer_on_its_own_stay_out():
    """Boxes and BV(2) call activations on points of their own between the forward and the penalty."""
    net, x = dense(lambda c: LinearSpline(c, 9, 2.0)), torch.randn(20, 4)
    penalty, other = attached(net), SecondOrderVariation(1.0, "bv2")
    other.attach(net, (4,))
    net(x)
    other()
    net[3].interval(torch.zeros(20, 5), torch.ones(20, 5))
    torch.testing.assert_close(penalty(), 0.01 * by_hand(net, x, ("3", "6")))


def test_two_models_in_one_process():
    nets, x = [dense(), dense()], torch.randn(20, 4)
    penalties = [attached(net) for net in nets]
    nets[0](x)
    nets[1](-x)
    for net, penalty, sign in zip(nets, penalties, (1, -1), strict=True):
        torch.testing.assert_close(penalty(), 0.01 * by_hand(net, sign * x, ("3", "6")))


@pytest.mark.parametrize("how", ["inside", "whole"])
def test_gradient_checkpointing(how):
    class Inside(nn.Module):
        def __init__(self, net):
            super().__init__()
            self.net = net

        def forward(self, x):
            return checkpoint(self.net, x, use_reentrant=False)

    torch.manual_seed(1)
    reference, x = dense(), torch.randn(20, 4)
    net = copy.deepcopy(reference)
    outer = Inside(net) if how == "inside" else net
    pairs = [(reference, attached(reference), reference)]
    run = outer if how == "inside" else lambda x: checkpoint(outer, x, use_reentrant=False)
    pairs.append((net, attached(outer), run))
    found = []
    for model, penalty, forward in pairs:
        for _ in range(2):
            model.zero_grad()
            penalty.zero_grad()
            (forward(x).square().mean() + penalty()).backward()
        found.append(gradients(model, penalty))
    assert len(found[0]) == 7
    torch.testing.assert_close(found[0], found[1])


def test_copies_and_pickles():
    net, x = dense(), torch.randn(20, 4)
    model = nn.ModuleDict({"net": net, "penalty": attached(net)})
    net(x)  # noted inputs cannot be copied and are not
    twin = copy.deepcopy(model)
    alone = copy.deepcopy(net)
    again = pickle.loads(pickle.dumps(model))
    for each in (twin, again):
        assert each["penalty"]._observed.inputs == {}
        each["net"](2 * x)
        torch.testing.assert_close(each["penalty"](), 0.01 * by_hand(net, 2 * x, ("3", "6")))
    alone(3 * x)
    torch.testing.assert_close(model["penalty"](), 0.01 * by_hand(net, x, ("3", "6")))
    twin.load_state_dict(model.state_dict())


def test_autocast():
    torch.set_default_dtype(torch.float32)
    net, x = dense(), torch.randn(20, 4)
    penalty = attached(net, weight=1.0)
    with torch.autocast("cpu", torch.bfloat16):
        net(x)
        value = penalty()
        expected = sum(pair_loss(net[: int(path)](x).float(), 1.0, n=5).mean() for path in ("3", "6"))
    assert value.dtype == torch.float32
    torch.testing.assert_close(value, expected)
    value.backward()
    assert penalty.beta.grad.dtype == torch.float32


class Around(nn.Module):
    """As a LightningModule stands around its network: of a bare Sequential, torch makes several pieces."""

    def __init__(self, net):
        super().__init__()
        self.net = net

    def forward(self, x):
        return self.net(x)


@pytest.mark.filterwarnings("ignore")  # torch warns in its own compiler
def test_compiled_in_one_piece():
    import torch._dynamo
    from torch._dynamo.utils import counters

    found = []
    for compiles in (False, True):
        torch.manual_seed(2)
        net = dense()
        penalty, model = attached(net), Around(net)
        counters.clear()
        if compiles:
            model.compile(backend="aot_eager", fullgraph=True)
        for scale in (1, 2, 3):
            net.zero_grad()
            penalty.zero_grad()
            x = scale * torch.linspace(-1, 1, 80).view(20, 4)
            (model(x).square().mean() + penalty()).backward()
        assert penalty._observed.inputs == {}
        found.append(gradients(net, penalty))
    assert counters["stats"]["unique_graphs"] == 1
    torch.testing.assert_close(found[0], found[1])
    torch._dynamo.reset()


# --- bounds -----------------------------------------------------------------------------------------------------------


def test_bounds_hold_with_observers_and_with_nothing_else():
    net = dense()
    expected = lipschitz_bound(net, (4,)).total
    attached(net)
    assert lipschitz_bound(net, (4,)).total == expected
    handle = net[3].register_forward_hook(lambda layer, x, y: 5 * y)
    assert lipschitz_bound(net, (4,)).total == math.inf
    handle.remove()
    assert lipschitz_bound(net, (4,)).total == expected


def test_observers_cannot_be_subclassed_into_the_bounds():
    class Louder(Observer):
        def __call__(self, layer, inputs):
            return (5 * inputs[0],)

    for hook in (Louder(Observed(), "3"), type("Other", (Observed,), {})()):
        net = dense()
        net[3].register_forward_pre_hook(hook)
        assert lipschitz_bound(net, (4,)).total == math.inf


# --- the monitor's moments --------------------------------------------------------------------------------------------


def test_kurtosis_of_batches_is_that_of_all_samples():
    x = torch.randn(300, 2, 3) ** 3 + 50
    x[:, 0, 0] = 7.1
    moments = Moments()
    for part in x.split((100, 150, 50)):
        moments.add(part.clone())
    centred = x - x.mean(0)
    expected = (centred**4).mean(0) / (centred**2).mean(0) ** 2
    found = moments.kurtosis()
    assert found[0, 0].isnan()
    torch.testing.assert_close(found.flatten()[1:], expected.flatten()[1:], rtol=1e-8, atol=0)


def test_the_discriminant_of_known_moments():
    within, gap = torch.diag(torch.tensor([1.0, 4.0])), torch.tensor([1.0, 1.0])
    best = torch.tensor([1.0, 0.25])
    alignment, ratio = discriminant(-3 * best, gap, within)
    assert (alignment.item(), ratio.item()) == (pytest.approx(1), pytest.approx(1))
    alignment, ratio = discriminant(torch.tensor([1.0, 0.0]), gap, within)
    assert (alignment.item(), ratio.item()) == (pytest.approx(1 / math.sqrt(1 + 1 / 16)), pytest.approx(1 / 1.25))
    assert discriminant(torch.tensor([1.0, -1.0]), gap, within)[1] == 0


def test_no_loss_is_zero_and_moves_nothing():
    logits = torch.randn(5, 3, requires_grad=True)
    loss = NoLoss()(torch.randn(5, 2), logits, torch.zeros(5).long(), 0.0)
    loss.backward()
    assert loss == 0
    assert torch.equal(logits.grad, torch.zeros(5, 3))


# --- what is easily overlooked ----------------------------------------------------------------------------------------


def test_without_the_denominators_gradient_population_has_that_of_the_numerator():
    variances_KU, beta = (torch.rand(4, 3) + 0.5).requires_grad_(), torch.rand(3)
    variance_constancy(variances_KU, beta, "population", detach_denominator=True).sum().backward()
    reference_U = variances_KU.detach().mean(0) + beta
    expected = -2 * (1 - variances_KU.detach() / reference_U) / reference_U / 4
    torch.testing.assert_close(variances_KU.grad, expected)


def test_a_layer_in_eval_mode_has_no_term():
    for reduction, share in (("sum", 1.0), ("mean", 0.5)):
        net, x = dense(), torch.randn(13, 4)
        penalty = attached(net, weight=1.0, reduction=reduction)
        net[3].eval()
        net(x)
        torch.testing.assert_close(penalty(), share * by_hand(net, x, ("6",)))
        assert set(penalty.unit_terms) == {"6"}
        assert penalty.eval()() == 0


def test_beta_is_not_of_low_precision():
    net = dense().to(torch.bfloat16)
    assert attached(net).beta.dtype == torch.float32


def test_shared_betas_from_data_are_in_units_of_the_variance_too():
    net, x = conv(), torch.randn(30, 2, 4, 4)
    penalty = attached(net, (2, 4, 4), beta_init=0.25, beta_from_data=True, beta_shape="layer")
    penalty.calibrate_(net, x)
    torch.testing.assert_close(penalty.betas()["1"].flatten(), 0.25 * net[0](x).var(0).mean().view(1))


def test_paths_with_a_common_beginning_are_different_layers():
    layers = [part for _ in range(6) for part in (nn.Linear(4, 4), nn.ReLU())]
    net = nn.Sequential(*layers[1:], nn.Linear(4, 2))
    assert list(attached(net).betas()) == ["0", "2", "4", "6", "8", "10"]
    net = nn.Sequential(nn.Linear(4, 4), *layers[1:], nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 2))
    assert list(attached(net).betas()) == ["1", "3", "5", "7", "9", "11", "13"]


def test_calibration_leaves_chance_alone_where_units_are_dropped():
    net = nn.Sequential(nn.Linear(4, 5), nn.Dropout(), nn.ReLU(), nn.Linear(5, 2))
    penalty, x, state = attached(net, beta_from_data=True), torch.randn(20, 4), torch.get_rng_state()
    penalty.calibrate_(net, x)
    assert torch.equal(torch.get_rng_state(), state)


def test_an_input_that_was_written_into_before_it_entered_is_no_hindrance():
    net = nn.Sequential(nn.Linear(4, 4), nn.ReLU(inplace=True), nn.Tanh(), nn.Linear(4, 4))
    assert list(attached(net, exclude=["1"]).betas()) == ["2"]


class Logged(AbstractModel):
    """A model that is nothing but its network, and what it logs."""

    def __init__(self, net):
        pl.LightningModule.__init__(self)
        self.net, self.logged = net, {}

    def task_loss(self, batch, stage):
        return self.net(batch[0]).sum()

    def log(self, name, value, **options):
        self.logged[name] = float(value.compute() if isinstance(value, SampleMean) else value.detach())


def test_the_monitor_logs_means_and_largest_terms_of_an_epoch():
    penalty, monitor, model = attached(dense()), VarianceMonitor(), Logged(nn.Identity())
    monitor._regularizer = penalty
    for offset in (10.0, 0.0):  # two epochs; the first leaves nothing
        monitor.on_train_epoch_start(None, model)
        for terms in ([1.0, 5.0], None, [2.0, 0.0]):  # a batch too small in the middle
            penalty.unit_terms = {} if terms is None else {"3": torch.tensor(terms) + offset}
            monitor.on_train_batch_end(None, model, None, None, 0)
        monitor.on_train_epoch_end(None, model)
    assert model.logged["vcl/3"] == pytest.approx(2.0)
    assert model.logged["vcl/max/3"] == pytest.approx(5.0)


def test_the_monitor_takes_the_kurtosis_of_one_evaluation_and_of_the_networks_own_forward():
    net = dense()
    monitor, model = VarianceMonitor(), Logged(net.eval())
    monitor._regularizer = attached(net)
    for stage, x in (("validation", torch.randn(40, 4) ** 3), ("validation", torch.randn(60, 4)), ("test", None)):
        x = torch.rand(50, 4) if x is None else x
        getattr(monitor, f"on_{stage}_epoch_start")(None, model)
        for part in x.split(25):
            getattr(monitor, f"on_{stage}_batch_start")(None, model, None, 0)
            net(part)
            net[3](torch.full((30, 5), 9.0))  # as losses do with the ends of boxes
            getattr(monitor, f"on_{stage}_batch_end")(None, model, None, None, 0)
        net(100 * x)  # between the batches
        getattr(monitor, f"on_{stage}_epoch_end")(None, model)
        moments = [Moments(), Moments()]
        for each, depth in zip(moments, (3, 6), strict=True):
            each.add(net[:depth](x).detach())
        first, second = (each.kurtosis() for each in moments)
        assert model.logged["vcl/kurtosis/3"] == pytest.approx(first.median().item())
        assert model.logged["vcl/kurtosis/6"] == pytest.approx(second.median().item())
        assert model.logged["vcl/kurtosis"] == pytest.approx(torch.cat([first, second]).median().item())


def test_the_monitor_of_the_discriminant_sees_one_epoch_and_the_covariance_within():
    monitor, model = DiscriminantMonitor(), Logged(nn.Identity())
    weight = torch.tensor([[0.3, 1.0]])
    for gap in (-4.0, 2.0):
        monitor._weight = weight
        monitor.on_train_epoch_start(None, model)
        first = torch.randn(70, 2) @ torch.tensor([[1.0, 0.7], [0.0, 1.5]])
        second = torch.randn(30, 2) @ torch.tensor([[2.0, 0.0], [0.4, 0.5]]) + torch.tensor([gap, 1.0])
        x, y = torch.cat([first, second]), torch.cat([torch.zeros(70), torch.ones(30)]).long()
        for part in torch.randperm(100).split(40):
            monitor.on_train_batch_end(None, model, None, (x[part], y[part]), 0)
        monitor.on_train_epoch_end(None, model)
    within = (70 * first.T.cov(correction=0) + 30 * second.T.cov(correction=0)) / 100
    alignment, ratio = discriminant(weight[0], second.mean(0) - first.mean(0), within)
    assert model.logged["discriminant/alignment"] == pytest.approx(alignment.item())
    assert model.logged["discriminant/ratio"] == pytest.approx(ratio.item())


def test_the_model_tells_the_penalty_how_far_training_is(monkeypatch):
    model = Logged(dense())
    model.regularizers, model._total_steps = nn.ModuleDict({"variance": attached(model.net)}), 200
    model.mean_terms = nn.ModuleDict({name: SampleMean() for name in ("train/loss", "loss/task", "loss/variance")})
    monkeypatch.setattr(Logged, "global_step", 50)
    model.training_step((torch.randn(10, 4), torch.zeros(10)), 0)
    assert model.regularizers["variance"].progress == 0.25


def test_no_loss_takes_probabilities():
    NoLoss().check_targets(torch.rand(5, 3))


def test_a_first_batch_too_small_for_the_loss_is_refused():
    net = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))
    penalty = VarianceConstancy(sample_size=5)
    penalty.attach(net, (3,))
    penalty.calibrate_(net, torch.randn(10, 3))
    with pytest.raises(ValueError, match=r"^sample_size=5: at most half of a batch, which has 9 samples"):
        penalty.calibrate_(net, torch.randn(9, 3))
