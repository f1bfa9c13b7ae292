"""Joint optimizer, roles of parameters, learning-rate schedules."""

import copy
import io
import re

import pytest
import torch
from torch import nn
from torch.optim import SGD, Adam

from tautnet.activations import LinearSpline, PReLU, ReLU
from tautnet.backbones import LayerFactory, cifar_resnet, mlp
from tautnet.normalizers import BatchNorm, Unitize, no_output_norm, no_weight_norm
from tautnet.optim import JointOptimizer, parameters_by_role
from tautnet.optim.schedules import constant, cosine, multistep


def small_net():
    return nn.Sequential(nn.Linear(4, 5), LinearSpline(5, 9, 2.0), nn.Linear(5, 3), LinearSpline(3, 9, 2.0))


def members(net):
    """SGD for the weights in two groups, Adam for the splines."""
    sgd = SGD([{"params": net[0].parameters()}, {"params": net[2].parameters(), "lr": 0.02}], lr=0.1, momentum=0.9)
    adam = Adam([*net[1].parameters(), *net[3].parameters()], lr=0.01, weight_decay=0.1)
    return [sgd, adam]


def batches(count, seed=1):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(8, 4, generator=generator) for _ in range(count)]


def train(net, optimizers, inputs, schedules=()):
    for x in inputs:
        for optimizer in optimizers:
            optimizer.zero_grad()
        net(x).square().mean().backward()
        for stepper in (*optimizers, *schedules):
            stepper.step()


def assert_same_parameters(actual, expected):
    for a, b in zip(actual.parameters(), expected.parameters(), strict=True):
        assert torch.equal(a, b)


# --- JointOptimizer ---------------------------------------------------------------------------------------------------


def test_joint_steps_are_those_of_the_separate_optimizers():
    net = small_net()
    twin = copy.deepcopy(net)
    joint, separate = JointOptimizer(members(net)), members(twin)
    start = copy.deepcopy(net)
    for x in batches(5):
        train(net, [joint], [x])
        train(twin, separate, [x])
        assert_same_parameters(net, twin)
    assert not any(torch.equal(a, b) for a, b in zip(net.parameters(), start.parameters(), strict=True))


def test_one_schedule_scales_every_group_and_reaches_the_members():
    net = small_net()
    twin = copy.deepcopy(net)
    joint, separate = JointOptimizer(members(net)), members(twin)
    train(net, [joint], batches(6), [multistep(joint, 6, milestones=(0.5,))])
    train(twin, separate, batches(6), [multistep(optimizer, 6, milestones=(0.5,)) for optimizer in separate])
    assert [group["lr"] for group in joint.param_groups] == pytest.approx([0.01, 0.002, 0.001])
    assert_same_parameters(net, twin)


def test_training_goes_on_bit_identically_from_a_saved_state():
    net = small_net()
    joint = JointOptimizer(members(net))
    schedule = cosine(joint, 8)
    train(net, [joint], batches(4), [schedule])

    buffer = io.BytesIO()
    torch.save([part.state_dict() for part in (net, joint, schedule)], buffer)
    buffer.seek(0)
    resumed = small_net()
    resumed_joint = JointOptimizer(members(resumed))
    resumed_schedule = cosine(resumed_joint, 8)
    for part, state in zip(
        (resumed, resumed_joint, resumed_schedule), torch.load(buffer, weights_only=True), strict=True
    ):
        part.load_state_dict(state)

    for x in batches(4, seed=2):
        train(net, [joint], [x], [schedule])
        train(resumed, [resumed_joint], [x], [resumed_schedule])
        assert_same_parameters(resumed, net)


def test_state_dict_holds_the_state_of_every_parameter():
    net = small_net()
    joint = JointOptimizer(members(net))
    train(net, [joint], batches(1))
    state = joint.state_dict()
    assert [len(group["params"]) for group in state["param_groups"]] == [2, 2, 2]
    assert [set(state["state"][i]) for i in range(6)] == [
        *[{"momentum_buffer"}] * 4,
        *[{"step", "exp_avg", "exp_avg_sq"}] * 2,
    ]


def test_closure_is_evaluated_once_with_gradients_and_before_any_step():
    net = small_net()
    before = copy.deepcopy(net)
    joint, x, calls = JointOptimizer(members(net)), batches(1)[0], []

    def closure():
        assert_same_parameters(net, before)
        joint.zero_grad()
        loss = net(x).square().mean()
        loss.backward()
        calls.append(loss)
        return loss

    with torch.no_grad():
        assert joint.step(closure) is calls[0]
    assert len(calls) == 1
    assert all(parameter.grad is not None for parameter in net.parameters())


def test_zero_grad_reaches_every_member():
    net = small_net()
    joint = JointOptimizer(members(net))
    net(batches(1)[0]).sum().backward()
    joint.zero_grad()
    assert all(parameter.grad is None for parameter in net.parameters())


def test_a_parameter_in_two_members_is_refused():
    layer = nn.Linear(2, 2)
    with pytest.raises(ValueError, match="more than one parameter group"):
        JointOptimizer([SGD(layer.parameters(), lr=0.1), Adam(layer.parameters())])


# --- roles ------------------------------------------------------------------------------------------------------------


def names_by_role(net):
    name_of = {parameter: name for name, parameter in net.named_parameters()}
    return {role: {name_of[parameter] for parameter in found} for role, found in parameters_by_role(net).items()}


def test_roles_of_a_dense_net():
    factory = LayerFactory(lambda c: LinearSpline(c, 5, linear_term=True), Unitize, no_weight_norm)
    assert names_by_role(mlp(factory, (4,), 2, widths=(3,))) == {
        "weight": {"1.weight", "4.weight"},
        "bias": {"4.bias"},
        "norm": {"2.alpha", "2.weight", "2.bias"},
        "activation": {"3.coefficients", "3.linear"},
    }


@pytest.mark.parametrize("activation", [ReLU, PReLU, LinearSpline])
@pytest.mark.parametrize("norm", [no_output_norm, BatchNorm, Unitize])
def test_every_parameter_has_exactly_one_role(activation, norm):
    net = cifar_resnet(LayerFactory(activation, norm, no_weight_norm), (1, 8, 8), 10, depth=8, width=2)
    found = [parameter for parameters in parameters_by_role(net).values() for parameter in parameters]
    assert len(found) == len(set(found))
    assert set(found) == set(net.parameters())


@pytest.mark.parametrize(
    "norm", [nn.BatchNorm1d(3), nn.BatchNorm2d(3), nn.SyncBatchNorm(3), BatchNorm(3)], ids=lambda n: type(n).__name__
)
def test_affine_parameters_of_batch_norms_are_norm_parameters(norm):
    assert parameters_by_role(norm) == {"norm": list(norm.parameters())}


def test_frozen_parameters_are_left_out():
    net = nn.Sequential(nn.Linear(2, 2), PReLU(2))
    net[0].weight.requires_grad_(False)
    assert names_by_role(net) == {"bias": {"0.bias"}, "activation": {"1.weight"}}


def test_a_shared_parameter_is_listed_once():
    layer, twin = nn.Linear(2, 2), nn.Linear(2, 2)
    twin.weight = layer.weight
    assert parameters_by_role(nn.Sequential(layer, twin)) == {
        "weight": [layer.weight],
        "bias": [layer.bias, twin.bias],
    }


def test_a_parameter_without_a_role_is_an_error_with_its_path():
    net = nn.Sequential(nn.Linear(2, 2), nn.Sequential(nn.LayerNorm(2)))
    with pytest.raises(ValueError, match=re.escape("1.0.weight: LayerNorm")):
        parameters_by_role(net)


# --- schedules --------------------------------------------------------------------------------------------------------


def rates(schedule, total_steps, **settings):
    """Rates of two groups during each of the steps, and after the last."""
    optimizer = SGD([{"params": [nn.Parameter(torch.zeros(1))], "lr": lr} for lr in (1.0, 0.5)], lr=1.0)
    scheduler = schedule(optimizer, total_steps, **settings)
    seen = []
    for _ in range(total_steps + 1):
        seen.append(scheduler.get_last_lr())
        optimizer.step()
        scheduler.step()
    first, second = zip(*seen, strict=True)
    assert second == pytest.approx([rate / 2 for rate in first])
    return first


def test_constant_never_changes():
    assert set(rates(constant, 10)) == {1.0}


@pytest.mark.parametrize(("final_factor", "middle"), [(0.0, 0.5), (0.2, 0.6), (1.0, 1.0)])
def test_cosine_starts_at_one_and_ends_at_the_final_factor(final_factor, middle):
    seen = rates(cosine, 10, final_factor=final_factor)
    assert (seen[0], seen[5], seen[10]) == pytest.approx((1.0, middle, final_factor))
    assert list(seen) == sorted(seen, reverse=True)


def test_cosine_does_not_rise_again_after_the_last_step():
    optimizer = SGD([nn.Parameter(torch.zeros(1))], lr=1.0)
    scheduler = cosine(optimizer, 2)
    for _ in range(3):
        optimizer.step()
        scheduler.step()
    assert scheduler.get_last_lr() == [0.0]


def test_multistep_drops_at_the_milestones():
    seen = rates(multistep, 8, milestones=(0.5, 0.75), factor=0.1)
    assert seen == pytest.approx([1.0] * 4 + [0.1] * 2 + [0.01] * 3)


def test_multistep_default_drops_three_times():
    seen = rates(multistep, 8)
    assert seen == pytest.approx([1.0] * 4 + [0.1] * 2 + [0.01] + [0.001] * 2)


@pytest.mark.parametrize(
    ("schedule", "settings", "message"),
    [
        (cosine, {"final_factor": -0.1}, "final_factor=-0.1"),
        (cosine, {"final_factor": 1.1}, "final_factor=1.1"),
        (cosine, {"final_factor": float("nan")}, "final_factor=nan"),
        (multistep, {"milestones": (0.5, 1.0)}, "milestones=[0.5, 1.0]"),
        (multistep, {"milestones": (0.0,)}, "milestones=[0.0]"),
        (multistep, {"factor": 0.0}, "factor=0.0"),
        (multistep, {"factor": 1.5}, "factor=1.5"),
    ],
)
def test_bad_schedule_settings_are_named_with_their_value(schedule, settings, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        schedule(SGD([nn.Parameter(torch.zeros(1))], lr=1.0), 10, **settings)


def test_a_copy_steps_like_the_original():
    weight = torch.nn.Parameter(torch.ones(3))
    joint = JointOptimizer([torch.optim.Adam([{"params": [weight], "role": "weight"}], lr=0.1)])
    twin = copy.deepcopy(joint)
    for optimizer in (joint, twin):
        (parameter,) = optimizer.param_groups[0]["params"]
        for _ in range(3):
            parameter.grad = torch.arange(3.0)
            optimizer.step()
    assert torch.equal(twin.param_groups[0]["params"][0], weight)
    assert not torch.equal(weight, torch.ones(3))


def test_a_parameter_group_that_nobody_would_step_is_refused():
    joint = JointOptimizer([torch.optim.SGD([torch.nn.Parameter(torch.ones(1))])])
    with pytest.raises(ValueError, match="member"):
        joint.add_param_group({"params": [torch.nn.Parameter(torch.ones(1))]})


def test_the_original_of_a_parametrised_weight_keeps_its_role():
    layer = torch.nn.utils.parametrizations.spectral_norm(torch.nn.Linear(3, 2))
    found = parameters_by_role(torch.nn.Sequential(layer))
    assert {role: [p.shape for p in parameters] for role, parameters in found.items()} == {
        "weight": [torch.Size([2, 3])],
        "bias": [torch.Size([2])],
    }
