"""A study without training: what is searched, and what becomes of trials that fail or are cut off."""

from pathlib import Path
from types import SimpleNamespace

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser

from tautnet.config import ConfigError
from tautnet.sweeps.folder import Run
from tautnet.sweeps.study import SearchSpace, StudySettings, distribution, search

optuna = pytest.importorskip("optuna", reason="Optuna comes with the extra `sweep`")
SPACE = ("trainer=cpu", "optimizer.lr=tag(log,interval(1e-4,1e-1))", "norm=batch,none")


def parsed(*arguments: str):
    return OverridesParser.create().parse_overrides(list(arguments))


def settings(**changes) -> StudySettings:
    return StudySettings(**{"objectives": None, "n_trials": 4, "n_jobs": 1, "sampler": "random", "seed": 0} | changes)


class Bench:
    """In the place of Jobs: a job's metrics are a function of its overrides; None or an exception where it fails."""

    def __init__(self, path: Path, measure):
        self.folder, self.objective, self.measure = SimpleNamespace(path=path), None, measure
        self.asked, self.batches, self.failures = [], [], []

    def finish(self, jobs):
        self.objective = "val/acc"
        self.batches.append(len(jobs))
        self.asked += [dict(override.split("=", 1) for override in job) for job in jobs]
        metrics = [self.measure(job) for job in self.asked[-len(jobs) :]]
        return [None if found is None else Run(self.folder.path / "0", ("seed=0",), found) for found in metrics]

    def fail(self, where, job, reason):
        self.failures.append(reason)


def studied(path: Path, measure, *arguments: str, **changes) -> Bench:
    bench = Bench(path, measure)
    search(SearchSpace.of(parsed(*(arguments or SPACE))), settings(**changes), bench)
    return bench


def by_rate(job):
    return {"val/acc": float(job["optimizer.lr"])}


def only_study(path: Path):
    storage = optuna.storages.JournalStorage(optuna.storages.journal.JournalFileBackend(str(path / "study.journal")))
    (name,) = optuna.get_all_study_names(storage)
    return optuna.load_study(study_name=name, storage=storage)


# --- what is searched -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("interval(0.5,2)", {"low": 0.5, "high": 2.0, "log": False, "step": None}),
        ("tag(log,interval(1e-4,1e-1))", {"low": 1e-4, "high": 0.1, "log": True, "step": None}),
        ("int(interval(1,8))", {"low": 1, "high": 8, "log": False, "step": 1}),
        ("tag(log,int(interval(1,8)))", {"low": 1, "high": 8, "log": True, "step": 1}),
        ("range(5,52,2)", {"low": 5, "high": 51, "log": False, "step": 2}),
        ("range(5,52,4)", {"low": 5, "high": 49, "log": False, "step": 4}),
        ("range(3,0,-1)", {"low": 1, "high": 3, "log": False, "step": 1}),
        ("range(0,1,0.25)", {"low": 0.0, "high": 0.75, "log": False, "step": 0.25}),
        ("[4],[6,7]", {"choices": ("[4]", "[6,7]")}),
        ("1e-3,null,'a b'", {"choices": ("0.001", "null", "'a b'")}),
    ],
)
def test_words_of_the_command_line_and_what_optuna_chooses_from(words, expected):
    (override,) = parsed(f"x={words}")
    found = distribution(override)
    assert {name: getattr(found, name) for name in expected} == expected
    assert all(isinstance(getattr(found, name), type(value)) for name, value in expected.items())


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("tag(log,interval(0,1))", "low"),
        ("interval(2,1)", "low"),
        ("tag(log,range(1,9,2))", "step"),
        ("range(3,3)", "at least one value"),
        ("tag(logg,interval(1,2))", "log"),
        ("tag(log,choice(1,2))", "log"),
        ("shuffle(1,2,3)", "order"),
    ],
)
def test_words_that_cannot_be_searched_are_refused(words, message):
    (override,) = parsed(f"x={words}")
    with pytest.raises(ConfigError, match=message) as refused:
        distribution(override)
    assert str(refused.value).startswith(f"x={words}: ")


@pytest.mark.parametrize("arguments", [(), ("trainer=cpu",), ("seed=0,1",)])
def test_a_study_needs_something_to_search(arguments):
    with pytest.raises(ConfigError, match="nothing to search"):
        SearchSpace.of(parsed(*arguments))


@pytest.mark.parametrize(
    "change",
    [
        {"n_trials": 0},
        {"n_jobs": "2"},
        {"sampler": "tpee"},
        {"seed": -1},
        {"objectives": {"val/acc": "max"}},
        {"objectives": {}},
        {"objectives": ["val/acc"]},
        {"objectives": "val/acc"},
    ],
)
def test_settings_of_a_study(change):
    (name,) = change
    with pytest.raises(ConfigError, match=rf"^hydra\.sweeper\.{name}"):
        settings(**change)


# --- trials -----------------------------------------------------------------------------------------------------------


def test_a_trial_is_a_job_with_all_overrides(tmp_path):
    bench = studied(tmp_path, by_rate)
    assert bench.batches == [1] * 4
    assert all(list(job) == ["trainer", "optimizer.lr", "norm"] for job in bench.asked)
    assert all(job["trainer"] == "cpu" and job["norm"] in ("batch", "none") for job in bench.asked)
    assert all(1e-4 <= float(job["optimizer.lr"]) <= 1e-1 for job in bench.asked)
    assert only_study(tmp_path).best_value == max(float(job["optimizer.lr"]) for job in bench.asked)


def test_the_value_of_a_trial_is_the_mean_over_its_seeds(tmp_path):
    bench = studied(tmp_path, lambda job: {"val/acc": float(job["seed"]) ** 2}, *SPACE, "seed=0,1,5", n_trials=1)
    assert [job["seed"] for job in bench.asked] == ["0", "1", "5"]
    assert only_study(tmp_path).trials[0].values == [26 / 3]


def test_several_objectives_and_batches_of_trials(tmp_path):
    def measure(job):
        rate = float(job["optimizer.lr"])
        return {"val/acc": rate, "bound": float("inf") if job["norm"] == "none" else -rate}

    objectives = {"bound": "minimize", "val/acc": "maximize"}
    bench = studied(tmp_path, measure, objectives=objectives, n_trials=5, n_jobs=2, sampler="tpe")
    assert bench.batches == [2, 2, 1]
    study = only_study(tmp_path)
    assert [direction.name for direction in study.directions] == ["MINIMIZE", "MAXIMIZE"]
    assert all(trial.values[0] in (float("inf"), -trial.values[1]) for trial in study.trials)  # inf counts as it is


@pytest.mark.parametrize("metrics", [{}, {"val/acc": float("nan")}, {"val/loss": 1.0}])
def test_a_metric_that_is_missing_fails_the_trial_and_says_what_there_is(tmp_path, metrics):
    bench = studied(tmp_path, lambda job: metrics, n_trials=2)
    assert len(bench.failures) == 2
    assert all(reason.startswith("val/acc: ") and ", ".join(metrics) in reason for reason in bench.failures)
    assert {trial.state.name for trial in only_study(tmp_path).trials} == {"FAIL"}


# --- taken up again ---------------------------------------------------------------------------------------------------


def test_the_same_command_asks_for_nothing_more(tmp_path):
    studied(tmp_path, by_rate)
    again = Bench(tmp_path, by_rate)
    again.measure = lambda job: pytest.fail("ran") if again.batches[1:] else by_rate(job)
    search(SearchSpace.of(parsed(*SPACE)), settings(), again)
    assert len(again.asked) == 1  # a finished job, for the summary's objective alone
    assert len(only_study(tmp_path).trials) == 4
    assert len(studied(tmp_path, by_rate, n_trials=6).asked) == 2


@pytest.mark.parametrize("sampler", ["random", "tpe", "nsga2"])
def test_an_interrupt_changes_no_trial(tmp_path, sampler):
    (tmp_path / "whole").mkdir()
    (tmp_path / "cut").mkdir()
    whole = studied(tmp_path / "whole", by_rate, sampler=sampler, n_trials=14)
    cut = Bench(tmp_path / "cut", by_rate)

    def interrupted(job):
        if len(cut.asked) == 12:
            raise KeyboardInterrupt
        return by_rate(job)

    cut.measure = interrupted
    with pytest.raises(KeyboardInterrupt):
        search(SearchSpace.of(parsed(*SPACE)), settings(sampler=sampler, n_trials=14), cut)
    with (tmp_path / "cut" / "study.journal").open("a") as journal:
        journal.write('{"op_code":6,"wor')  # the process was killed while it wrote
    (tmp_path / "cut" / "study.journal.lock").write_text("")
    rest = studied(tmp_path / "cut", by_rate, sampler=sampler, n_trials=14)
    assert cut.asked[:11] + rest.asked == whole.asked
    assert cut.asked[11] == rest.asked[0]
    assert len({job["optimizer.lr"] for job in whole.asked}) == 14


def test_failed_trials_are_tried_again_by_the_next_command_and_not_by_this_one(tmp_path):
    first = studied(tmp_path, lambda job: None if job["norm"] == "none" else by_rate(job), n_trials=6)
    failed = [job for job in first.asked if job["norm"] == "none"]
    assert 0 < len(failed) < 6
    assert len(first.asked) == 6
    second = studied(tmp_path, lambda job: None, n_trials=6)
    assert second.asked == failed
    assert studied(tmp_path, by_rate, n_trials=6).asked == failed
    assert len(only_study(tmp_path).best_trials) == 1
    (new,) = studied(tmp_path, by_rate, n_trials=7).asked
    assert new not in first.asked  # what failed twice has been repeated once


def test_another_question_is_a_study_of_its_own(tmp_path):
    studied(tmp_path, by_rate)
    for arguments in ((*SPACE, "seed=1"), ("trainer=cpu", "optimizer.lr=interval(1e-3,1)", "norm=batch,none")):
        assert len(studied(tmp_path, by_rate, *arguments).asked) == 4
    for seeds in ("0,1", "0,1,2"):
        asked = studied(tmp_path, by_rate, *SPACE, f"seed={seeds}", n_trials=2).asked
        assert len(asked) == 2 * len(seeds.split(","))
    assert len(studied(tmp_path, by_rate, objectives={"val/acc": "minimize"}).asked) == 4
    shuffled = ("norm=batch,none", "optimizer.lr=tag(log,interval(1e-4,1e-1))", "trainer=cpu")
    assert len(studied(tmp_path, by_rate, *shuffled).asked) == 1  # the same
