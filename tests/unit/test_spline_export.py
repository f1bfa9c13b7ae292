"""Learned splines as tables, files and plain torch operations."""

import copy
import json
import re

import numpy as np
import pytest
import torch
from torch import nn

from tautnet.activations import LinearSpline
from tautnet.activations.relu_sum import ReluSum
from tautnet.backbones.blocks import Residual
from tautnet.lipschitz import lipschitz_bound
from tautnet.splines.export import load_tables, save_json, save_npz, to_plain, to_relu_sum
from tautnet.splines.recognize import recognize
from tautnet.splines.tables import Curve, curve_table, curve_tables

INITS = ["identity", "relu", "leaky_relu", "absolute", "soft_threshold", "even_odd", "maxmin", "zero"]
SHARINGS = [("channel", ()), ("layer", ()), ("neuron", ()), ("neuron", (2, 3))]


def initial(dtype: torch.dtype, *args, **settings) -> LinearSpline:
    """A spline made in this dtype."""
    torch.set_default_dtype(dtype)
    try:
        return LinearSpline(*args, **settings)
    finally:
        torch.set_default_dtype(torch.float32)


def spline_with(values, grid_range=2.0, dtype=torch.float64) -> LinearSpline:
    """One curve with these values at its knots."""
    spline = LinearSpline(1, len(values), grid_range).to(dtype)
    spline.set_values_(torch.tensor([values], dtype=torch.float64))
    return spline


def random_spline(num_knots=52, grid_range=4.0, dtype=torch.float32, **settings) -> LinearSpline:
    """Slopes of a normal distribution, small values."""
    spline = initial(dtype, 3, num_knots, grid_range, **settings)
    positions, values = spline.points()
    walk = torch.randn(values.diff(dim=1).shape, dtype=torch.float64) * positions.diff(dim=1)
    spline.set_values_(nn.functional.pad(walk.cumsum(1), (1, 0)) - walk.sum(1, keepdim=True) / 2)
    return spline


def sparse_spline(kept=(10, 11, 30), **settings) -> LinearSpline:
    """Straight but at the given inner knots."""
    spline = random_spline(**settings)
    positions, values = (tensor.detach().numpy() for tensor in spline.points())
    at = [0, *kept, positions.shape[1] - 1]
    sparse = [np.interp(x, x[at], y[at]) for x, y in zip(positions, values, strict=True)]
    spline.set_values_(torch.tensor(np.array(sparse)))
    return spline


def inputs(spline: LinearSpline, reach: float = 3.0) -> torch.Tensor:
    x = torch.empty(500, 3, *spline.spatial_shape, dtype=spline.coefficients.dtype)
    return x.uniform_(-1, 1) * reach * spline.grid_range


# --- tables -----------------------------------------------------------------------------------------------------------


def test_table_of_a_curve_holds_knots_values_slopes_and_the_anchor():
    (curve,) = curve_table(spline_with([3.0, 1.0, 1.0, 1.5, 2.0]), tolerance=1e-9).curves
    assert curve == Curve(None, (-1.0, 0.0), (1.0, 1.0), (-2.0, 0.0, 0.5), 1.0, 0.0)


@pytest.mark.parametrize(("offset", "slope", "name"), [(1.0, -2.0, "affine(-2, 1)"), (3.0, 0.0, "constant(3)")])
def test_affine_curve_has_no_knots_and_is_there_all_the_same(offset, slope, name):
    (curve,) = curve_table(spline_with([offset + slope * x for x in (-2, -1, 0, 1, 2)]), tolerance=1e-9).curves
    assert curve == Curve(name, (), (), (slope,), offset, 0.0)


def test_table_says_whose_curves_they_are():
    table = curve_table(LinearSpline(3, 5, 2.5, sharing="neuron", spatial_shape=(2, 4)))
    assert (table.num_channels, table.sharing, table.spatial_shape, table.grid_range) == (3, "neuron", (2, 4), 2.5)
    assert len(table.curves) == 24


def test_dropped_knots_leave_the_chord_and_their_error_is_stated():
    # slopes 0, 0.2, 0.1, 1: changes 0.2, -0.1, 0.9
    spline = spline_with([0.0, 0.0, 0.2, 0.3, 1.3])
    (curve,) = curve_table(spline, tolerance=0.5).curves
    assert curve.knots == (1.0,)
    assert curve.values == (0.3,)
    np.testing.assert_allclose(curve.slopes, (0.1, 1.0), rtol=1e-12)
    np.testing.assert_allclose(curve.value_at_0, 0.2, rtol=1e-12)
    np.testing.assert_allclose(curve.error, 0.1, rtol=1e-12)
    assert [len(curve_table(spline, tolerance=t).curves[0].knots) for t in (0.0, 0.15, 1.0)] == [3, 2, 0]


def test_tolerance_is_what_is_dropped_and_not_what_is_kept():
    spline = spline_with([0.0, 0.0, 0.0, 0.5, 1.0])
    assert len(curve_table(spline, tolerance=0.5).curves[0].knots) == 0
    assert len(curve_table(spline, tolerance=0.4999).curves[0].knots) == 1


@pytest.mark.parametrize("tolerance", [0.5, 1.5, 3.0])
def test_dropping_obeys_the_stated_bounds_and_never_makes_a_slope_steeper(tolerance):
    spline = random_spline(21, 2.0, torch.float64)
    positions, values = (tensor.detach().numpy() for tensor in spline.points())
    for curve, x, y in zip(curve_table(spline, tolerance).curves, positions, values, strict=True):
        slopes = np.diff(y) / np.diff(x)
        changes = np.abs(np.diff(slopes))
        dropped = changes[changes <= tolerance].sum()
        assert 0 < curve.error <= dropped * 4.0 / 4
        np.testing.assert_allclose(np.abs(curve(x) - y).max(), curve.error, rtol=1e-9)
        assert slopes.min() - 1e-12 <= min(curve.slopes) <= max(curve.slopes) <= slopes.max() + 1e-12
        assert max(abs(curve.slopes[0] - slopes[0]), abs(curve.slopes[-1] - slopes[-1])) <= dropped + 1e-12


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("linear_term", [False, True])
@pytest.mark.parametrize("kept", [(), (25,), (1, 49), (10, 11, 30)])
def test_default_tolerance_finds_the_knots_of_a_stored_sparse_spline(dtype, linear_term, kept):
    spline = sparse_spline(kept, num_knots=51, dtype=dtype, linear_term=linear_term)
    for curve, x in zip(curve_table(spline).curves, spline.points()[0], strict=True):
        assert curve.knots == tuple(x[list(kept)].tolist())
        assert curve.error <= 4 * torch.finfo(dtype).eps * spline.points()[1].abs().max()


def test_default_tolerance_keeps_a_curvature_too_small_for_single_knots():
    x = np.linspace(-4, 4, 51)
    spline = spline_with((x + 1e-5 * x**2).tolist(), 4.0, torch.float32)
    changes = spline.points()[1].diff(dim=1).diff(dim=1) / 0.16
    (curve,) = curve_table(spline).curves
    assert changes.abs().max() < 2e-5  # no more than rounding may be
    assert 0 < len(curve.knots) < 20
    assert curve.error <= 2e-6


def test_table_of_a_curve_is_the_spline_everywhere():
    spline = random_spline(11, 2.0, torch.float64)
    x = inputs(spline)
    for c, curve in enumerate(curve_table(spline).curves):
        np.testing.assert_allclose(curve(x[:, c].numpy()), spline(x)[:, c].detach().numpy(), rtol=1e-12, atol=1e-12)


# --- names ------------------------------------------------------------------------------------------------------------

NAMES = {
    **{"identity": ["identity"], "relu": ["relu"], "leaky_relu": ["leaky_relu(0.01)"], "absolute": ["abs"]},
    **{"soft_threshold": ["soft_threshold(0.5)"], "even_odd": ["abs", "soft_threshold(0.5)"], "zero": ["zero"]},
    "maxmin": ["abs", "identity"],
}


@pytest.mark.parametrize("init", INITS)
@pytest.mark.parametrize(("num_knots", "grid_range"), [(5, 1.0), (21, 1.0), (33, 4.0), (81, 4.0), (9, 2.0), (201, 5.0)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_every_initial_function_has_its_name_where_the_kinks_are_knots(init, num_knots, grid_range, dtype):
    spline = LinearSpline(2, num_knots, grid_range, init=init).to(dtype)
    names = [curve.name for curve in curve_table(spline).curves]
    assert names == (NAMES[init] * 2)[:2]


@pytest.mark.parametrize(("init", "name"), [("relu", "relu"), ("absolute", "abs"), ("leaky_relu", "leaky_relu(0.01)")])
@pytest.mark.parametrize(("num_knots", "grid_range"), [(4, 1.5), (10, 3.0), (50, 4.0)])
def test_a_kink_spread_over_two_knots_has_a_name_at_a_tolerance_of_its_error(init, name, num_knots, grid_range):
    spline = LinearSpline(1, num_knots, grid_range, init=init).double()
    error = 2 * grid_range / (num_knots - 1) / (2 if init == "absolute" else 4)
    assert curve_table(spline).curves[0].name is None
    assert curve_table(spline, name_tolerance=0.98 * error).curves[0].name is None
    assert curve_table(spline, name_tolerance=1.02 * error).curves[0].name in (name, "relu")


@pytest.mark.parametrize("init", ["identity", "zero"])
def test_affine_functions_have_their_name_on_every_grid(init):
    for num_knots, grid_range in [(4, 1.5), (10, 3.0), (50, 0.3), (3, 100.0)]:
        assert curve_table(LinearSpline(1, num_knots, grid_range, init=init)).curves[0].name == init


FUNCTIONS = {
    "clip(-1, 1)": lambda x: x.clip(-1, 1),
    "clip(0, 1)": lambda x: x.clip(0, 1),
    "-clip(-0.5, 1)": lambda x: -x.clip(-0.5, 1),
    "soft_threshold(1)": lambda x: np.sign(x) * (abs(x) - 1).clip(0),
    "2.5 * soft_threshold(0.5)": lambda x: 2.5 * np.sign(x) * (abs(x) - 0.5).clip(0),
    "leaky_relu(0.125)": lambda x: np.where(x > 0, x, 0.125 * x),
    "leaky_relu(-0.3)": lambda x: np.where(x > 0, x, -0.3 * x),
    "-relu": lambda x: -x.clip(0),
    "0.5 * relu": lambda x: 0.5 * x.clip(0),
    "-0.25 * leaky_relu(4)": lambda x: np.where(x > 0, -0.25 * x, -x),
    "-abs": lambda x: -abs(x),
    "affine(-1, 0)": lambda x: -x,
    "affine(0.75, -2)": lambda x: 0.75 * x - 2,
    "constant(-0.3)": lambda x: -0.3 + 0 * x,
}


@pytest.mark.parametrize("name", FUNCTIONS)
@pytest.mark.parametrize("shift", [0.0, 1e-4])
def test_names_do_not_depend_on_where_the_other_knots_are(name, shift):
    rng = np.random.default_rng(0)
    for reach in (1.5, 2.0, 7.0):
        for more in (0, 1, 50):
            x = np.unique([-reach, -1, -0.5, 0, 0.5, 1, reach, *rng.uniform(-reach, reach, more)])
            noise = shift * rng.uniform(-1, 1, x.shape) * np.diff(x).min()
            assert recognize(x, FUNCTIONS[name](x) + noise) == name


@pytest.mark.parametrize("name", ["clip(-1, 1)", "-relu", "abs", "leaky_relu(0.01)"])
def test_what_is_further_than_the_tolerance_has_no_name(name):
    function = FUNCTIONS.get(name, {"abs": abs, "leaky_relu(0.01)": lambda x: np.maximum(x, 0.01 * x)}.get(name))
    x = np.linspace(-4, 4, 65)
    for k in (0, 16, 32, 40, 64):  # border slopes differ too
        bump = 2e-3 * np.eye(65)[k]
        assert recognize(x, function(x) + bump) is None
        assert recognize(x, function(x) + bump, tolerance=0.02) is not None


def test_border_lines_count_as_much_as_the_grid():
    x = np.linspace(-1, 1, 2001)
    y = np.maximum(x, 0)
    y[-1] -= 5e-4  # a slope of 0.5 on the border, in a value that is within the tolerance
    assert recognize(x, y) is None
    assert recognize(x, -y[::-1]) is None


def test_tolerance_is_of_the_curve_and_not_of_the_function_before_its_factor():
    x = np.linspace(-1, 1, 11)
    for factor, bump in [(50.0, 2e-3), (0.125, 5e-4)]:
        y = factor * np.maximum(x, 0) + bump * np.eye(11)[5]
        assert recognize(x, y) == (None if bump > 1e-3 else "0.125 * relu")


@pytest.mark.parametrize("seed", range(3))
def test_a_random_curve_has_no_name(seed):
    torch.manual_seed(seed)
    assert all(curve.name is None for curve in curve_table(random_spline(11)).curves)


# --- sums of ReLUs ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("make", [random_spline, sparse_spline])
@pytest.mark.parametrize(("sharing", "spatial_shape"), SHARINGS)
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.float64, 1e-12)])
def test_sum_of_relus_is_the_spline(make, sharing, spatial_shape, dtype, tolerance):
    spline = make(dtype=dtype, sharing=sharing, spatial_shape=spatial_shape)
    plain, x = to_relu_sum(spline), inputs(spline)
    assert plain.knots.shape == (spline.num_curves, 50 if make is random_spline else 3)
    torch.testing.assert_close(plain(x), spline(x).detach(), rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("init", INITS)
@pytest.mark.parametrize(("num_knots", "grid_range"), [(51, 4.0), (50, 4.0), (21, 1.0), (3, 0.3)])
@pytest.mark.parametrize("linear_term", [False, True])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.float64, 1e-12)])
def test_sum_of_relus_is_the_initial_function(init, num_knots, grid_range, linear_term, dtype, tolerance):
    spline = initial(dtype, 3, num_knots, grid_range, init=init, linear_term=linear_term)
    plain, x = to_relu_sum(spline), inputs(spline)
    assert plain.knots.shape[1] <= 4
    torch.testing.assert_close(plain(x), spline(x).detach(), rtol=tolerance, atol=tolerance)


def test_curves_of_different_numbers_of_knots_share_a_layer():
    spline = initial(torch.float64, 4, 9, 2.0, init="even_odd")
    values = spline.points()[1].detach().clone()
    values[1], values[2] = spline.knots(), 3.0
    spline.set_values_(values)
    plain, x = to_relu_sum(spline), torch.randn(100, 4, dtype=torch.float64) * 4
    assert plain.knots.shape == (4, 2)
    torch.testing.assert_close(plain(x), spline(x).detach(), rtol=1e-12, atol=1e-12)
    for actual, expected in zip(plain.slope_range(), spline.slope_range(), strict=True):
        torch.testing.assert_close(actual, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("kept", [(10, 11, 30), (5,)])
@pytest.mark.parametrize(
    "settings",
    [{"learn_scale": True}, {"slope_min": -1.0, "slope_max": 1.0}, {"learn_scale": True, "linear_term": True}],
)
def test_scales_and_slope_limits_are_in_the_sum(settings, kept):
    spline = initial(torch.float32, 3, 52, 4.0, **settings)
    with torch.no_grad():
        for parameter in spline.parameters():
            parameter.normal_() if parameter.dim() == 1 else None
    positions, _ = spline.points()
    at = [0, *kept, 51]
    corners = 0.4 * torch.randn(3, len(at), dtype=torch.float64)
    values = [np.interp(x, x[at], y) for x, y in zip(positions.numpy(), corners.numpy(), strict=True)]
    spline.set_values_(torch.tensor(np.array(values)))
    plain, x = to_relu_sum(spline), inputs(spline)
    assert plain.knots.shape == (3, len(kept))
    torch.testing.assert_close(plain(x), spline(x).detach(), rtol=1e-5, atol=1e-5)
    rounding = 1e-6 if spline.log_scale is not None else 1e-14  # of the values that float32 divides by alpha
    assert plain.lipschitz_constant(2) <= min(spline.lipschitz_constant(2) * (1 + rounding), spline.slope_max or 1e9)


@pytest.mark.parametrize("tolerance", [None, 0.0, 0.5])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_no_slope_gets_steeper(tolerance, dtype):
    for make in (random_spline, sparse_spline):
        spline = make(dtype=dtype)
        assert to_relu_sum(spline, tolerance).lipschitz_constant(2) <= spline.lipschitz_constant(2) * (1 + 1e-14)


def test_half_precision_spline_becomes_a_sum_in_float32():
    spline = LinearSpline(3).to(torch.bfloat16).eval()
    plain = to_relu_sum(spline)
    assert plain.knots.dtype == torch.float32
    assert not plain.training
    x = torch.randn(50, 3).to(torch.bfloat16)
    assert torch.equal(plain(x), spline(x))


def small_net() -> nn.Sequential:
    shared = sparse_spline()
    body = nn.Sequential(nn.Linear(3, 3), shared, nn.Linear(3, 3), sparse_spline((20,), sharing="layer"))
    return nn.Sequential(nn.Linear(4, 3), shared, Residual(body, nn.Identity()), nn.Linear(3, 2)).eval()


def test_plain_copy_of_a_net_has_the_same_outputs_and_bound():
    net = small_net()
    before = copy.deepcopy(net.state_dict())
    plain, x = to_plain(net), 3 * torch.randn(200, 4)
    torch.testing.assert_close(plain(x), net(x), rtol=1e-5, atol=1e-5)
    bound, original = (lipschitz_bound(n, (4,)).total for n in (plain, net))
    assert original * (1 - 1e-5) <= bound <= original * (1 + 1e-12)
    assert not any(isinstance(module, LinearSpline) for module in plain.modules())
    assert plain[1] is plain[2].body[1]
    assert isinstance(plain[1], ReluSum)
    assert all(not module.training for module in plain.modules())
    assert isinstance(net[1], LinearSpline)
    torch.testing.assert_close(net.state_dict(), before, rtol=0, atol=0)


def test_module_used_twice_in_one_container_is_replaced_at_both_places():
    spline = sparse_spline()
    plain = to_plain(nn.Sequential(spline, nn.Linear(3, 3), spline))
    assert plain[0] is plain[2]
    assert isinstance(plain[0], ReluSum)


def test_bare_spline_and_tolerance_are_handed_on():
    assert isinstance(to_plain(sparse_spline()), ReluSum)
    assert to_plain(random_spline(), tolerance=1e9).knots.shape == (3, 0)
    assert to_plain(nn.Sequential(random_spline()), tolerance=1e9)[0].knots.shape == (3, 0)


def test_hooks_of_other_layers_stay_and_those_of_a_spline_are_refused():
    net, seen = small_net(), []
    net[0].register_forward_hook(lambda module, args, output: seen.append(1))
    to_plain(net)(torch.zeros(1, 4))
    assert seen == [1]
    handle = net[1].register_forward_hook(lambda module, args, output: 2 * output)
    with pytest.raises(ValueError, match="hooks"):
        to_plain(net)
    handle.remove()
    to_plain(net)


# --- files ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("save", "name"), [(save_json, "splines.json"), (save_npz, "splines.npz")])
def test_files_bring_back_the_same_tables_and_functions(save, name, tmp_path):
    net = small_net()
    net.append(LinearSpline(2, 5, init="identity"))
    path = tmp_path / "new folder" / name
    save(net, path)
    tables = load_tables(path)
    assert tables == curve_tables(net, formula_tolerance=0.01)
    assert list(tables) == ["1", "2.body.1", "2.body.3", "4"]
    assert [len(curve.knots) for curve in tables["1"].curves] == [3, 3, 3]
    x = 5 * torch.randn(100, 3)
    assert torch.equal(tables["1"].relu_sum()(x), to_relu_sum(net[1])(x))
    assert list(path.parent.iterdir()) == [path]


@pytest.mark.parametrize("save", [save_json, save_npz])
@pytest.mark.parametrize(("sharing", "spatial_shape"), SHARINGS)
def test_files_of_a_bare_spline_of_any_sharing(save, sharing, spatial_shape, tmp_path):
    spline = random_spline(9, sharing=sharing, spatial_shape=spatial_shape)
    save(spline, tmp_path / "spline", tolerance=0.5, name_tolerance=0.9, formula_tolerance=0.8)
    assert load_tables(tmp_path / "spline") == {"": curve_table(spline, 0.5, 0.9, 0.8)}


def test_json_is_what_its_description_says(tmp_path):
    save_json(nn.Sequential(LinearSpline(1, 5, 2.0, init="relu")), tmp_path / "a.json")
    curve = {"name": "relu", "knots": [0], "values": [0], "slopes": [0, 1], "value_at_0": 0, "error": 0}
    curve |= {"formula": "relu(x)", "formula_error": 0}
    layer = {"num_channels": 1, "sharing": "channel", "spatial_shape": [], "grid_range": 2, "curves": [curve]}
    expected = {"format": "tautnet splines", "version": 1, "layers": {"0": layer}}
    assert json.loads((tmp_path / "a.json").read_text()) == expected


def test_npz_is_read_without_pickle_by_its_offsets(tmp_path):
    spline = LinearSpline(4, 9, 2.0, init="even_odd")
    save_npz(nn.Sequential(LinearSpline(1, 5, init="zero"), spline), tmp_path / "a.npz")
    with np.load(tmp_path / "a.npz", allow_pickle=False) as archive:
        assert archive["offsets"].tolist() == [0, 0, 1, 2, 4, 6]
        assert archive["knots"].tolist() == [0, 0, -0.5, 0.5, -0.5, 0.5]
        assert archive["slopes"].tolist() == [0, -1, 1, -1, 1, 1, 0, 1, 1, 0, 1]
        header = json.loads(str(archive["header"]))
    texts = {"name": "soft_threshold(0.5)", "formula": "softshrink(x, 0.5)", "formula_error": 0}
    assert header["layers"]["1"]["curves"][3] == texts


@pytest.mark.parametrize("save", [save_json, save_npz])
def test_a_write_that_fails_leaves_the_old_file_and_nothing_else(save, tmp_path, monkeypatch):
    path = tmp_path / "splines"
    save(LinearSpline(1, init="relu"), path)
    old = path.read_bytes()

    def fail(*args):
        raise OSError("disk full")

    monkeypatch.setattr("tautnet.splines.export.os.replace", fail)
    with pytest.raises(OSError, match="disk full"):
        save(LinearSpline(1, init="absolute"), path)
    assert path.read_bytes() == old
    assert list(tmp_path.iterdir()) == [path]


def test_files_that_are_none_are_refused_by_name(tmp_path):
    save_json(LinearSpline(1, 5), tmp_path / "good.json")
    save_npz(LinearSpline(1, 5), tmp_path / "good.npz")
    good = json.loads((tmp_path / "good.json").read_text())
    layer = good["layers"][""]
    curve = layer["curves"][0]
    wrong = {
        "version": good | {"version": 2},
        "format": good | {"format": "other"},
        "no_layers": {"format": good["format"], "version": 1},
        "list": [],
        "unknown_key": good | {"layers": {"": layer | {"colour": "red"}}},
        "a_value_more": good | {"layers": {"": layer | {"curves": [curve | {"values": [0, 1]}]}}},
        "falling": good | {"layers": {"": layer | {"curves": [curve | {"knots": [1, 0], "values": [0, 0]}]}}},
    }
    for name, document in wrong.items():
        (tmp_path / name).write_text(json.dumps(document))
    (tmp_path / "text").write_text("no table")
    (tmp_path / "half").write_bytes((tmp_path / "good.json").read_bytes()[:100])
    (tmp_path / "half.npz").write_bytes((tmp_path / "good.npz").read_bytes()[:300])
    np.savez(tmp_path / "other.npz", x=np.zeros(2))
    with np.load(tmp_path / "good.npz") as archive:
        objects = dict(archive) | {"error": archive["error"].astype(object)}
    np.savez(tmp_path / "objects.npz", **objects)
    for path in tmp_path.iterdir():
        if path.stem != "good":
            with pytest.raises(ValueError, match=re.escape(f"path={path}")):
                load_tables(path)
    with pytest.raises(ValueError, match="no such file"):
        load_tables(tmp_path / "missing.json")


# --- bad arguments ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("tolerance", [-1.0, float("nan"), float("inf")])
def test_bad_tolerances_are_named(tolerance):
    with pytest.raises(ValueError, match=f"tolerance={tolerance}"):
        to_relu_sum(LinearSpline(1), tolerance)
    with pytest.raises(ValueError, match=f"tolerance={tolerance}"):
        curve_table(LinearSpline(1), name_tolerance=tolerance)


def test_a_name_tolerance_of_zero_is_refused():
    with pytest.raises(ValueError, match=r"tolerance=0\.0"):
        recognize(np.arange(3.0), np.arange(3.0), 0.0)


@pytest.mark.parametrize("use", [to_plain, curve_tables])
def test_a_net_without_splines_is_refused(use):
    with pytest.raises(ValueError, match="net=Linear"):
        use(nn.Linear(2, 2))


def test_a_spline_that_is_not_finite_is_refused():
    spline = LinearSpline(2, 5)
    nn.init.constant_(spline.coefficients, float("nan"))
    with pytest.raises(ValueError, match="finite"):
        to_relu_sum(spline)


def put(name, value):
    return lambda layer: layer.update({name: value})


@pytest.mark.parametrize(
    "edit",
    [
        *(put("num_channels", value) for value in ("4", 7, 0)),
        *(put("sharing", value) for value in ("x", [1])),
        *(put("grid_range", value) for value in ("auto", 0, None)),
        put("spatial_shape", "abc"),
        put("curves", []),
        lambda layer: layer["curves"][0].update(value_at_0=3.0),
        lambda layer: layer["curves"][0].update(value_at_0=10**400),
    ],
)
def test_a_table_that_makes_no_sense_is_refused(tmp_path, edit):
    path = tmp_path / "splines.json"
    save_json(LinearSpline(4), path)
    document = json.loads(path.read_text())
    edit(document["layers"][""])
    path.write_text(json.dumps(document))
    with pytest.raises(ValueError, match=r"splines.json: a file of tautnet splines"):
        load_tables(path)


def test_endless_brackets_are_refused(tmp_path):
    path = tmp_path / "splines.json"
    path.write_text("[" * 100_000)
    with pytest.raises(ValueError, match=r"splines.json: a file of tautnet splines"):
        load_tables(path)
