"""The sweepers that ``conf/hydra/sweeper`` names; Hydra takes plugins from below ``hydra_plugins`` alone.

Hydra imports this file at every start, ``--help`` and tab completion included.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, final

from hydra.core.override_parser.types import Override

from tautnet.sweeps.grid import grid
from tautnet.sweeps.study import SearchSpace, StudySettings, search
from tautnet.sweeps.sweeper import AbstractSweeper, Jobs


@final
class GridSweeper(AbstractSweeper):
    """``hydra/sweeper=grid``: every combination of the listed values."""

    def run(self, overrides: list[Override], jobs: Jobs) -> None:
        """Run the whole grid."""
        jobs.finish(grid(overrides))


@final
class StudySweeper(AbstractSweeper):
    """``hydra/sweeper=optuna``: a search that asks Optuna for values; its file in ``conf`` names the settings."""

    def __init__(self, params: Mapping[str, Any] | None = None, **settings: Any) -> None:
        super().__init__(params)
        self.settings = StudySettings(**settings)

    def run(self, overrides: list[Override], jobs: Jobs) -> None:
        """Ask for trials and run them until there are enough."""
        search(SearchSpace.of(overrides), self.settings, jobs)

    def objectives(self, objective: str) -> dict[str, str]:
        """Those of the search, if it has several."""
        own = self.settings.objectives
        return dict(own) if own is not None and len(own) > 1 else super().objectives(*(own or [objective]))
