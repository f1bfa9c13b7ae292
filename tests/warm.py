"""Imported by the server from which forked.py forks: what every job would import and parse for itself."""

from pathlib import Path

from hydra import compose, initialize_config_dir

import tautnet.app
import tautnet.app_callbacks
import tautnet.callbacks
import tautnet.data
import tautnet.results
import tautnet.run_state
import tautnet.stopping
import tautnet.worker  # noqa: F401
from tautnet.command_line import register_schema

# The parser of overrides fills tables while it reads, a fifth of a short job.
register_schema()
with initialize_config_dir(str(Path(__file__).parents[1] / "conf"), version_base="1.3"):
    compose("train", overrides=["seed=1", "optimizer.lr=0.1", "run=[fit]", "data=iris", "model.net.widths=[4,6]"])
