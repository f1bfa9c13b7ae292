"""How a sweep ends that is stopped between two jobs, what it refuses before the first, and what a file adds to it."""

import os
import signal

import pytest
from omegaconf import OmegaConf
from test_sweeps import rows
from test_sweeps import sweep as sweep  # a fixture

from hydra_plugins.tautnet_sweeps import GridSweeper
from tautnet.config import ConfigError


def test_sigterm_ends_a_sweep_with_its_table(sweep, tmp_path):
    before = signal.getsignal(signal.SIGTERM)

    def stopped(number):
        if number == 1:
            os.kill(os.getpid(), signal.SIGTERM)

    assert sweep("seed=0,1,2", at_job=stopped) == (143, [0, 1])
    assert [row["directory"] for row in rows(tmp_path)] == ["0"]
    assert signal.getsignal(signal.SIGTERM) == before
    assert sweep("seed=0,1") == (0, [1])


@pytest.mark.parametrize("argument", ["hydra.run.dir=mine", "activation=glob(zz*)"])
def test_what_has_no_effect_in_a_sweep_is_refused(sweep, capsys, tmp_path, argument):
    assert sweep("seed=0,1", argument) == (2, [])
    assert capsys.readouterr().err.strip().startswith(f"error: {argument}: ")
    assert not (tmp_path / "sweep").exists()


def test_the_command_line_wins_over_the_parameters_of_a_file(sweep):
    def refused(number):
        raise ConfigError("seed: not now")

    from_file = "+hydra.sweeper.params.seed='5,6'"
    assert sweep(from_file, at_job=refused) == (1, [0, 1])
    assert sweep(from_file, "seed=3", at_job=refused) == (1, [0])


def test_processes_of_torchrun_are_not_left_waiting_by_another_launcher(monkeypatch):
    config = OmegaConf.create({"hydra": {"runtime": {"choices": {"hydra/launcher": "joblib"}}}})
    for name, value in {"TORCHELASTIC_RUN_ID": "a", "RANK": "0", "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ConfigError, match=r"^hydra/launcher=joblib: torchrun has started 2 processes"):
        GridSweeper().setup(hydra_context=None, task_function=None, config=config)
