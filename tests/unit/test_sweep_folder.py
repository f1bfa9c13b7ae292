"""Which jobs of a sweep's directory are finished, and where the others run; nothing is trained."""

import json
from pathlib import Path

import pytest
import yaml

from tautnet.config import ConfigError
from tautnet.sweeps.folder import SweepFolder, held


def finished(sweep: Path, name: str, *overrides: str, **metrics: float | str) -> Path:
    (sweep / name).mkdir(parents=True)
    content = {"metrics": {"val/acc": 0.5, **metrics}, "overrides": list(overrides)}
    (sweep / name / "result.json").write_text(json.dumps(content))
    return cut_off(sweep, name, *overrides)


def cut_off(sweep: Path, name: str, *overrides: str) -> Path:
    (sweep / name).mkdir(parents=True, exist_ok=True)
    (sweep / name / "config.yaml").write_text(yaml.safe_dump({"seed": 0, "overrides": list(overrides)}))
    return sweep / name


def test_a_job_is_known_by_its_overrides_in_any_order_and_place(tmp_path):
    finished(tmp_path, "7", "seed=1", "norm=batch")
    finished(tmp_path, "kept", "seed=2")
    folder = SweepFolder(tmp_path)
    assert folder.find(["norm=batch", "seed=1"]).directory == tmp_path / "7"
    assert folder.find(["seed=2"]).directory == tmp_path / "kept"
    for other in (["seed=1"], ["seed=1", "norm=batch", "seed=3"], ["seed=1", "norm=unitize"], []):
        assert folder.find(other) is None


def test_metrics_that_json_lacks_are_numbers_again(tmp_path):
    finished(tmp_path, "0", "seed=1", bound="inf", loss="nan")
    (run,) = SweepFolder(tmp_path).runs()
    assert run.metrics["bound"] == float("inf")
    assert run.metrics["loss"] != run.metrics["loss"]
    assert run.metrics["val/acc"] == 0.5


def test_with_a_checkpoint_the_saved_overrides_of_its_run_stand_in_front(tmp_path):
    finished(tmp_path, "0", "model=mlp", "seed=3", "ckpt=a.ckpt", "run=[test]")
    folder = SweepFolder(tmp_path)
    assert folder.find(["run=[test]", "ckpt=a.ckpt"]) is not None
    assert folder.find(["run=[test]", "ckpt=b.ckpt"]) is None
    assert folder.find(["ckpt=a.ckpt"]) is None


def test_runs_come_by_number(tmp_path):
    for name in ("10", "x", "2", "0"):
        finished(tmp_path, name, f"seed={name}")
    assert [run.directory.name for run in SweepFolder(tmp_path).runs()] == ["0", "2", "10", "x"]


def test_new_jobs_take_the_free_numbers(tmp_path):
    finished(tmp_path, "0", "seed=0")
    finished(tmp_path, "2", "seed=2")
    (tmp_path / "3").mkdir()
    (tmp_path / "3" / "mine.txt").write_text("mine")
    (tmp_path / "4").write_text("a file")
    (tmp_path / "5").mkdir()  # empty: free
    folder = SweepFolder(tmp_path)
    assert [folder.place([f"seed={seed}"]).name for seed in (10, 11, 12)] == ["1", "5", "6"]
    assert (tmp_path / "3" / "mine.txt").read_text() == "mine"


def test_a_run_that_was_cut_off_goes_on_where_it_was(tmp_path):
    cut_off(tmp_path, "3", "seed=1", "norm=batch")
    (tmp_path / "3" / "checkpoints").mkdir()
    folder = SweepFolder(tmp_path)
    assert folder.find(["seed=1", "norm=batch"]) is None
    assert folder.place(["seed=2"]).name == "0"
    assert folder.place(["norm=batch", "seed=1"]) == tmp_path / "3"
    assert (tmp_path / "3" / "checkpoints").exists()


@pytest.mark.parametrize(
    "content", ["", '{"metrics": {"val', "[]", '{"metrics": 3, "overrides": []}', '{"metrics": {}}']
)
def test_a_result_that_was_cut_off_is_none(tmp_path, content):
    (cut_off(tmp_path, "0", "seed=1") / "result.json").write_text(content)
    folder = SweepFolder(tmp_path)
    assert folder.runs() == []
    assert folder.place(["seed=1"]).name == "0"


@pytest.mark.parametrize("content", [b"", b"overrides: [", b"\xff\xfe", b"overrides: 3"])
def test_settings_that_cannot_be_read_are_somebody_elses(tmp_path, content):
    (tmp_path / "0").mkdir()
    (tmp_path / "0" / "config.yaml").write_bytes(content)
    assert SweepFolder(tmp_path).place(["seed=1"]).name == "1"
    assert (tmp_path / "0" / "config.yaml").read_bytes() == content


def test_what_a_job_left_is_taken_in(tmp_path):
    folder = SweepFolder(tmp_path / "new")
    place = folder.place(["seed=1"])
    assert folder.record(place) is None
    finished(tmp_path / "new", place.name, "seed=1")
    assert folder.record(place) == folder.find(["seed=1"]) == folder.runs()[0]


@pytest.mark.parametrize("name", ["config.yaml", "result.json"])
def test_the_directory_of_a_single_run_is_no_sweeps(tmp_path, name):
    (tmp_path / name).write_text("{}")
    with pytest.raises(ConfigError, match=rf"^hydra\.sweep\.dir={tmp_path}: holds a single run"):
        SweepFolder(tmp_path)


def test_two_sweeps_do_not_share_a_directory(tmp_path):
    pytest.importorskip("fcntl")
    sweep = tmp_path / "a" / "sweep"
    with held(sweep):
        (sweep / "0").mkdir()
        with (
            pytest.raises(ConfigError, match=r"^hydra\.sweep\.dir=.*: process \d+ on .* is at work in it"),
            held(sweep),
        ):
            pass
    with held(sweep):
        pass
    assert (sweep / "0").exists()


def test_a_directory_in_which_nothing_happened_is_removed(tmp_path):
    with held(tmp_path / "sweep"):
        pass
    assert not (tmp_path / "sweep").exists()
