"""Closed forms of curves: what is put in comes out, the simpler one within the tolerance, and where nothing fits."""

import copy
import math

import pytest
import torch
from torch.nn import functional as F

from tautnet.activations import AbstractActivation, LinearSpline, PReLU, ReLU, ReluSum, Slaf
from tautnet.splines import candidates, evaluate, formulas
from tautnet.splines.curves import curve_values
from tautnet.splines.families import families

TORCH = {
    name: getattr(torch, name) for name in ("sin", "exp", "log", "sqrt", "tanh", "sigmoid", "arctan", "sign", "clamp")
}
TORCH |= {name: getattr(F, name) for name in ("relu", "leaky_relu", "softplus", "silu", "gelu", "elu", "softshrink")}
TORCH |= {"abs": abs, "__builtins__": {}}


class Curves(AbstractActivation):
    """A function a channel."""

    def __init__(self, *functions):
        super().__init__(len(functions))
        self.functions = functions

    def forward(self, x):
        return torch.stack([function(x_N) for function, x_N in zip(self.functions, x.unbind(1), strict=True)], dim=1)

    slope_range = tv2 = local_slope_range = interval = lipschitz_constant = None


def curves_of(*expressions):
    return Curves(*(lambda x, text=text: eval(text, TORCH | {"x": x}) + torch.zeros_like(x) for text in expressions))


TEXT = """
0.83*tanh(1.2*x - 0.31) + 0.02 | 1.3*sigmoid(3*x) | sigmoid(x) | -2*tanh(x) | arctan(2*x) - 5 | sin(2*x)
0.01*sin(7*x + 1) + 5 | -exp(-(x - 1)**2) | exp(-(0.7*x)**2) + 1 | exp(0.3*x) | 4*exp(-0.8*x) - 1 | 3*log(x + 4.5)
log(-x + 6) | 0.5/(x - 6) | -1/(x + 4.1) + 7 | sqrt(x + 4) | sqrt(-x + 5) + 1 | (x - 1)**2 | 0.2*x**2 - 3 | x**3 - 2
-(x + 0.5)**4 | 2*abs(x - 1.3) | softplus(2*x - 1) | silu(x) | silu(-3*x) | gelu(-x) | 2*elu(x + 1) - 3 | relu(-x + 2)
relu(x - 1.234) + 1 | 0.3*leaky_relu(x - 0.77, -0.4) | -leaky_relu(x + 1, 0.1) + 2 | 3*x - 7000 | -x | x + 0.5 | 0
-2.5 | 100000000*sin(x) | relu(x) | clamp(x, -1, 2) | -3*leaky_relu(x, 0.2)"""
EXPRESSIONS = [text.strip() for line in TEXT.strip().splitlines() for text in line.split("|")]


def test_a_formula_comes_out_as_it_went_in():
    found = formulas(curves_of(*EXPRESSIONS), -4, 4)
    assert [f.expression for f in found] == EXPRESSIONS
    assert max(f.error for f in found) < 1e-6
    assert {f.kind for f in found} == {"exact", "within"}
    assert all((f.lo, f.hi) == (-4, 4) for f in found)


@pytest.mark.parametrize(("lo", "hi"), [(-1e-3, 2e-3), (300.0, 1000.0)])
def test_any_range_will_do(lo, hi):
    half, middle = (hi - lo) / 2, (lo + hi) / 2
    inner = f"((x - {middle})/{half})"
    names = ["tanh", "sin", "gaussian", "x^2", "exp", "softplus", "abs", "leaky_relu"]
    texts = [
        f"tanh(2*{inner} - 0.3)",
        f"sin(3*{inner})",
        f"exp(-(1.5*{inner})**2)",
        f"({inner} - 0.2)**2",
        f"exp(2*{inner})",
    ]
    texts += [f"softplus(6*{inner})", f"abs({inner} - 0.3)", f"leaky_relu({inner} - 0.1, 0.3)"]
    texts = [f"10*{text}" for text in texts]  # not within 0.001 of a straight line
    found = formulas(curves_of(*texts), lo, hi)
    assert [f.name for f in found] == names
    x = torch.linspace(lo, hi, 77, dtype=torch.float64)
    for text, formula in zip(texts, found, strict=True):
        torch.testing.assert_close(formula(x), eval(text, TORCH | {"x": x}), rtol=0.01, atol=0.05)


def test_random_members_of_every_family_are_found_again():
    t = torch.linspace(-1, 1, 201, dtype=torch.float64)
    for family in families():
        if family.name == "sign":  # where between two points it jumps cannot be seen
            continue
        starts = family.starts()
        a, b = starts[torch.randint(len(starts), (80,))].unbind(1)
        a, b = (p * (1 + 0.2 * torch.rand(80)) if free else p for p, free in zip((a, b), family.free, strict=True))
        inside = (a.abs() < 8) & (b.abs() < 8) & (family.kind != "free" or (b / a).abs() < 0.8)
        values = family(t, a[inside].unsqueeze(1), b[inside].unsqueeze(1))
        values = values[values.isfinite().all(1) & (values.std(1) > 0.02)]
        values = values[values.mean(1).abs() < 8 * values.std(1)]
        functions = [lambda x, row=row: row.view(-1, *[1] * (x.dim() - 1)).expand_as(x) for row in values]
        for found in candidates(Curves(*functions), -1, 1, names=[family.name]):
            assert found[0].error < 1e-3, (family.name, found)


def test_a_jump_is_found_between_two_points():
    (found,) = formulas(curves_of("5*sign(x + 2.03) + 1"), -4, 4, tolerance=0.02)
    assert (found.name, found.kind) == ("sign", "within")
    torch.testing.assert_close(
        found(torch.tensor([-4, -2.08, -1.98, 4])), torch.tensor([-4.0, -4, 6, 6]), rtol=0, atol=0.1
    )


def test_the_error_is_that_of_the_printed_numbers():
    torch.manual_seed(3)
    spline = LinearSpline(5, 21)
    with torch.no_grad():
        spline.coefficients.add_(0.4 * torch.randn(5, 21).cumsum(1))
    x = -4 + 8 * torch.linspace(0, 1, 201, dtype=torch.float64)
    for y, found in zip(curve_values(spline, x.unsqueeze(0)), candidates(spline, tolerance=0.2, most=99), strict=True):
        assert len(found) > 10
        assert len({f.expression for f in found}) == len(found)
        rest = [f.error for f in found[1:]]
        assert rest == sorted(rest)
        for formula in found:
            values = eval(formula.expression, TORCH | {"x": x})
            torch.testing.assert_close(formula(x), values.expand_as(x), rtol=1e-12, atol=1e-9 * float(y.abs().max()))
            error = float((values - y).square().mean().sqrt() / y.std(correction=0))
            assert formula.error == pytest.approx(error, rel=1e-6)
            assert formula.kind == ("within" if error <= 0.2 else "nearest")


def test_the_simpler_one_within_the_tolerance():
    curve = curves_of("x + 0.02*sin(3*x) + 0.7")
    (exactly,), (roughly,) = formulas(curve, tolerance=1e-3), formulas(curve, tolerance=0.05)
    assert (roughly.name, roughly.expression, roughly.kind) == ("x", "x + 0.7", "within")
    assert exactly.kind == "nearest"
    assert str(exactly).startswith("nothing fits; nearest: ")
    bowl = curves_of("x**2 + 0.1*tanh(x - 1)")
    assert formulas(bowl, tolerance=0.1)[0].name == "x^2"
    assert len(formulas(bowl, tolerance=0.1)[0].expression) < len(formulas(bowl, tolerance=0.03)[0].expression)


def test_chosen_functions_alone():
    curve = curves_of("tanh(x)", "relu(x)")
    for found in candidates(curve, names=["arctan", "x", "arctan"]):
        assert sorted(f.name for f in found) == ["arctan", "x"]
    assert formulas(curve, names=["relu"], curves=[1])[0].expression == "relu(x)"


def test_splines_by_their_grids_and_exact_shapes_first():
    spline = LinearSpline(3, 9, 2.0, init="soft_threshold", learn_scale=True)
    with torch.no_grad():
        spline.log_scale.copy_(torch.tensor([1.0, 2.0, 4.0]).log())
    found = formulas(spline)
    assert [(f.lo, f.hi) for f in found] == [(-2, 2), (-1, 1), (-0.5, 0.5)] or [round(f.hi, 6) for f in found] == [
        2,
        1,
        0.5,
    ]
    assert [f.expression for f in found] == [f"softshrink(x, {t})" for t in (0.5, 0.25, 0.125)]
    assert [f.kind for f in found] == ["exact"] * 3
    (small,) = formulas(LinearSpline(1, init="zero"))
    assert (small.expression, small.error, small.kind) == ("0", 0, "exact")
    assert [f.expression for f in formulas(spline, curves=[2, 0])] == ["softshrink(x, 0.125)", "softshrink(x, 0.5)"]


def test_a_tanh_that_a_spline_has_learned():
    spline = LinearSpline(2, 51)
    x = spline.knots()
    with torch.no_grad():
        spline.coefficients.copy_(torch.stack([0.83 * torch.tanh(1.2 * x - 0.31) + 0.02, torch.exp(-0.5 * x)]))
    tanh, exponential = formulas(spline)
    assert (tanh.name, exponential.name) == ("tanh", "exp")
    knots = spline.points()[1]
    for formula, values in zip((tanh, exponential), knots, strict=True):
        assert float((formula(x) - values).abs().max()) < 0.02 * float(values.std())


def test_a_slaf_is_its_polynomial():
    slaf = Slaf(4, degree=3)
    with torch.no_grad():
        slaf.coefficients.copy_(torch.tensor([[1.0, 0.5, -0.3], [0.2, -2.0, 0.9], [1, 0, 0], [-1, 1, 1]]))
    found = formulas(slaf.train())
    assert [f.name for f in found] == ["polynomial", "polynomial", "affine(1, 0.1)", "polynomial"]
    x = torch.linspace(-3, 3, 50, dtype=torch.float64)
    for formula, values in zip(found, slaf.eval()(x.unsqueeze(1).expand(-1, 4)).t().detach(), strict=True):
        assert float((formula(x) - values).abs().max()) < 0.01 * float(values.std())


ACTIVATIONS = [
    *(ReLU(3), PReLU(3), LinearSpline(3), LinearSpline(3, sharing="layer"), LinearSpline(3, learn_scale=True)),
    *(LinearSpline(3, sharing="neuron", spatial_shape=(2,)), Slaf(3), Slaf(3, sharing="layer", basis="fourier")),
    *(Slaf(3, sharing="neuron", spatial_shape=(2,), hybrid="relu"), Slaf(3, normalize="maxabs")),
    ReluSum(3, torch.tensor([[0.0, 1.0]]), torch.tensor([[1.0, 0.0, 2.0]]), torch.zeros(1), "layer"),
    ReluSum(1, torch.tensor([[0.5], [1.0]]), torch.tensor([[1.0, 0.0], [1, 3]]), torch.zeros(2), "neuron", (2,)),
]


@pytest.mark.parametrize("activation", ACTIVATIONS, ids=str)
def test_the_curves_are_the_activation_and_it_stays_as_it_is(activation):
    activation = copy.deepcopy(activation).train()
    with torch.no_grad():
        for parameter in activation.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    before = {name: value.clone() for name, value in activation.state_dict().items() if value is not None}
    x = torch.linspace(-5, 5, 40)
    curves = curve_values(activation, x.unsqueeze(0))
    assert activation.training
    assert all(
        torch.equal(value, activation.state_dict()[name]) or value.isnan().all() for name, value in before.items()
    )
    spatial_shape = getattr(activation, "spatial_shape", ())
    points = x.view(-1, 1, *[1] * len(spatial_shape)).expand(-1, activation.num_channels, *spatial_shape)
    values = activation.eval()(points).detach().flatten(1).t().double()
    torch.testing.assert_close(curves.expand_as(values), values, rtol=1e-4, atol=1e-5)
    assert len(formulas(activation, names=["x"])) == len(curves)


def test_the_function_is_that_of_eval_mode():
    class Shifted(Curves):
        def forward(self, x):
            return super().forward(x) + float(self.training)

    (found,) = formulas(Shifted(torch.tanh).train())
    assert found.expression == "tanh(x)"


def test_the_same_again():
    spline = LinearSpline(6, init="even_odd")
    with torch.no_grad():
        spline.coefficients.add_(0.1 * torch.randn_like(spline.coefficients))
    assert formulas(spline) == formulas(spline)
    assert formulas(spline, curves=[4]) == formulas(spline)[4:5]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"tolerance": 0.0}, "tolerance=0.0: above 0, at most 1"),
        ({"tolerance": math.nan}, "tolerance=nan"),
        ({"lo": 1.0}, "lo=1.0, hi=None: both or none"),
        ({"lo": 1.0, "hi": 1.0}, "lo=1.0, hi=1.0: finite, lo below hi"),
        ({"lo": 0.0, "hi": math.inf}, "finite, lo below hi"),
        ({"names": ["tan"]}, r"names=\['tan'\]: of x, x\^2, "),
        ({"names": []}, r"names=\[\]: of x"),
        ({"curves": [3]}, r"curves=\[3\]: of 0 to 1"),
        ({"most": 0}, "most=0: at least 1"),
    ],
)
def test_bad_arguments_are_named(arguments, said):
    with pytest.raises(ValueError, match=said):
        candidates(ReLU(2), **arguments)


def test_curves_that_are_not_finite_are_refused():
    with pytest.raises(ValueError, match="activation=Curves: its values on the range are not finite"):
        formulas(curves_of("log(x)"))


def test_a_formula_executes_nothing_else():
    x = torch.linspace(0.5, 1, 5)
    assert torch.equal(evaluate("2", x), torch.full_like(x, 2))
    assert torch.equal(evaluate("-(x + 1)**2/4", x), -((x + 1) ** 2) / 4)
    assert evaluate("9**9**9**9", x).isinf().all()
    calls = [
        "__import__('os').getcwd()",
        "x.sum()",
        "tanh(input=x)",
        "tanh()",
        "relu(x, 2)",
        "clamp(x, y, 2)",
        "tanh(x",
    ]
    others = [
        "y",
        "x if x else 1",
        "True",
        "1j",
        "'x'",
        "[x]",
        "x; x",
        "",
        "(" * 600 + "x",
        "x" + "+x" * 600,
        "~x",
        "+x",
    ]
    for wrong in (*calls, *others):
        with pytest.raises(ValueError, match="expression="):
            evaluate(wrong, x)
