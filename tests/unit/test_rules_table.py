"""No layer of torch is forgotten: each has a rule, or a reason for having none."""

from math import inf

import pytest
import torch
from jacobians import EXPONENTS, leaf_of
from torch import nn

from tautnet.lipschitz import lipschitz_bound
from tautnet.lipschitz.rules import REASONS, RULES, Unbounded, leaf_constant
from tautnet.lipschitz.structure import Leaf

# Of more than one input, or none of a layer's: containers, losses, bases, layers that turn into others when first used.
NO_LAYERS = {
    *("Module", "Container", "ModuleDict", "ModuleList", "ParameterDict", "ParameterList", "Sequential"),
    *("RNNBase", "RNNCellBase", "DataParallel", "CosineSimilarity", "PairwiseDistance", "NLLLoss2d"),
    "AdaptiveLogSoftmaxWithLoss",
}


def torch_layers():
    classes = [kind for kind in vars(nn).values() if isinstance(kind, type) and issubclass(kind, nn.Module)]
    names = {kind.__name__ for kind in classes}
    assert names > NO_LAYERS
    return [
        k
        for k in classes
        if k.__name__ not in NO_LAYERS and not k.__name__.startswith("Lazy") and not k.__name__.endswith("Loss")
    ]


@pytest.mark.parametrize("kind", torch_layers(), ids=lambda kind: kind.__name__)
def test_every_layer_of_torch_is_ruled_or_refused(kind):
    assert (kind in RULES) != (kind in REASONS)


@pytest.mark.parametrize(
    ("layer", "shape"),
    [
        *((nn.GLU(1), (4,)), (nn.LocalResponseNorm(2), (3, 4)), (nn.CrossMapLRN2d(2), (3, 4, 4))),
        *(
            (nn.FractionalMaxPool2d(2, output_size=2), (1, 5, 5)),
            (nn.TransformerEncoderLayer(4, 2, 4, batch_first=True), (3, 4)),
        ),
    ],
    ids=str,
)
@pytest.mark.filterwarnings("ignore:Complex modules:UserWarning")
def test_refused_layers_in_a_net_say_why(layer, shape):
    leaf = leaf_of(layer.eval(), *shape)
    for p in EXPONENTS:
        with pytest.raises(Unbounded, match=REASONS[type(layer)]):
            leaf_constant(leaf, p)
        report = lipschitz_bound(nn.Sequential(layer), shape, p)
        assert report.total == inf
        assert report.unbounded == (f"0 ({type(layer).__name__}: {REASONS[type(layer)]})",)


@pytest.mark.parametrize("kind", REASONS, ids=lambda kind: kind.__name__)
def test_refused_types_have_a_reason(kind):
    layer = kind.__new__(kind)
    nn.Module.__init__(layer)
    with pytest.raises(Unbounded, match=REASONS[kind]):
        leaf_constant(Leaf("", layer, (1,), (1,)), 2)


def test_subclasses_and_hooked_layers_have_no_rule():
    class Louder(nn.Linear):
        def forward(self, x):
            return 10 * super().forward(x)

    hooked = nn.Linear(2, 2)
    hooked.register_forward_hook(lambda module, inputs, outputs: 10 * outputs)
    for layer, reason in ((Louder(2, 2), "no rule for this type"), (hooked, "with hooks")):
        with pytest.raises(Unbounded, match=reason):
            leaf_constant(leaf_of(layer, 2), 2)


def test_rules_leave_no_gradients_and_flags_behind():
    layer = nn.Conv2d(2, 3, 3)
    with torch.no_grad():
        leaf = leaf_of(layer, 2, 5, 5)
    for p in EXPONENTS:
        leaf_constant(leaf, p)
    assert layer.weight.grad is None
    assert layer.weight.requires_grad
    assert layer.training
