"""Train, test and sweep: ``python train.py activation=spline norm=unitize``; ``python train.py --help`` says more."""

import sys

import hydra
from omegaconf import DictConfig

from tautnet.command_line import command_line


@hydra.main(version_base="1.3", config_path="conf", config_name="train")
def main(config: DictConfig) -> float | None:
    """Run one job and return the objective of a sweep."""
    from tautnet.app import run  # torch and Lightning: not needed for --help, --cfg and tab completion

    return run(config)


if __name__ == "__main__":
    sys.exit(command_line(main))
