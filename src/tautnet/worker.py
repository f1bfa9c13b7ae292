"""What a process does that is one of several: ``python -m tautnet.worker <folder of a job>``, or after ``torchrun``."""

from __future__ import annotations

import json
import logging
import os
import signal
import sys
import traceback
import warnings
from pathlib import Path
from typing import Any

from tautnet import distributed
from tautnet.config import ConfigError
from tautnet.targets import allowing


def main(folder: Path) -> int:
    """Do the job whose settings another process has written into a folder, and return the exit status."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # until the job takes it: no traceback of each process's imports
    job = json.loads((folder / distributed.JOB).read_text())
    distributed.end_with_(job["parent"])
    if os.environ["RANK"] == "0":
        from hydra.core.utils import configure_log
        from omegaconf import OmegaConf

        configure_log(OmegaConf.create(job["job_logging"]))
    else:
        _stay_silent()
    from tautnet.job import execute  # torch and Lightning: seconds

    try:
        with allowing(job["settings"]["allow"]):
            execute(job["settings"])
    except (ConfigError, distributed.WorkerError) as error:
        distributed.tell(folder, error)
        return 2 if isinstance(error, ConfigError) else 1
    except KeyboardInterrupt:  # the process that started this one tells it
        return 130
    return 0


def follow() -> int:
    """Do the jobs that the first of torchrun's or srun's processes announces, and return the exit status."""
    from tautnet.job import prepared

    _stay_silent()
    for settings in distributed.announced():
        with allowing(settings["allow"]):
            try:
                job = prepared(settings)
            except ConfigError:  # all refuse alike, and the first one tells it
                continue
            try:
                job()
            except KeyboardInterrupt:
                return 130
            except distributed.WorkerError:  # the first one tells it
                return 1
    return 0


def do_with_others(settings: dict[str, Any]) -> float | None:
    """The first process's part of a job that it has announced.

    A job that fails under way ends the whole launch: the others wait for an answer that does not come, and would take
    part in the next job of a sweep where they should not.

    Raises:
        ConfigError: a setting that all processes refuse.
        SystemExit: the job failed under way.
    """
    from tautnet.job import prepared

    job = prepared(settings)
    try:
        return job()
    except (ConfigError, distributed.WorkerError) as error:
        sys.stderr.write(f"error: {error}\n")
        raise SystemExit(2 if isinstance(error, ConfigError) else 1) from None
    except Exception:
        traceback.print_exc()
        raise SystemExit(1) from None


def _stay_silent() -> None:
    """What there is to say, the first process says."""
    logging.disable(logging.WARNING)
    warnings.simplefilter("ignore")


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
