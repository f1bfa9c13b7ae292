"""Hydra's own settings, checked before Hydra acts on them.

Hydra calls what ``hydra`` names (callbacks, launcher, sweeper, classes of logging handlers), makes directories and sets
environment variables before the application is asked. A file that somebody else wrote, an experiment for example, may
say all of that. So settings are looked at where every way of composing them passes.
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from contextlib import suppress
from typing import Any, final

from hydra._internal import hydra as hydra_application
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra.core.config_search_path import ConfigSearchPath
from hydra.core.object_type import ObjectType
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from tautnet.errors import ConfigError
from tautnet.origin import leads_away, leaves, on_command_line

_TARGETS = (
    "hydra._internal.core_plugins.basic_launcher.BasicLauncher",
    "hydra_plugins.hydra_joblib_launcher.joblib_launcher.JoblibLauncher",
    "hydra_plugins.hydra_submitit_launcher.submitit_launcher.LocalLauncher",
    "hydra_plugins.hydra_submitit_launcher.submitit_launcher.SlurmLauncher",
    "hydra_plugins.tautnet_sweeps.GridSweeper",
    "hydra_plugins.tautnet_sweeps.StudySweeper",
)
_LOGGING = {  # what logging.config would call or import
    "class": ("logging.StreamHandler", "logging.FileHandler", "logging.NullHandler", "logging.Formatter"),
    "()": ("colorlog.ColoredFormatter",),
    "stream": ("ext://sys.stdout", "ext://sys.stderr"),
    "filename": ("${hydra.runtime.output_dir}/${hydra.job.name}.log", "hydra-${hydra.job.name}.log"),
}
_RUN = "hydra.mode=RUN"  # which Hydra adds to the overrides of a single run
_SCRIPT = ("setup", "python", "additional_parameters", "srun_args")  # what a launcher puts into a shell script
# ${now:…}, ${hydra:…} or ${another.key}: the other resolvers read the environment or make settings out of text.
_INTERPOLATION = re.compile(r"\$\{(?!\s*((now|hydra):|[\w./@\[\]-]+\s*\}))")


def install() -> None:
    """From now on Hydra composes nothing that is not checked."""
    vars(hydra_application)["ConfigLoaderImpl"] = CheckedLoader  # where Hydra takes it from for all that it does


@final
class CheckedLoader(ConfigLoaderImpl):
    """Hydra's loader, which composes for a run, a sweep, each of its jobs, and for what is only printed."""

    def __init__(self, config_search_path: ConfigSearchPath) -> None:
        super().__init__(config_search_path)
        self._composed: tuple[list[str], DictConfig] | None = None  # for hydra.mode; the run takes it

    def load_configuration(
        self,
        config_name: str | None,
        overrides: list[str],
        run_mode: RunMode,
        from_shell: bool = True,
        validate_sweep_overrides: bool = True,
    ) -> DictConfig:
        """Compose, and check what the files say.

        Raises:
            ConfigError: what the command line alone may say.
        """
        if not validate_sweep_overrides:  # before a run Hydra composes all once for hydra.mode alone: half of the time
            with suppress(Exception):  # what is wrong is told when it composes for the run, or it is a sweep's
                config = self._checked(config_name, overrides, RunMode.RUN, from_shell, False)
                self._composed = ([*overrides, _RUN], config)
                return config
        elif self._composed is not None and self._composed[0] == overrides:
            _, config = self._composed
            self._composed = None
            parsed = OverridesParser.create().parse_overrides(overrides)
            self.validate_sweep_overrides_legal(parsed, run_mode, from_shell)
            config.hydra.mode = RunMode.RUN
            config.hydra.overrides.hydra.append(_RUN)
            return config
        return self._checked(config_name, overrides, run_mode, from_shell, validate_sweep_overrides)

    def get_group_options(
        self,
        group_name: str,
        results_filter: ObjectType | None = ObjectType.CONFIG,
        config_name: str | None = None,
        overrides: list[str] | None = None,
    ) -> list[str]:
        """As Hydra, which copies all sources at each of the hundred questions of ``--help``: half of its time."""
        if config_name is None and not overrides:
            return self.repository.get_group_options(group_name, results_filter)
        return super().get_group_options(group_name, results_filter, config_name, overrides)

    def _checked(self, config_name: str | None, overrides: list[str], *how: Any) -> DictConfig:
        self._check_search_path(config_name)
        config = super().load_configuration(config_name, overrides, *how)
        check(config, overrides)
        return config

    def _check_search_path(self, config_name: str | None) -> None:
        """A search path of the kind pkg:// imports what it names."""
        loaded = self.repository.load_config(config_path=config_name) if config_name else None
        paths = OmegaConf.select(loaded.config, "hydra.searchpath") if loaded else None
        for path in paths or []:
            if "://" in str(path) and not str(path).startswith("file://"):
                raise ConfigError(f"hydra.searchpath={path}: of a file; folders alone, or name it on the command line")


def check(config: DictConfig, overrides: Sequence[str]) -> None:
    """Look at composed settings, before anything is resolved.

    Args:
        config: with the node ``hydra``.
        overrides: of the command line.

    Raises:
        ConfigError: a file says what the command line alone may say.
    """
    content: Any = OmegaConf.to_container(config, resolve=False)
    hydra = content["hydra"]
    noted = hydra.pop("overrides")
    if sorted(noted["task"] + noted["hydra"]) != sorted(overrides):  # Hydra appends to what files say
        raise ConfigError("hydra.overrides: in a file; it is what the command line said")
    hydra["job"].pop("override_dirname")  # made of the same
    for key, value in leaves(content, ""):
        if isinstance(value, str) and _INTERPOLATION.search(value) and not any(value in each for each in overrides):
            raise ConfigError(f"{key}={value}: in a file, interpolations are ${{key}}, ${{now:…}} and ${{hydra:…}}")
    for key, value in leaves(hydra, "hydra"):
        if key.endswith("._target_") and value not in _TARGETS and not on_command_line(key, overrides):
            raise ConfigError(f"{key}={value}: one of {', '.join(_TARGETS)}, or name it on the command line")
    for name in ("hydra_logging", "job_logging"):
        _check_logging(hydra[name], f"hydra.{name}", overrides)
    _check_job(hydra["job"], overrides)
    _check_directories(config, overrides)
    _check_launcher(hydra["launcher"] or {}, overrides)
    _check_params((hydra["sweeper"] or {}).get("params") or {})


def _check_logging(settings: Any, where: str, overrides: Sequence[str]) -> None:
    for key, value in leaves(settings, where):
        name = key.rpartition(".")[2]
        accepted = _LOGGING.get(name)
        active = isinstance(value, str) and ("://" in value or "${" in value)
        # An entry named "." sets attributes of what was made, a file's name among them.
        refused = ".." in key or (active if accepted is None else value not in accepted)
        if refused and not on_command_line(key, overrides):
            raise ConfigError(
                f"{key}={value}: {', '.join(accepted or ['plain values'])}, or say it on the command line"
            )


def _check_job(job: dict[str, Any], overrides: Sequence[str]) -> None:
    for name, value in job["env_set"].items():
        if os.environ.get(name) != value and not on_command_line(f"hydra.job.env_set.{name}", overrides):
            raise ConfigError(f"hydra.job.env_set.{name}={value}: the command line alone may set the environment")
    name = str(job["name"])
    if not re.fullmatch(r"[\w.-]+", name) and not on_command_line("hydra.job.name", overrides):
        raise ConfigError(f"hydra.job.name={name}: letters, digits and _ . -")


def _check_directories(config: DictConfig, overrides: Sequence[str]) -> None:
    for key in ("hydra.run.dir", "hydra.sweep.dir", "hydra.output_subdir"):
        if on_command_line(key, overrides):
            continue
        value = OmegaConf.select(config, key)
        if value is not None and leads_away(str(value)):
            raise ConfigError(f"{key}={value}: the command line alone may lead out of the working directory")


def _check_launcher(launcher: dict[str, Any], overrides: Sequence[str]) -> None:
    for key, value in leaves(launcher, "hydra.launcher"):
        in_script = key.split(".")[2] in _SCRIPT or (isinstance(value, str) and "\n" in value)
        if in_script and value is not None and not on_command_line(key, overrides):
            raise ConfigError(f"{key}={value}: goes into a shell script, which the command line alone may say")


def _check_params(params: dict[str, Any]) -> None:
    """Parameters of a sweep in a file become overrides, as if they stood on the command line."""
    for name, value in params.items():
        top = str(name).lstrip("+~").replace("/", ".").partition(".")[0]
        elsewhere = re.search(r"(^|[\s,\[{:\"'])[/\\~]|\.\.|://|\b(dirpath|folder|path|\w+_dir)\b", f"{name}:{value}")
        if top in ("hydra", "allow", "run_dir") or (top in ("callbacks", "logger", "trainer") and elsewhere):
            raise ConfigError(f"hydra.sweeper.params.{name}={value}: stands on the command line or nowhere")
