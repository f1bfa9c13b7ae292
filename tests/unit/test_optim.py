"""Joint optimizer, roles of parameters, Muon."""

import copy
import io
import re

import pytest
import torch
from torch import nn
from torch.optim import SGD, Adam

from tautnet.activations import LinearSpline, PReLU, ReLU
from tautnet.backbones import LayerFactory, cifar_resnet, mlp
from tautnet.config import ConfigError
from tautnet.normalizers import BatchNorm, Unitize, no_output_norm, no_weight_norm
from tautnet.normalizers.group import GroupNorm
from tautnet.normalizers.rms import RmsNorm
from tautnet.optim import JointOptimizer, Muon, parameters_by_role
from tautnet.optim.schedules import cosine, multistep
from tautnet.optim.settings import role_settings


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


NORMS = [
    *(nn.BatchNorm1d(3), nn.BatchNorm2d(3), nn.BatchNorm3d(3), nn.SyncBatchNorm(3), BatchNorm(3)),
    *(nn.InstanceNorm1d(3, affine=True), nn.InstanceNorm2d(3, affine=True), nn.InstanceNorm3d(3, affine=True)),
    *(nn.GroupNorm(1, 3), nn.LayerNorm(3), nn.RMSNorm(3), GroupNorm(3, num_groups=1), RmsNorm(3)),
]


@pytest.mark.parametrize("norm", NORMS, ids=lambda n: type(n).__name__)
def test_affine_parameters_of_normalizers_are_norm_parameters(norm):
    assert parameters_by_role(norm) == {"norm": list(norm.parameters())}
    assert len(list(norm.parameters())) == (1 if isinstance(norm, nn.RMSNorm) else 2)


CONVOLUTIONS = [nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d]


@pytest.mark.parametrize("kind", CONVOLUTIONS)
def test_convolutions_of_every_rank_have_roles(kind):
    layer = kind(2, 3, 3)
    assert parameters_by_role(layer) == {"weight": [layer.weight], "bias": [layer.bias]}


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
    net = nn.Sequential(nn.Linear(2, 2), nn.Sequential(nn.Embedding(2, 2)))
    with pytest.raises(ValueError, match=re.escape("1.0.weight: Embedding")):
        parameters_by_role(net)


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


# --- Muon -------------------------------------------------------------------------------------------------------------

OPTIONS = {"lr": 0.05, "weight_decay": 0.1, "momentum": 0.9}


def muon_steps(optimizer, weights, count, seed=1):
    generator = torch.Generator().manual_seed(seed)
    for _ in range(count):
        for weight in weights:
            weight.grad = torch.randn(weight.numel(), generator=generator).view(weight.shape)
        optimizer.step()


@pytest.mark.parametrize("options", [{}, {"adjust_lr_fn": "match_rms_adamw"}, {"nesterov": False, "ns_steps": 2}])
@pytest.mark.parametrize("shape", [(6, 4), (4, 6), (8, 3, 3, 3), (2, 4, 5)])
def test_muon_is_torch_muon_on_the_kernel_as_a_matrix(shape, options):
    weight = nn.Parameter(torch.randn(shape))
    matrix = nn.Parameter(weight.detach().flatten(1).clone())
    muon_steps(Muon([weight], **OPTIONS, **options), [weight], 4)
    muon_steps(torch.optim.Muon([matrix], **OPTIONS, **options), [matrix], 4)
    assert torch.equal(weight.flatten(1), matrix)


def test_muon_steps_a_kernel_in_channels_last_format_too():
    weight = nn.Parameter(torch.randn(4, 3, 3, 3))
    twin = nn.Parameter(weight.detach().clone(memory_format=torch.channels_last))
    for one in (weight, twin):
        muon_steps(Muon([one], **OPTIONS), [one], 3)
    assert twin.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(twin, weight)


def test_muon_goes_on_bit_identically_from_a_saved_state_in_a_joint_optimizer():
    def made(weights, bias):
        groups = [{"params": [weights[0]]}, {"params": [weights[1]], "lr": 0.01}]
        return JointOptimizer([Muon(groups, **OPTIONS), Adam([bias], lr=0.1)])

    parameters = [nn.Parameter(torch.randn(shape)) for shape in ((4, 3, 3, 3), (5, 4), (5,))]
    joint = made(parameters[:2], parameters[2])
    schedule = cosine(joint, 6)
    muon_steps(joint, parameters, 1)
    schedule.step()

    buffer = io.BytesIO()
    torch.save([joint.state_dict(), schedule.state_dict()], buffer)
    buffer.seek(0)
    resumed = copy.deepcopy(parameters)
    resumed_joint = made(resumed[:2], resumed[2])
    resumed_schedule = cosine(resumed_joint, 6)
    for part, state in zip((resumed_joint, resumed_schedule), torch.load(buffer, weights_only=True), strict=True):
        part.load_state_dict(state)
    before = copy.deepcopy(parameters)
    for seed in (2, 3):
        muon_steps(joint, parameters, 1, seed)
        muon_steps(resumed_joint, resumed, 1, seed)
        schedule.step()
        resumed_schedule.step()
    assert all(torch.equal(a, b) for a, b in zip(parameters, resumed, strict=True))
    assert not any(torch.equal(a, b) for a, b in zip(parameters, before, strict=True))


def test_the_rate_of_muon_follows_a_schedule():
    def change(total_steps):
        weight = nn.Parameter(torch.zeros(3, 3))
        optimizer = Muon([weight], lr=0.1)
        schedule = cosine(optimizer, total_steps)
        optimizer.step()  # no gradient yet: nothing to do
        schedule.step()
        muon_steps(optimizer, [weight], 1)
        return weight.norm().item()

    assert change(1) == 0
    assert change(2) == pytest.approx(change(10**9) / 2, rel=1e-5)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"lr": -1.0}, "lr=-1.0"),
        ({"weight_decay": float("nan")}, "weight_decay=nan"),
        ({"momentum": 1.0}, "momentum=1.0"),
        ({"ns_steps": 100}, "ns_steps=100"),
        ({"adjust_lr_fn": "spectral"}, "adjust_lr_fn=spectral"),
    ],
)
def test_bad_arguments_of_muon_are_named_with_their_value(options, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        Muon([nn.Parameter(torch.zeros(2, 2))], **options)


def test_muon_refuses_what_is_no_matrix():
    optimizer = Muon([nn.Parameter(torch.zeros(2, 2))])
    with pytest.raises(ValueError, match=r"shape \(3,\): Muon needs two or more"):
        optimizer.add_param_group({"params": [nn.Parameter(torch.zeros(3))]})
    assert len(optimizer.param_groups) == 1
    with pytest.raises(ConfigError, match=r"optimizer.roles.bias: a parameter of shape"):
        role_settings({"_target_": "tautnet.optim.Muon", "lr": 0.1})


def test_a_torch_without_muon_is_told_in_one_line(monkeypatch):
    monkeypatch.setattr(torch.optim, "__all__", [name for name in torch.optim.__all__ if name != "Muon"])
    with pytest.raises(ValueError, match="has no Muon"):
        Muon([nn.Parameter(torch.zeros(2, 2))])
