"""One job in this process, alone or as one of several ranks: build what the settings say, fit, test, write down."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist

from tautnet import logkeys
from tautnet.config import ConfigError, build, key_of, locate
from tautnet.factories import DataError
from tautnet.known_messages import silence_known_messages
from tautnet.layout import launched, num_ranks, shards
from tautnet.run_directory import SETTINGS

if TYPE_CHECKING:
    import pytorch_lightning as pl

    from tautnet.run_state import RunState

_log = logging.getLogger(__name__)
_TRIED = 64  # samples of a batch, before training: what a few show, and every process has to wait for


def execute(settings: dict[str, Any]) -> float | None:
    """Prepare a job and do it."""
    return prepared(settings)()


def prepared(settings: dict[str, Any]) -> Callable[[], float | None]:
    """Build everything that a job needs; calling the result does the job and returns its objective, if measured.

    With several ranks each calls this with the same settings, and the first alone writes. Nothing is written and no
    rank waits for another before the call.

    Args:
        settings: plain, of ``conf/train.yaml``, checked as far as ``tautnet.app`` can.

    Raises:
        ConfigError: a setting that cannot be used, on all ranks alike. The call may raise it too.
    """
    parts = _assemble(settings)

    def job() -> float | None:
        try:
            return _execute(settings, *parts, Path(settings["run_dir"]))
        finally:
            if dist.is_available() and dist.is_initialized():  # it would stay for a sweep's next job
                dist.destroy_process_group()

    return job


def _assemble(
    settings: dict[str, Any],
) -> tuple[pl.Trainer, pl.LightningModule, pl.LightningDataModule, RunState, str | None]:
    logging.getLogger("matplotlib").setLevel(logging.WARNING)  # Lightning imports it; a new font cache is no news
    import pytorch_lightning as pl
    from lightning_fabric.plugins.environments.lightning import LightningEnvironment
    from lightning_fabric.utilities.exceptions import MisconfigurationException

    from tautnet.app_callbacks import compiled, display, settings_writer
    from tautnet.callbacks.checkpointing import Checkpoints
    from tautnet.checkpoint_io import AtomicCheckpointIO
    from tautnet.models.sharding import share_out_
    from tautnet.run_state import RunState
    from tautnet.stopping import Stopping

    silence_known_messages()
    if "fit" not in settings["run"]:
        for message in ("callbacks used to create the checkpoint", "outside the 'fit' stage"):  # they watch training
            warnings.filterwarnings("ignore", message=f".*{message}.*")
    pl.seed_everything(settings["seed"], verbose=False)
    data = build(settings["data"], "data")
    trained_on = settings.pop("trained_on", {})  # of the checkpoint; no setting of this run
    resumed = settings.pop("resumed", None)  # likewise
    spec = settings | {"input_shape": list(data.input_shape), "num_outputs": data.num_outputs}
    spec["preparation"] = asdict(data.preparation)
    for key, trained in trained_on.items():
        if trained != spec[key]:
            path = (resumed and resumed["ckpt"]) or settings["ckpt"]
            raise ConfigError(f"ckpt={path}: trained with {key} {trained}, the data has {spec[key]}")
    _check_data(settings, data)
    model = build({"_target_": settings["model"]["_target_"]}, "model", config=spec)
    if shards(settings["trainer"]):
        share_out_(model)
    if "fit" in settings["run"]:
        batch = next(iter(data.train_dataloader()))
        _try_batch(model, batch, settings)
        if settings["ckpt"] is None and not (resumed and resumed["ckpt"]):  # else its state says
            model.calibrate_(batch[0])
    callbacks = list(build(settings["callbacks"], "callbacks").values())
    callbacks.sort(key=lambda callback: isinstance(callback, Checkpoints))  # last: they hold the others' states
    if settings["compile"]:
        callbacks.insert(0, compiled(model))
    of_trainer, shown = display(settings["trainer"])
    state = RunState(in_place=bool(resumed and resumed["ckpt"]))  # else from ckpt, or anew
    writer = settings_writer(settings, Path(settings["run_dir"], SETTINGS))
    callbacks = [state, *shown, *callbacks, writer, state.behind(), Stopping(settings["run_dir"])]
    try:
        trainer = build(
            of_trainer,
            "trainer",
            callbacks=callbacks,
            logger=list(build(_going_on(settings["logger"], resumed), "logger").values()) or False,
            # Without srun a batch script of SLURM is one process, however many its variables promise.
            plugins=[AtomicCheckpointIO(), *([] if launched() else [LightningEnvironment()])],
            enable_checkpointing=True,
            default_root_dir=settings["run_dir"],
        )
    except MisconfigurationException as error:
        raise ConfigError(f"trainer: {error}") from error
    return trainer, model, data, state, resumed["ckpt"] if resumed else None


def _going_on(loggers: dict[str, Any], resumed: Mapping[str, Any] | None) -> dict[str, Any]:
    """The settings of loggers; in a run that goes on they keep what was logged up to the step that it goes on from."""
    if resumed is None:
        return loggers
    own = {  # TensorBoard shows nothing of later steps that an earlier attempt has logged
        "TensorBoardLogger": {"purge_step": resumed["step"] + 1},
        "CSVLogger": {"version": f"from_step_{resumed['step']}"},  # it would delete the file that is there
    }
    return {name: config | own.get(config["_target_"].rpartition(".")[2], {}) for name, config in loggers.items()}


def _check_data(settings: Mapping[str, Any], data: Any) -> None:
    """Whether model, callbacks and the number of processes fit the data."""
    task, target = data.task, settings["model"].get("_target_")
    accepted = {"classification": "Classifier", "regression": "Regressor", "denoising": "Denoiser"}[task]
    if getattr(locate(str(target), "model"), "task", None) != task:
        raise ConfigError(f"model._target_={target}: the data is for {task}; for example tautnet.models.{accepted}")
    if "certify" in settings["callbacks"] and task != "classification":
        raise ConfigError(f"callbacks=certify: predicted classes are certified, the data is for {task}")
    ranks = num_ranks(settings["trainer"])
    if data.batch_size % ranks:
        raise ConfigError(f"data.batch_size={data.batch_size}: a multiple of the {ranks} processes that share it")


def _try_batch(model: Any, batch: tuple[torch.Tensor, torch.Tensor], settings: Mapping[str, Any]) -> None:
    """One training forward of a copy: batch statistics, for example, need more than one value a channel."""
    x, targets = batch
    model.check_targets(targets)
    x, targets = x[:_TRIED], targets[:_TRIED]
    try:
        with torch.random.fork_rng(devices=[]), torch.no_grad():
            outputs = deepcopy(model.net).train()(x)
    except (ValueError, RuntimeError) as error:
        batch_size = f"data.batch_size={settings['data'].get('batch_size')}: "
        raise ConfigError(f"{key_of(error, settings, 'activation') or batch_size}{error}") from error
    if outputs.shape != targets.shape and not (model.task == "classification" and outputs.dim() == 2):
        shape = tuple(outputs.shape)
        needed = "(batch, classes)" if model.task == "classification" else tuple(targets.shape)
        raise ConfigError(f"model.net._target_={settings['model']['net'].get('_target_')}: gives {shape}, not {needed}")


def _execute(
    settings: dict[str, Any],
    trainer: pl.Trainer,
    model: pl.LightningModule,
    data: pl.LightningDataModule,
    state: RunState,
    resumed_from: str | None,
    run_dir: Path,
) -> float | None:
    metrics: dict[str, float] = {}
    weights = settings["ckpt"]
    if "fit" in settings["run"]:
        with _restoring(resumed_from or weights, lambda: state.begun):
            _fit(trainer, model, data, resumed_from or weights)
        metrics[logkeys.FIT_SECONDS] = state.total_seconds()
        metrics |= _numbers(trainer)
        weights = None  # the final weights are tested: schedules end there, and nothing is selected by chance
    if "test" in settings["run"]:
        state.begun = False
        with _refusals(), _restoring(weights, lambda: state.begun):
            trainer.test(model, data, ckpt_path=weights, verbose=False)
        metrics |= _numbers(trainer)
    trainer.strategy.checkpoint_io.teardown()  # the last file is on the disk before result.json says that all is done
    if trainer.is_global_zero:
        from tautnet.results import write_down

        write_down(settings, metrics, trainer, run_dir)
    return _objective(settings, metrics)


def _fit(trainer: pl.Trainer, model: pl.LightningModule, data: pl.LightningDataModule, ckpt: str | None) -> None:
    """Fit; a signal outside its steps ends the program with the status that shells expect, as Lightning does not."""
    try:
        with _refusals():
            trainer.fit(model, data, ckpt_path=ckpt)
    except SystemExit as left:
        if left.code != 1:  # 1 is what Lightning makes of an interrupt
            raise
        raise KeyboardInterrupt("the epochs that ended are in checkpoints/last.ckpt of the run directory") from None


@contextmanager
def _refusals() -> Iterator[None]:
    """What Lightning or a callback refuses, and a sample that turns out bad, in a worker too, is told in one line."""
    from lightning_fabric.utilities.exceptions import MisconfigurationException

    try:
        yield
    except MisconfigurationException as error:
        raise ConfigError(str(error)) from error
    except RuntimeError as error:
        if "returned nan values" not in str(error):
            raise
        from tautnet.distributed import WorkerError

        raise WorkerError(f"trainer.detect_anomaly=True: {error}") from error  # torch has shown where
    except DataError as error:
        raise ConfigError(f"data: {str(error).splitlines()[-1].partition('DataError: ')[2] or error}") from error


@contextmanager
def _restoring(ckpt: str | None, is_done: Callable[[], bool]) -> Iterator[None]:
    """Until a checkpoint's states are in place whatever goes wrong is its fault: it was made, or changed, elsewhere."""
    try:
        yield
    except ConfigError:
        raise
    except (AttributeError, LookupError, TypeError, ValueError, RuntimeError) as error:
        if ckpt is None or is_done():
            raise
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        raise ConfigError(f"ckpt={ckpt}: its states are not those of this run ({reason})") from error


def _objective(settings: dict[str, Any], metrics: Mapping[str, float]) -> float | None:
    name = settings["objective"]
    if name not in metrics and "fit" in settings["run"]:
        _log.warning("objective=%s was not measured; measured: %s", name, ", ".join(sorted(metrics)))
    return metrics.get(name)


def _numbers(trainer: pl.Trainer) -> dict[str, float]:
    return {name: float(value) for name, value in trainer.callback_metrics.items()}
