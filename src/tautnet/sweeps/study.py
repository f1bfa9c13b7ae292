"""A search by Optuna over the same settings, kept in the sweep's directory and taken up again by the same command."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import isnan
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hydra.core.override_parser.types import IntervalSweep, Override, RangeSweep

from tautnet.config import ConfigError
from tautnet.sweeps.folder import Run
from tautnet.sweeps.grid import values
from tautnet.sweeps.sweeper import Jobs

if TYPE_CHECKING:
    import optuna
    from optuna.distributions import BaseDistribution

_log = logging.getLogger(__name__)
_SAMPLERS = {"tpe": "TPESampler", "random": "RandomSampler", "nsga2": "NSGAIISampler"}
_JOURNAL = "study.journal"
_AGAIN = "again"  # marks a trial that repeats one that was cut off or failed


@dataclass(frozen=True)
class StudySettings:
    """``hydra.sweeper`` of a study; ``conf/hydra/sweeper/optuna.yaml`` says what each means.

    Raises:
        ConfigError: a value that cannot be used.
    """

    objectives: Mapping[str, str] | None
    n_trials: int
    n_jobs: int
    sampler: str
    seed: int

    def __post_init__(self) -> None:
        for name in ("n_trials", "n_jobs"):
            if not isinstance(getattr(self, name), int) or getattr(self, name) < 1:
                raise ConfigError(f"hydra.sweeper.{name}={getattr(self, name)}: an integer of at least 1")
        if not isinstance(self.seed, int) or not 0 <= self.seed < 2**31:
            raise ConfigError(f"hydra.sweeper.seed={self.seed}: an integer from 0 to 2147483647")
        if self.sampler not in _SAMPLERS:
            raise ConfigError(f"hydra.sweeper.sampler={self.sampler}: one of {', '.join(_SAMPLERS)}")
        if self.objectives is not None and (not isinstance(self.objectives, Mapping) or not self.objectives):
            wanted = "null, or {metric: maximize, another: minimize}"
            raise ConfigError(f"hydra.sweeper.objectives={self.objectives}: {wanted}")
        for name, direction in (self.objectives or {}).items():
            if direction not in ("maximize", "minimize"):
                raise ConfigError(f"hydra.sweeper.objectives.{name}={direction}: maximize or minimize")


@dataclass(frozen=True)
class SearchSpace:
    """What a study varies: keys with their values, seeds that each trial repeats, and what stays fixed."""

    searched: Mapping[str, Override]
    seeds: Sequence[str]
    fixed: Sequence[str]

    @classmethod
    def of(cls, overrides: Sequence[Override]) -> SearchSpace:
        """Sort the overrides of a command line.

        Raises:
            ConfigError: nothing to search, or what a study cannot do.
        """
        swept = {override.get_key_element(): override for override in overrides if override.is_sweep_override()}
        seeds = values(swept.pop("seed")) if "seed" in swept else []
        if not swept:
            raise ConfigError(
                "hydra/sweeper=optuna: nothing to search; for example optimizer.lr='interval(1e-4, 1e-1)'"
            )
        fixed = [values(override)[0] for override in overrides if not override.is_sweep_override()]
        return cls(swept, seeds, fixed)

    def jobs(self, params: Mapping[str, Any]) -> list[list[str]]:
        """The jobs of a trial, one a seed."""
        job = [*self.fixed, *(f"{key}={value}" for key, value in params.items())]
        return [[*job, seed] for seed in self.seeds] or [job]


def search(space: SearchSpace, settings: StudySettings, jobs: Jobs) -> None:
    """Run trials until ``n_trials`` of the study have succeeded, or failed in this call."""
    try:
        import optuna
    except ImportError as error:
        raise ConfigError("hydra/sweeper=optuna: needs Optuna; pip install -e '.[sweep]'") from error
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    distributions = {key: distribution(override) for key, override in space.searched.items()}
    study = _study(space, distributions, settings, jobs.folder.path)
    _take_up_again(study)
    done = len(_finished(study))
    _log.info("study %s: %d of %d trials are done", study.study_name, done, settings.n_trials)
    for start in range(done, settings.n_trials, settings.n_jobs):
        study.sampler = _sampler(study, settings)
        trials = [study.ask(distributions) for _ in range(min(settings.n_jobs, settings.n_trials - start))]
        planned = [space.jobs(trial.params) for trial in trials]
        runs = iter(jobs.finish([job for seeds in planned for job in seeds]))
        for trial, seeds in zip(trials, planned, strict=True):
            _tell(study, trial, [next(runs) for _ in seeds], list(settings.objectives or [str(jobs.objective)]), jobs)
    if jobs.objective is None:  # nothing was left to do
        jobs.finish(space.jobs(_finished(study)[0].params))
    for best in study.best_trials[:10] if _finished(study) else []:
        found = ", ".join(f"{value:.5g}" for value in best.values or [])
        _log.info("best: %s by %s", found, " ".join(f"{key}={value}" for key, value in best.params.items()))


def _finished(study: optuna.Study) -> list[optuna.trial.FrozenTrial]:
    from optuna.trial import TrialState

    return study.get_trials(deepcopy=False, states=[TrialState.COMPLETE])


def _sampler(study: optuna.Study, settings: StudySettings) -> optuna.samplers.BaseSampler:
    """Made anew for each batch, so that a trial depends on those before it and its number, and not on interrupts."""
    import optuna

    number = sum(_AGAIN not in trial.user_attrs for trial in study.get_trials(deepcopy=False))
    sampler: optuna.samplers.BaseSampler = getattr(optuna.samplers, _SAMPLERS[settings.sampler])(
        seed=settings.seed + number
    )
    return sampler


def _study(
    space: SearchSpace,
    distributions: Mapping[str, BaseDistribution],
    settings: StudySettings,
    folder: Path,
) -> optuna.Study:
    """The study of this question in the directory's journal; another question there is a study beside it."""
    import optuna
    from optuna.storages import JournalStorage
    from optuna.storages.journal import JournalFileBackend, JournalFileOpenLock

    objectives: dict[str, Any] = dict(settings.objectives or {"objective": "maximize"})
    question = {
        "objectives": objectives,
        "searched": {
            key: optuna.distributions.distribution_to_json(distributions[key]) for key in sorted(distributions)
        },
        "seeds": sorted(space.seeds),
        "fixed": sorted(space.fixed),
    }
    name = hashlib.sha256(json.dumps(question).encode()).hexdigest()[:8]
    journal = folder / _JOURNAL
    _mend_(journal)
    storage = JournalStorage(JournalFileBackend(str(journal), lock_obj=JournalFileOpenLock(str(journal))))
    study = optuna.create_study(
        storage=storage, study_name=name, directions=list(objectives.values()), load_if_exists=True
    )
    if not study.user_attrs:
        study.set_user_attr("question", question)
    return study


def _mend_(journal: Path) -> None:
    """Remove what a killed process left: half a line, and a lock that would be waited for; no other sweep is here."""
    Path(f"{journal}.lock").unlink(missing_ok=True)
    if journal.exists():
        content = journal.read_bytes()
        if not content.endswith(b"\n"):
            journal.write_bytes(content[: content.rfind(b"\n") + 1])


def _take_up_again(study: optuna.Study) -> None:
    """Trials that were cut off or failed are asked for again before new ones."""
    from optuna.trial import TrialState

    for trial in study.get_trials(deepcopy=False, states=[TrialState.RUNNING]):
        study.tell(trial.number, state=TrialState.FAIL)
    trials = study.get_trials(deepcopy=False)
    known = [trial.params for trial in trials if trial.state == TrialState.COMPLETE]
    known += [trial.system_attrs.get("fixed_params", {}) for trial in trials if trial.state == TrialState.WAITING]
    for trial in trials:
        if trial.state == TrialState.FAIL and trial.params and trial.params not in known:
            study.enqueue_trial(trial.params, user_attrs={_AGAIN: trial.number})
            known.append(trial.params)


def _tell(
    study: optuna.Study, trial: optuna.Trial, runs: Sequence[Run | None], objectives: Sequence[str], jobs: Jobs
) -> None:
    """Give Optuna the means over the seeds; a trial with a run that failed, or without a metric, failed."""
    from optuna.trial import TrialState

    finished = [run for run in runs if run is not None]
    missing = [name for name in objectives for run in finished if isnan(run.metrics.get(name, float("nan")))]
    if len(finished) < len(runs) or missing:
        study.tell(trial, state=TrialState.FAIL)
        if missing:
            where = ", ".join(str(run.directory) for run in finished)
            measured = f"not measured, or not a number; measured: {', '.join(sorted(finished[0].metrics))}"
            jobs.fail(where, finished[0].overrides, f"{missing[0]}: {measured}")
        return
    study.tell(trial, [sum(run.metrics[name] for run in finished) / len(finished) for name in objectives])


def distribution(override: Override) -> BaseDistribution:
    """What Optuna may choose from for one override.

    Raises:
        ConfigError: a tag or an order without effect, or bounds that Optuna refuses.
    """
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    sweep, line = override.value(), override.input_line
    tags = set(getattr(sweep, "tags", ()))
    if tags - {"log"} or (tags and not isinstance(sweep, (IntervalSweep, RangeSweep))):
        raise ConfigError(f"{line}: the one tag is log, of an interval or a range of integers")
    if getattr(sweep, "shuffle", False):
        raise ConfigError(f"{line}: a search has no order to shuffle")
    try:
        if isinstance(sweep, IntervalSweep):
            assert sweep.start is not None
            assert sweep.end is not None
            if isinstance(sweep.start, int) and isinstance(sweep.end, int):
                return IntDistribution(sweep.start, sweep.end, log=bool(tags))
            return FloatDistribution(sweep.start, sweep.end, log=bool(tags))
        if isinstance(sweep, RangeSweep):
            numbers = sorted(sweep.range())
            if not numbers:
                raise ValueError("at least one value; this range has none")
            if all(isinstance(number, int) for number in numbers):
                return IntDistribution(numbers[0], numbers[-1], log=bool(tags), step=abs(int(sweep.step)))
            return FloatDistribution(numbers[0], numbers[-1], log=bool(tags), step=abs(float(sweep.step)))
        return CategoricalDistribution(list(override.sweep_string_iterator()))
    except ValueError as error:
        raise ConfigError(f"{line}: {error}") from error
