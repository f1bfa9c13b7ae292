"""``predict``: classes, probabilities and certified radii of files."""

from __future__ import annotations

from argparse import ArgumentParser, Namespace
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tautnet.cli import a_run
from tautnet.cli.certify import radii
from tautnet.errors import ConfigError

if TYPE_CHECKING:
    from tautnet.evaluation.inputs import Chunk, Inputs
    from tautnet.evaluation.predictions import Predictor
    from tautnet.trained import Trained

HELP = "classes, probabilities and certified radii of files"
DESCRIPTION = """\
What a trained network says of images (png, jpg, bmp, folders of them), of tables (csv, csv.gz, parquet,
by the names of the columns) and of arrays (npy, npz). A row for each sample: the class, its probability,
the margin to the next class, and the radius of the ball in which the class provably stays the same, in raw
units: pixels count from 0 to 1, columns in their own units. Of a regression the value in the unit of its
target; a denoiser writes images."""
EXAMPLE = "tautnet predict outputs/first pictures/ --output classes.csv"
DENOISED = "the folder that the images go to"


def add_arguments(parser: ArgumentParser) -> None:
    """What is asked for."""
    a_run.add_arguments(parser)
    parser.add_argument("files", nargs="+", type=Path, metavar="FILE", help="images, folders of images, tables, arrays")
    parser.add_argument(
        "--output",
        type=Path,
        metavar="FILE",
        help=f"out.csv or out.json, by default CSV to stdout; denoising: {DENOISED}",
    )
    parser.add_argument("--overwrite", action="store_true", help="replace files that exist")
    parser.add_argument("--norm", choices=["l2", "linf"], help="of the certified radius; default: l2")
    parser.add_argument(
        "--eps",
        metavar="EPS,...",
        help="try these radii, such as 0.1,8/255, with local bounds too, which reach farther and take longer",
    )
    parser.add_argument("--top", type=int, metavar="K", help="name the K likeliest classes; default: 1")
    parser.add_argument("--resize", action="store_true", help="bring images to the size that the network takes")


def run(arguments: Namespace) -> int:
    """Predict, row by row as the files are read."""
    from tautnet.evaluation.inputs import Inputs
    from tautnet.evaluation.predictions import Predictor
    from tautnet.evaluation.writing import note, pipe_may_close, rows_into

    epsilons = [] if arguments.eps is None else radii(arguments.eps)
    trained = a_run.opened(arguments)
    task = trained.model.task
    _check(arguments, trained)
    inputs = Inputs(arguments.files, trained, arguments.resize)
    norm = (arguments.norm or "l2") if task == "classification" else None
    predictor = Predictor(trained, norm, epsilons)
    if task == "denoising":
        names, rows = ["file", "output"], _denoised(predictor, inputs, _places(arguments, inputs))
    elif task == "regression":
        names, rows = _columns(["value"], trained.settings["num_outputs"]), _values(predictor, inputs)
    else:
        names = [*_columns(["class", "probability"], arguments.top or 1), "margin", f"radius_{norm}"]
        rows = _classes(predictor, inputs, names, arguments.top or 1)
    path = None if task == "denoising" else arguments.output
    count = 0
    with pipe_may_close(), rows_into(path, names) as write:
        for count, row in enumerate(rows, 1):  # noqa: B007
            write(row)
    if count == 0:
        note("no samples in these files")
    return 0


def _check(arguments: Namespace, trained: Trained) -> None:
    """Whether the options fit the network, and whether something may be written."""
    from tautnet.evaluation.writing import check_free

    task, output, K = trained.model.task, arguments.output, trained.settings["num_outputs"]
    if task != "classification":
        for name in ("norm", "top", "eps"):
            if getattr(arguments, name) is not None:
                raise ConfigError(f"--{name}: of classes; the run is for {task}")
    elif arguments.top is not None and not 1 <= arguments.top <= K:
        raise ConfigError(f"--top {arguments.top}: from 1 to {K}, the number of classes")
    if task == "denoising":
        if output is None:
            raise ConfigError(f"--output is needed: {DENOISED}")
    elif output is not None:
        if output.suffix.lower() not in (".csv", ".json"):
            raise ConfigError(f"--output {output}: a name that ends in .csv or .json")
        check_free(output, arguments.overwrite)
        if any(file.resolve() == output.resolve() for file in arguments.files):
            raise ConfigError(f"--output {output}: one of the files that are read; another name")


def _columns(names: Sequence[str], count: int) -> list[str]:
    """``file, row``, and the names, numbered from the second set on."""
    return ["file", "row", *(name if i == 1 else f"{name}_{i}" for i in range(1, count + 1) for name in names)]


def _classes(predictor: Predictor, inputs: Iterable[Chunk], names: Sequence[str], top: int) -> Iterator[dict[str, Any]]:
    from tautnet.evaluation.writing import note

    largest = None
    for chunk in inputs:
        for origin, found in zip(chunk.origins, predictor.classified(chunk, top), strict=True):
            best = (value for pair in zip(found.classes, found.probabilities, strict=True) for value in pair)
            yield dict(zip(names, [*origin, *best, found.margin, found.radius], strict=True))
            largest = max(largest or 0.0, found.radius)
    if largest == 0:
        note("every certified radius is 0; the network may have no finite Lipschitz bound")


def _values(predictor: Predictor, inputs: Iterable[Chunk]) -> Iterator[dict[str, Any]]:
    for chunk in inputs:
        for origin, values in zip(chunk.origins, predictor.values(chunk), strict=True):
            names = _columns(["value"], len(values))
            yield dict(zip(names, [*origin, *values], strict=True))


def _places(arguments: Namespace, inputs: Inputs) -> dict[Path, Path]:
    """Where each denoised image goes."""
    from tautnet.evaluation.writing import check_free

    folder: Path = arguments.output
    if folder.exists() and not folder.is_dir():
        raise ConfigError(f"--output {folder}: a file; {DENOISED} is needed")
    places = {image: folder / f"{image.stem}.png" for image in inputs.images}
    repeated = [place.name for place, count in Counter(places.values()).items() if count > 1]
    if repeated:
        raise ConfigError(f"--output {folder}: several images would become {repeated[0]}")
    sources = {image.resolve() for image in places}
    lost = next((place for place in places.values() if place.resolve() in sources), None)
    if lost is not None:
        raise ConfigError(f"--output {folder}: {lost} is one of the images that are read; another folder")
    folder.mkdir(exist_ok=True)
    for place in places.values():
        check_free(place, arguments.overwrite)
    return places


def _denoised(predictor: Predictor, inputs: Iterable[Chunk], places: Mapping[Path, Path]) -> Iterator[dict[str, Any]]:
    from PIL import Image

    from tautnet.evaluation.writing import whole_file

    for chunk in inputs:
        for (source, _), image_CHW in zip(chunk.origins, predictor.images(chunk), strict=True):
            with whole_file(places[source]) as file:
                Image.fromarray(image_CHW[0].numpy()).save(file, format="png")
            yield {"file": source, "output": places[source]}
