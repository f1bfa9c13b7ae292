"""``evaluate``: metrics of a trained model on any data."""

from __future__ import annotations

import json
import sys
from argparse import ArgumentParser, Namespace
from math import isfinite
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tautnet.cli import a_run
from tautnet.errors import ConfigError

if TYPE_CHECKING:
    from tautnet.evaluation.metrics import Evaluation
    from tautnet.evaluation.prepared import PreparedBatches
    from tautnet.trained import Trained

HELP = "metrics of a trained model on any data"
DESCRIPTION = """\
Metrics of a trained model on the data of its run, on other data, or on a labelled table: the loss and the
accuracy, R2 or PSNR; of classes the expected calibration error, the accuracy of each and, in the JSON,
the confusion matrix. Other data are put through the preparation of the run, so that a set that is shifted
against the training data is seen as shifted. Settings, data.KEY=VALUE, are those of train.py."""
EXAMPLE = "tautnet evaluate outputs/first --data npz data.root=other.npz --output other.json"
MOST_CLASSES = 20  # on the terminal


def add_arguments(parser: ArgumentParser) -> None:
    """What is asked for."""
    a_run.add_arguments(parser)
    add_data(parser)
    parser.add_argument("--output", type=Path, metavar="FILE.json", help="write all that was found")
    parser.add_argument("--overwrite", action="store_true", help="replace a file that exists")


def add_data(parser: ArgumentParser) -> None:
    """On which data."""
    parser.add_argument("overrides", nargs="*", metavar="data.KEY=VALUE", help="settings of the data that are other")
    parser.add_argument(
        "--data",
        nargs="+",
        default=[],
        metavar=("NAME", "data.KEY=VALUE"),
        help="a set as of train.py data=NAME with its settings; default: that of the run",
    )
    parser.add_argument("--part", metavar="PART", help="test, val, train (without augmentation) or all; default: test")
    parser.add_argument("--file", type=Path, metavar="TABLE", help="a labelled CSV or parquet table, all of its rows")
    parser.add_argument("--target", metavar="COLUMN", help="of --file; default: that of the run")


def batches(arguments: Namespace, trained: Trained) -> PreparedBatches:
    """The data of these arguments.

    Raises:
        ConfigError: data that cannot be used.
    """
    from tautnet.evaluation.sets import batches_of, data_of, table_batches
    from tautnet.targets import allowing

    names = [word for word in arguments.data if "=" not in word]
    overrides = [*arguments.overrides, *(word for word in arguments.data if "=" in word)]
    if len(names) > 1:
        raise ConfigError(f"--data {' '.join(arguments.data)}: one name, and settings data.KEY=VALUE")
    if arguments.file is not None:
        if names or overrides or arguments.part:
            raise ConfigError(f"--file {arguments.file}: all of its rows; without --data, --part and settings")
        return table_batches(trained, arguments.file, arguments.target)
    if arguments.target is not None:
        raise ConfigError(f"--target {arguments.target}: the column of --file; of a set it is data.target=...")
    with allowing(arguments.allow):
        data = data_of(trained, names[0] if names else None, overrides)
        said = " ".join([*(names or ["the run's data"]), *overrides])
        return batches_of(data, part_of(arguments), trained.preparation, said)


def part_of(arguments: Namespace) -> str:
    """The name of what is evaluated."""
    return "file" if arguments.file is not None else arguments.part or "test"


def run(arguments: Namespace) -> int:
    """Evaluate, print, write."""
    from tautnet.evaluation.metrics import evaluate
    from tautnet.evaluation.writing import check_free, note, pipe_may_close, whole_file

    if arguments.output is not None:
        check_free(arguments.output, arguments.overwrite)
    trained = a_run.opened(arguments)
    limit = trained.settings["trainer"].get("limit_test_batches")
    if limit is not None:
        note(f"the run was tested with trainer.limit_test_batches={limit}; here all samples count")
    found = batches(arguments, trained)
    evaluation = evaluate(trained, found, part_of(arguments))
    if arguments.output is not None:
        text = json.dumps(_document(trained, found, evaluation), indent=1, allow_nan=False)
        with whole_file(arguments.output) as file:
            file.write(f"{text}\n".encode())
    with pipe_may_close():
        sys.stdout.write(_text(trained, found, evaluation))
        sys.stdout.flush()
    return 0


def _document(trained: Trained, batches: PreparedBatches, evaluation: Evaluation) -> dict[str, Any]:
    """All of it; what JSON has no number for stands there as text."""
    finite = {name: value if isfinite(value) else str(value) for name, value in evaluation.metrics.items()}
    document = {
        "checkpoint": str(trained.checkpoint),
        "data": batches.description,
        "samples": evaluation.num_samples,
        "metrics": finite,
    }
    if evaluation.confusion is None:
        return document
    names = [trained.preparation.class_name(number) for number in range(len(evaluation.confusion))]
    per_class = dict(zip(names, evaluation.per_class, strict=True))
    return document | {"classes": names, "accuracy_per_class": per_class, "confusion": evaluation.confusion}


def _text(trained: Trained, batches: PreparedBatches, evaluation: Evaluation) -> str:
    from tautnet.evaluation.writing import printable, table

    words = [f"{trained.checkpoint}, {evaluation.num_samples} samples of {batches.description}\n"]
    words.append(table([[name, f"{value:.6g}"] for name, value in evaluation.metrics.items()]))
    if evaluation.confusion is None:
        return "\n".join(words)
    rows = [
        (accuracy, printable(trained.preparation.class_name(number)), sum(evaluation.confusion[number]))
        for number, accuracy in enumerate(evaluation.per_class)
        if accuracy is not None
    ]
    heading = "class"
    if len(rows) > MOST_CLASSES:
        heading, rows = f"the {MOST_CLASSES} worst classes", sorted(rows)[:MOST_CLASSES]
    lines = [[name, str(count), f"{accuracy:.4f}"] for accuracy, name, count in rows]
    words.append(table([[heading, "samples", "accuracy"], *lines]))
    return "\n".join(words)
