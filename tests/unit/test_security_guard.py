"""Hostile settings of Hydra itself, in a file: refused before Hydra acts on them."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import CONF
from hydra import compose, initialize_config_dir
from hydra._internal import hydra as hydra_application
from hydra._internal.utils import create_config_search_path
from hydra.errors import ConfigCompositionException
from hydra.types import RunMode
from omegaconf import OmegaConf

from tautnet import guard
from tautnet.command_line import register_schema
from tautnet.errors import ConfigError
from tautnet.guard import CheckedLoader
from tautnet.origin import named_prefixes

PRIMARY = """
defaults: [_self_, {experiment: null}, {override hydra/launcher: free}, {override hydra/sweeper: free}]
allow: []
run_dir: ${hydra:runtime.output_dir}
data: {root: null}
hydra:
  run: {dir: "outputs/${now:%Y}"}
  output_subdir: null
"""
FREE = {  # of a launcher and a sweeper that take anything
    "launcher": "_target_: hydra_plugins.hydra_submitit_launcher.submitit_launcher.SlurmLauncher",
    "sweeper": "_target_: hydra_plugins.tautnet_sweeps.GridSweeper\nparams: {}",
}
CANARY = "canary"  # a directory that a payload makes
CALL = f"{{_target_: os.mkdir, path: {CANARY}}}"
LOGS = "hydra.job_logging.handlers"

# what a file adds -> the key that is named
HOSTILE = {
    f"hydra: {{callbacks: {{x: {CALL}}}}}": "hydra.callbacks.x._target_=os.mkdir",
    f"hydra: {{launcher: {CALL}}}": "hydra.launcher._target_=os.mkdir",
    f"hydra: {{sweeper: {CALL}}}": "hydra.sweeper._target_=os.mkdir",
    f"hydra: {{mode: MULTIRUN, sweeper: {CALL}}}": "hydra.sweeper._target_=os.mkdir",
    "hydra: {callbacks: {x: {_target_: hydra.experimental.callbacks.PickleJobInfoCallback}}}": "PickleJobInfo",
    f"hydra: {{callbacks: {{x: {{y: [{CALL}]}}}}}}": "hydra.callbacks.x.y.0._target_",
    f'hydra: {{job_logging: {{handlers: {{x: {{"()": os.mkdir, path: {CANARY}}}}}}}}}': f"{LOGS}.x.()=os.mkdir",
    f'hydra: {{hydra_logging: {{handlers: {{x: {{"()": os.mkdir, path: {CANARY}}}}}}}}}': "hydra.hydra_logging",
    f'hydra: {{job_logging: {{formatters: {{x: {{"()": os.mkdir, path: {CANARY}}}}}}}}}': "formatters.x.()=os.mkdir",
    f'hydra: {{job_logging: {{filters: {{x: {{"()": os.mkdir, path: {CANARY}}}}}}}}}': "filters.x.()=os.mkdir",
    "hydra: {job_logging: {handlers: {x: {class: logging.handlers.SocketHandler, host: h, port: 1}}}}": "x.class=",
    "hydra: {job_logging: {handlers: {x: {class: logging.StreamHandler, stream: ext://canary.x}}}}": "x.stream=",
    "hydra: {job_logging: {handlers: {x: {class: logging.NullHandler, level: ext://canary.x}}}}": "x.level=",
    "hydra: {job_logging: {handlers: {x: {class: logging.NullHandler, level: '${data.root}'}}}}": "x.level=",
    "hydra: {job_logging: {handlers: {file: {filename: victim}}}}": f"{LOGS}.file.filename=victim",
    "hydra: {job_logging: {handlers: {file: {'.': {baseFilename: victim}}}}}": "baseFilename=victim",
    "hydra: {overrides: {task: ['allow=[os]']}}": "hydra.overrides: in a file",
    "hydra: {overrides: {hydra: ['hydra.run.dir=/victim']}, run: {dir: /victim}}": "hydra.overrides: in a file",
    "hydra: {job: {name: ../victim}}": "hydra.job.name=../victim",
    "hydra: {job: {env_set: {LD_PRELOAD: evil.so}}}": "hydra.job.env_set.LD_PRELOAD=evil.so",
    "hydra: {run: {dir: /victim}}": "hydra.run.dir=/victim",
    "hydra: {run: {dir: a/../../victim}}": "hydra.run.dir=a/../../victim",
    "hydra: {run: {dir: '${data.root}'}}\ndata: {root: /victim}": "hydra.run.dir=/victim",
    "hydra: {sweep: {dir: ~/victim}}": "hydra.sweep.dir=~/victim",
    "hydra: {output_subdir: ../../victim}": "hydra.output_subdir=../../victim",
    "hydra: {launcher: {setup: [mkdir canary]}}": "hydra.launcher.setup.0=mkdir canary",
    'hydra: {launcher: {comment: "x\\nmkdir canary"}}': "hydra.launcher.comment=x mkdir canary",
    "hydra: {sweeper: {params: {allow: '[os]'}}}": "hydra.sweeper.params.allow=[os]",
    f"hydra: {{sweeper: {{params: {{+hydra.callbacks.x: '{CALL}'}}}}}}": "hydra.sweeper.params.+hydra.callbacks.x",
    "hydra: {sweeper: {params: {run_dir: victim}}}": "hydra.sweeper.params.run_dir",
    "hydra: {sweeper: {params: {callbacks.x.dirpath: victim}}}": "hydra.sweeper.params.callbacks.x.dirpath",
    "hydra: {sweeper: {params: {+logger.x: '{save: /victim}'}}}": "hydra.sweeper.params.+logger.x",
    "data: {root: '${oc.env:SECRET}'}": "data.root=${oc.env:SECRET}",
    "data: {root: 'a${oc.env:SECRET}'}": "data.root=a${oc.env:SECRET}",
    "data: {root: '${now:${oc.env:SECRET}}'}": "data.root=",
    "data: {root: '${${data.x}:SECRET}', x: oc.env}": "data.root=",
    "data: {root: '${ oc.env : SECRET }'}": "data.root=",
    "data: {root: \"${oc.decode:'{_target_: os.mkdir}'}\"}": "data.root=",
    "data: {root: '${oc.create:[1]}'}": "data.root=",
    "hydra: {help: {footer: '${oc.env:SECRET}'}}": "hydra.help.footer=",
}


@pytest.fixture
def composed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator:
    """Compose what a file adds to small settings, with further overrides."""
    for group, option in FREE.items():
        (tmp_path / "hydra" / group).mkdir(parents=True)
        (tmp_path / "hydra" / group / "free.yaml").write_text(option)
    (tmp_path / "experiment").mkdir()
    (tmp_path / "train.yaml").write_text(PRIMARY)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SECRET", "hush")
    monkeypatch.setattr(hydra_application, "ConfigLoaderImpl", hydra_application.ConfigLoaderImpl)
    guard.install()
    with initialize_config_dir(str(tmp_path), version_base="1.3"):

        def run(added: str, *overrides: str):
            (tmp_path / "experiment" / "x.yaml").write_text(f"# @package _global_\n{added}\n")
            return compose("train", overrides=["experiment=x", *overrides], return_hydra_config=True)

        yield run


@pytest.mark.parametrize("added", HOSTILE)
def test_what_a_file_says_about_hydra_is_refused_in_one_line(composed, added):
    with pytest.raises(ConfigError) as refused:
        composed(added)
    assert HOSTILE[added] in str(refused.value)
    assert len(str(refused.value).splitlines()) == 1
    assert "hush" not in str(refused.value)
    assert {path.name for path in Path.cwd().iterdir()} == {"experiment", "hydra", "train.yaml"}


def test_what_files_usually_say_is_accepted(composed):
    harmless = "hydra: {run: {dir: 'mine/${now:%Y}'}, verbose: true, sweeper: {params: {data.root: 'a,b'}}}"
    assert composed(harmless).hydra.run.dir.startswith("mine/2")
    assert composed("data: {root: 'x/${run_dir}/y'}").hydra.job.name


@pytest.mark.parametrize(
    "override",
    [
        f"+hydra.callbacks.x={CALL}",
        "hydra.run.dir=/somewhere/else",
        "+hydra.job.env_set.NAME=value",
        "hydra.job_logging.handlers.file.filename=mine.log",
        "data.root=${oc.env:SECRET}",
        "hydra.output_subdir=../beside",
    ],
)
def test_the_command_line_may(composed, override):
    composed("data: {}", override)


def test_what_the_environment_holds_may_be_handed_on(composed):
    assert os.environ["SECRET"] == composed("hydra: {job: {env_copy: [SECRET]}}").hydra.job.env_set.SECRET


def test_a_search_path_of_a_file_imports_nothing(tmp_path, monkeypatch):
    package = tmp_path / "canary_package"
    package.mkdir()
    (package / "__init__.py").write_text("import os; os.mkdir('canary')")
    (tmp_path / "train.yaml").write_text("hydra: {searchpath: ['pkg://canary_package']}")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(hydra_application, "ConfigLoaderImpl", guard.CheckedLoader)
    with (
        initialize_config_dir(str(tmp_path), version_base="1.3"),
        pytest.raises(ConfigError, match=r"hydra\.searchpath=pkg://canary_package: "),
    ):
        compose("train")
    assert not (tmp_path / CANARY).exists()


def test_a_job_of_a_sweep_is_checked_too(tmp_path, monkeypatch, composed):
    master = composed("data: {}")
    (tmp_path / "experiment" / "evil.yaml").write_text(f"# @package _global_\nhydra: {{callbacks: {{x: {CALL}}}}}")
    from hydra.core.global_hydra import GlobalHydra

    loader = GlobalHydra.instance().config_loader()
    with pytest.raises(ConfigError, match=r"hydra\.callbacks\.x"):
        loader.load_sweep_config(master, ["experiment=evil"])


@pytest.mark.parametrize("override", ["allow=[my_package]", "++allow=[my_package]"])
def test_packages_named_on_the_command_line_are_accepted(override):
    assert named_prefixes(["my_package"], ["seed=1", override]) == ["my_package"]
    assert named_prefixes([], []) == []


@pytest.mark.parametrize(
    "override", ["", "allow.0=os", "allow=extend_list(os)", "allow@x=[os]", "allowed=[os]", "experiment=allow=[os]"]
)
def test_packages_named_elsewhere_are_refused(override):
    with pytest.raises(ConfigError, match=r"^allow=\['os'\]: "):
        named_prefixes(["os"], [override])


@pytest.mark.parametrize("prefix", ["", "a b", "../x", "_x", "os;x", "*"])
def test_a_name_of_no_package_is_refused(prefix):
    with pytest.raises(ConfigError, match=r"^allow="):
        named_prefixes([prefix], ["allow=[x]"])


def test_conf_passes_as_it_is():
    from conftest import CONF

    for path in CONF.rglob("*.yaml"):
        content = OmegaConf.to_container(OmegaConf.load(path), resolve=False)
        texts = [value for _, value in guard.leaves(content, "") if isinstance(value, str)]
        assert not [text for text in texts if guard._INTERPOLATION.search(text)]


@pytest.mark.parametrize("overrides", [[], ["data=iris", "model=mlp", "seed=3"], ["hydra.run.dir=elsewhere"]])
def test_a_run_takes_what_was_composed_for_its_mode(overrides):
    def loader() -> CheckedLoader:
        return CheckedLoader(create_config_search_path(str(CONF)))

    register_schema()
    reused, as_run = loader(), [*overrides, "hydra.mode=RUN"]
    first = reused.load_configuration("train", overrides, RunMode.MULTIRUN, validate_sweep_overrides=False)
    second = reused.load_configuration("train", as_run, RunMode.RUN)
    anew = loader().load_configuration("train", as_run, RunMode.RUN)
    assert second is first
    assert OmegaConf.to_container(second) == OmegaConf.to_container(anew)
    assert reused.load_configuration("train", as_run, RunMode.RUN) is not first


def test_a_sweep_without_m_is_refused_though_its_mode_was_composed():
    loader = CheckedLoader(create_config_search_path(str(CONF)))
    register_schema()
    loader.load_configuration("train", ["seed=1,2"], RunMode.MULTIRUN, validate_sweep_overrides=False)
    with pytest.raises(ConfigCompositionException, match="--multirun"):
        loader.load_configuration("train", ["seed=1,2", "hydra.mode=RUN"], RunMode.RUN)
