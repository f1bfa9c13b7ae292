"""Messages of libraries that a user can do nothing about."""

from __future__ import annotations

import logging
import warnings


def silence_known_messages() -> None:
    """Keep quiet what a user can do nothing about."""
    warnings.filterwarnings("ignore", message=r".*LeafSpec.*", category=FutureWarning)  # Lightning with torch >= 2.9
    warnings.filterwarnings("ignore", message=r".*does not have many workers.*")  # the data is in memory
    warnings.filterwarnings("ignore", message=r".*smaller than the logging interval.*")  # everything is logged by epoch
    warnings.filterwarnings("ignore", message=r".*dirpath has changed.*")  # a continued run has its own directory
    warnings.filterwarnings("ignore", message=r".*exists and is not empty.*")  # and one that goes on has its files
    warnings.filterwarnings("ignore", message=r".*`broadcast_buffers` is deprecated.*")  # torch 2.11 has nothing else
    logging.getLogger("pytorch_lightning").setLevel(logging.WARNING)  # "GPU available: …", tips, restored paths
