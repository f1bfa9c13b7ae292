"""Slips of the keyboard, values out of range, and jobs drawn at random: each trains or ends in one line that says why.

A part, drawn with a fixed seed, of what benchmarks/config_fuzz.py tries.
"""

import os
import random
import sys
import warnings
from copy import deepcopy
from pathlib import Path

import pytest
from config_cases import QUICK, bad_values, composition
from config_keys import CONF, GROUPS, all_siblings, misspelt, options, slips
from config_runs import ended, fault, run, without_pictures
from forked import finish, start, train
from hydra import compose, initialize_config_dir
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from matplotlib.figure import Figure
from omegaconf import DictConfig, open_dict

import tautnet.app
from tautnet.command_line import GROUPS_BELOW_KEYS, command_line, register_schema
from tautnet.spelling import nearest, one_slip, suggest


@pytest.fixture(scope="module", autouse=True)
def _composing():
    register_schema()
    with initialize_config_dir(str(CONF), version_base="1.3"):
        yield


@pytest.mark.parametrize(
    ("typed", "there"),
    [("lx", "lr"), ("rl", "lr"), ("l", "lr"), ("lrr", "lr"), ("", "p"), ("q", "p"), ("aab", "ab"), ("abab", "baab")],
)
def test_one_slip_apart(typed, there):
    assert one_slip(typed, there)
    assert one_slip(there, typed)


@pytest.mark.parametrize(("one", "other"), [("lr", "lr"), ("", ""), ("lr", "momentum"), ("abc", "cba"), ("ab", "cd")])
def test_not_one_slip_apart(one, other):
    assert not one_slip(one, other)


def test_slips_are_what_is_one_slip_away():
    made = slips("step")
    assert {"tep", "stop", "steps", "setp"} <= set(made)
    assert all(one_slip(slip, "step") for slip in made)
    assert len(made) == 4 + 4 * 36 + (5 * 37 - 4) + 3  # a letter doubled can stand in front of itself or behind
    assert made == sorted(set(made))


def test_all_names_that_are_equally_near_are_suggested():
    assert nearest("slope_mix", ["slope_min", "slope_max", "init"]) == ["slope_min", "slope_max"]
    assert nearest("knots", ["num_knots", "init"]) == ["num_knots"]
    assert suggest("x", []) == "; Accepted: none"
    assert suggest("_target", ["lr"], ["_target_"]) == "; did you mean _target_? Accepted: lr"


def test_groups_without_keys_of_their_own_are_known():
    folders = {str(path.parent.relative_to(CONF)) for path in CONF.rglob("*.yaml")} - {"."}
    assert set(GROUPS_BELOW_KEYS) == folders - (set(GROUPS) - set(GROUPS_BELOW_KEYS))


def test_slips_in_keys_are_named_with_the_key_that_was_meant():
    rng = random.Random(0)
    every = [(group, option) for group in GROUPS for option in options(group)]
    tried = 0
    for siblings in all_siblings([("activation", "spline"), *rng.sample(every, 8)]):
        for name in siblings.names:
            for slip in rng.sample(slips(name), 8):
                end, said = misspelt(siblings, name, slip)
                assert end != "fault", said
                tried += 1
    assert tried > 1000


@pytest.mark.parametrize(
    ("argument", "meant"),
    [
        ("optimizer.rl=1", "lr"),
        ("callbacks.lipschitz.o=2", "p"),
        ("experimet=fast94", "experiment"),
        ("norm/wieght=aon", "norm/weight"),
        ("activation=splin", "spline"),
        ("activation._targt_=tautnet.activations.ReLU", "_target_"),
        ("activation.linear_terms=true", "linear_term"),
    ],
)
def test_slips_on_the_command_line(tmp_path, argument, meant):
    done = finish(start(train, argument, folder=tmp_path, HYDRA_FULL_ERROR="0"), tmp_path)
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert line.startswith(f"error: {argument.partition('=')[0]}")
    assert f"did you mean {meant}?" in line
    assert sorted(path.name for path in tmp_path.iterdir()) == ["err", "out"]


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    return tmp_path_factory.mktemp("files")


def test_bad_values_train_or_are_named(files, tmp_path):
    rng = random.Random(1)
    chosen = [(group, rng.choice(options(group))) for group in ("activation", "data", "norm", "optimizer", "scheduler")]
    cases = rng.sample(list(bad_values(files, [("activation", "spline"), *chosen])), 25)
    for number, (key, value, arguments) in enumerate(cases):
        found = fault(run(arguments, tmp_path / str(number)), (key.path.rpartition(".")[2],))
        assert found is None, f"{key.path}={value}: {found}: {' '.join(arguments)}"


def in_this_process(composed: DictConfig, values: list[str], folder: Path) -> int:
    """Exit status of a job with further values, without the start of a process and most of Hydra's time."""
    config = deepcopy(composed)
    (folder / "run").mkdir(parents=True)  # as Hydra does
    with open_dict(config.hydra):
        config.hydra.runtime.output_dir = str(folder / "run")
        config.hydra.overrides.task += values

    def main() -> None:
        ConfigLoaderImpl._apply_overrides_to_config(OverridesParser.create().parse_overrides(values), config)
        HydraConfig.instance().set_config(config)
        settings = deepcopy(config)
        with open_dict(settings):
            del settings["hydra"]
        tautnet.app.run(settings)

    try:
        return command_line(main)
    finally:
        HydraConfig.instance().cfg = None


@pytest.mark.parametrize("chunk", range(10))
def test_compositions_train_or_are_refused(files, tmp_path, capsys, monkeypatch, chunk):
    for name, blank in without_pictures():
        monkeypatch.setattr(name, blank)
    monkeypatch.setattr(Figure, "draw", lambda *_: None)
    statuses = []
    for number in range(30 * chunk, 30 * (chunk + 1)):
        seed, variant = divmod(number, 6)
        groups, values = composition(seed, files, variant, QUICK)
        if variant == 0:
            composed = compose("train", overrides=groups, return_hydra_config=True)
        monkeypatch.setitem(os.environ, "HYDRA_FULL_ERROR", "0")
        monkeypatch.setattr(sys, "argv", ["train.py"])
        folder = tmp_path / str(number)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            status = in_this_process(composed, values, folder)
        found = fault(ended(status, capsys.readouterr().err, "", folder))
        assert found is None, f"{found}: {' '.join(groups + values)}"
        statuses.append(status)
    assert statuses.count(0) > 5
    assert statuses.count(2) > 0
