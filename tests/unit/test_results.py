"""What a finished run says."""

import shlex
from pathlib import Path

from tautnet.results import _columns, next_commands


def test_the_next_commands_can_be_typed():
    run = Path("it's a run/$HOME")
    commands = next_commands(run, on_tensorboard=True, with_weights=True, classifies=True)
    assert [shlex.split(command)[-1] for command in commands] == [str(run)] * 5
    names = [shlex.split(command)[:-1] for command in commands]
    assert [*(["tautnet", name] for name in ("report", "plot", "certify", "export"))] == [
        name for name in names if name != ["tensorboard", "--logdir"]
    ]


def test_only_what_can_be_done_is_named():
    run = Path("run")
    few = next_commands(run, on_tensorboard=False, with_weights=False, classifies=True)
    assert list(few) == ["tautnet report run"]
    regressor = next_commands(run, on_tensorboard=False, with_weights=True, classifies=False)
    assert "tautnet certify run" not in regressor


def test_the_table_of_runs_names_classes_by_their_groups_and_leaves_paths_out():
    settings = {
        "run_dir": "/x/run",
        "overrides": ["seed=1"],
        "seed": 1,
        "compile": False,
        "activation": {"_target_": "tautnet.activations.LinearSpline", "_partial_": True, "num_knots": 51},
        "callbacks": {"last": {"_target_": "tautnet.callbacks.Checkpoints", "folder": "/x/run/checkpoints"}},
    }
    classes, values = _columns(settings)
    assert classes == {"activation": "LinearSpline"}
    assert values == {"seed": 1, "compile": "false", "activation.num_knots": 51}
