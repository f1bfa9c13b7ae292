"""The jobs of a grid, from the words of a command line."""

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser

from tautnet.config import ConfigError
from tautnet.sweeps.grid import grid


def parsed(*arguments: str):
    return OverridesParser.create().parse_overrides(list(arguments))


def test_every_combination_the_last_key_changing_first():
    assert grid(parsed("norm=a,b", "trainer=cpu", "seed=range(0,2)")) == [
        ["norm=a", "trainer=cpu", "seed=0"],
        ["norm=a", "trainer=cpu", "seed=1"],
        ["norm=b", "trainer=cpu", "seed=0"],
        ["norm=b", "trainer=cpu", "seed=1"],
    ]


def test_values_keep_their_meaning():
    assert grid(parsed("~debug", "+x={a:1}", "w=[4],[6,7]", "lr=1e-3", "ckpt='a b,c'")) == [
        ["~debug", "+x={a:1}", "w=[4]", "lr=0.001", "ckpt='a b,c'"],
        ["~debug", "+x={a:1}", "w=[6,7]", "lr=0.001", "ckpt='a b,c'"],
    ]


def test_an_interval_is_no_list():
    with pytest.raises(ConfigError, match=r"^optimizer\.lr=interval\(0,1\): .*hydra/sweeper=optuna"):
        grid(parsed("optimizer.lr=interval(0,1)"))


def test_a_range_without_numbers_is_refused():
    with pytest.raises(ConfigError, match=r"^seed=range\(3,3\): at least one value"):
        grid(parsed("norm=a,b", "seed=range(3,3)"))
