"""What a process does that is one of several: ``python -m tautnet.worker <folder of a job>``, or after ``torchrun``."""

from __future__ import annotations

import json
import logging
import os
import sys
import traceback
import warnings
from pathlib import Path
from typing import Any

from tautnet import distributed
from tautnet.config import ConfigError
from tautnet.job import execute, prepared


def main(folder: Path) -> int:
    """Do the job whose settings another process has written into a folder, and return the exit status."""
    job = json.loads((folder / distributed.JOB).read_text())
    if os.environ["RANK"] == "0":
        from hydra.core.utils import configure_log
        from omegaconf import OmegaConf

        configure_log(OmegaConf.create(job["job_logging"]))
    else:
        _stay_silent()
    try:
        execute(job["settings"])
    except ConfigError as error:
        distributed.refuse(folder, str(error))
        return 2
    except KeyboardInterrupt:  # the process that started this one tells it
        return 130
    return 0


def follow() -> int:
    """Do the jobs that the first of torchrun's or srun's processes announces, and return the exit status."""
    _stay_silent()
    for settings in distributed.announced():
        try:
            job = prepared(settings)
        except ConfigError:  # all refuse alike, and the first one tells it
            continue
        try:
            job()
        except KeyboardInterrupt:
            return 130
    return 0


def do_with_others(settings: dict[str, Any]) -> float | None:
    """The first process's part of a job that it has announced.

    A job that fails under way ends the whole launch: the others wait for an answer that does not come, and would take
    part in the next job of a sweep where they should not.

    Raises:
        ConfigError: a setting that all processes refuse.
        SystemExit: the job failed under way.
    """
    job = prepared(settings)
    try:
        return job()
    except ConfigError as error:
        sys.stderr.write(f"error: {error}\n")
        raise SystemExit(2) from None
    except Exception:
        traceback.print_exc()
        raise SystemExit(1) from None


def _stay_silent() -> None:
    """What there is to say, the first process says."""
    logging.disable(logging.WARNING)
    warnings.simplefilter("ignore")


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
