"""What every sweep does: hand the jobs that are not finished to the launcher, and sum up."""

from __future__ import annotations

import logging
import signal
import sys
import threading
from abc import abstractmethod
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.core.plugins import Plugins
from hydra.core.utils import JobReturn, JobStatus
from hydra.plugins.launcher import Launcher
from hydra.plugins.sweeper import Sweeper
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, OmegaConf

from tautnet import logkeys
from tautnet.command_line import explain
from tautnet.config import ConfigError
from tautnet.layout import launched
from tautnet.sweeps.folder import Run, SweepFolder, held
from tautnet.sweeps.grid import values

_log = logging.getLogger(__name__)
Job = list[str]  # the task overrides of one job, one value each


class AbstractSweeper(Sweeper):
    """A sweep that skips finished jobs, goes on when one fails, and ends with a table and a plot.

    Args:
        params: overrides by key, each as it would stand on the command line; the command line wins.
    """

    def __init__(self, params: Mapping[str, Any] | None = None) -> None:
        self.params = params or {}
        self.config: DictConfig | None = None
        self.hydra_context: HydraContext | None = None
        self.launcher: Launcher | None = None

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        """Take over from Hydra.

        Raises:
            ConfigError: processes that torchrun or srun has started wait for this one, and the launcher would leave it.
        """
        world, launcher = launched(), config.hydra.runtime.choices["hydra/launcher"]
        if world is not None and launcher != "basic":
            wanted = f"{world.launcher} has started {world.size} processes, which only hydra/launcher=basic can use"
            raise ConfigError(f"hydra/launcher={launcher}: {wanted}; or start train.py alone")
        self.config, self.hydra_context = config, hydra_context
        self.launcher = Plugins.instance().instantiate_launcher(
            hydra_context=hydra_context, task_function=task_function, config=config
        )

    def sweep(self, arguments: list[str]) -> None:
        """Run the jobs that ``arguments`` describe.

        Raises:
            ConfigError: a sweep that cannot be; nothing has run.
            SystemExit: status 1, some jobs failed; status 143, SIGTERM.
        """
        assert self.config is not None
        subdir = OmegaConf.to_container(self.config.hydra.sweep, resolve=False)["subdir"]  # type: ignore[call-overload,index]
        if subdir != "${hydra.job.num}":
            raise ConfigError(f"hydra.sweep.subdir={subdir}: jobs are numbered, so that they are found again; leave it")
        for override in self.config.hydra.overrides.hydra:
            if override.startswith("hydra.run."):
                raise ConfigError(f"{override}: of a single run; the directory of a sweep is hydra.sweep.dir")
        parser = OverridesParser.create(config_loader=self._hydra().config_loader)
        overrides = parser.parse_overrides([*(f"{key}={value}" for key, value in self.params.items()), *arguments])
        with held(Path(self.config.hydra.sweep.dir)), _sigterm_leaves():
            last = list({override.get_key_element(): override for override in overrides}.values())
            fixed = {values(override)[0] for override in last if not override.is_sweep_override()}
            jobs = Jobs(self, SweepFolder(Path(self.config.hydra.sweep.dir)), fixed)
            try:
                self.run(last, jobs)
            finally:  # after an interrupt too
                if jobs.objective is not None:
                    from tautnet.sweeps.summary import summarise  # imports rich

                    summarise(jobs.folder, self.objectives(jobs.objective))
            if jobs.failures:
                sys.stderr.write(_report(jobs.failures))
                raise SystemExit(1)

    @abstractmethod
    def run(self, overrides: list[Override], jobs: Jobs) -> None:
        """Find the jobs that the overrides describe and let them run."""

    def objectives(self, objective: str) -> dict[str, str]:
        """What the plot shows, final metrics with ``maximize`` or ``minimize``: the first against every other."""
        return {objective: "maximize", logkeys.LIPSCHITZ_BOUND: "minimize", logkeys.ACTIVE_KNOTS: "minimize"}

    def compose(self, job: Job) -> DictConfig:
        """The settings of a job; raises what Hydra says about overrides that do not fit."""
        return self._hydra().config_loader.load_sweep_config(self.config, job)  # type: ignore[arg-type]

    def launch(self, jobs: list[Job], number: int) -> Sequence[JobReturn]:
        """Run jobs through the launcher, whatever it is."""
        assert self.launcher is not None
        return self.launcher.launch(jobs, initial_job_idx=number)

    def _hydra(self) -> HydraContext:
        assert self.hydra_context is not None
        return self.hydra_context


@contextmanager
def _sigterm_leaves() -> Iterator[None]:
    """Between two jobs SIGTERM ends a sweep as an interrupt does, with its summary; a job sees to its own signals."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, _leave)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _leave(number: int, _: object) -> None:
    raise SystemExit(128 + number)


class Jobs:
    """Runs jobs in a sweep's directory, and remembers which of them failed.

    Args:
        sweeper: composes and launches.
        folder: the directory.
        fixed: overrides that all jobs share; messages leave them out.
    """

    def __init__(self, sweeper: AbstractSweeper, folder: SweepFolder, fixed: Collection[str] = ()) -> None:
        self._sweeper = sweeper
        self._fixed = fixed
        self.folder = folder
        self.failures: list[str] = []
        self.objective: str | None = None  # of the first job; known once that has been composed

    def finish(self, jobs: list[Job]) -> list[Run | None]:
        """Run those jobs that are not finished; their runs, None for one that failed.

        All of them are composed before the first one starts, so that a key that does not exist stops the sweep at once.
        """
        if self.objective is None:
            self.objective = str(self._sweeper.compose(jobs[0]).objective)
        todo = {frozenset(job): job for job in jobs if self.folder.find(job) is None}
        for job in todo.values():
            self._sweeper.compose(job)
        if len(todo) < len(jobs):
            _log.info("%s: %d of %d jobs are finished", self.folder.path, len(jobs) - len(todo), len(jobs))
        if todo:
            self._launch(list(todo.values()))
        return [self.folder.find(job) for job in jobs]

    def _launch(self, todo: list[Job]) -> None:
        places = [self.folder.place(job) for job in todo]
        first = int(places[0].name) if places[0].name.isdecimal() else 0
        if [place.name for place in places] != [str(first + index) for index in range(len(places))]:
            for place, job in zip(places, todo, strict=True):  # the launcher counts on
                _log.info("%s: %s", place, self._varied(job))
        where = [[*job, f"hydra.sweep.subdir={place.name}"] for place, job in zip(places, todo, strict=True)]
        try:
            returns = self._sweeper.launch(where, first)
        finally:  # after an interrupt too
            runs = [self.folder.record(place) for place in places]
        for place, job, run, returned in zip(places, todo, runs, returns, strict=True):
            if run is None:
                self.fail(str(place), job, _reason(returned))

    def fail(self, where: str, job: Sequence[str], reason: str) -> None:
        """Note a failure for the report at the end."""
        self.failures.append(f"{where} ({self._varied(job)}): {reason}")

    def _varied(self, job: Sequence[str]) -> str:
        return " ".join(override for override in job if override not in self._fixed)


def _reason(returned: JobReturn) -> str:
    """Why a job failed, in one line; a traceback as well if it is nothing that a setting explains."""
    if returned.status is not JobStatus.FAILED:
        return "ended without a result.json"
    error = returned._return_value  # the property would raise it
    reason = explain(error)
    if isinstance(error, ConfigError):
        return reason
    _log.error("%s", reason, exc_info=error)
    return f"{type(error).__name__}: {reason}"


def _report(failures: list[str]) -> str:
    lines = [f"error: {len(failures)} failed; the same command runs them again", *failures]
    return "\n  ".join(lines) + "\n"
