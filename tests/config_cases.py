"""Jobs with settings that may be bad: values out of range, and compositions drawn at random."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

from config_keys import CONF, Key, hint_of, is_number, keys_of, kinds, nodes, options
from data_settings import small_files
from omegaconf import DictConfig, OmegaConf

TINY = ("debug=fast", "trainer.enable_progress_bar=false", "trainer.accelerator=cpu")
DENSE = ("model=mlp", "model.net.widths=[4,6]")
BAD_VALUES = (
    *(
        "-1",
        "0",
        "-0.5",
        "0.5",
        "nan",
        "inf",
        "-inf",
        "1e400",
        "1e20",
        "1000000000000",
        "1" + "0" * 20,
        "1" + "0" * 400,
    ),
    *("text", "[]", "[1]", "{a: 1}", "null", "true"),
)
_SMALL_IMAGES = ("data=digits", "data.batch_size=8")
_LARGE_IMAGES = ("data=cifar10",)
# What an option needs beside it to run, and to run quickly.
NEEDS = {
    "model=convnet": [*_SMALL_IMAGES, "model.net.widths=[4,6]"],
    "model=convnet_xs": [*_SMALL_IMAGES, "model.net.num_blocks=2", "model.net.width=4"],
    "model=convnet_s": [*_SMALL_IMAGES, "model.net.num_blocks=3", "model.net.width=4", "model.net.layers_per_block=2"],
    "model=convnet_m": [*_SMALL_IMAGES, "model.net.num_blocks=1", "model.net.width=6", "model.net.residual=0.5"],
    "model=dncnn": ["data=denoising", "model.net.depth=4", "model.net.width=4"],
    "model=elu11": [*_LARGE_IMAGES, "model.net.widen_factor=1"],
    "model=mlp": ["data=iris", "model.net.widths=[4,6]"],
    "model=nin": [*_SMALL_IMAGES],
    "model=one_hidden": ["data=breast_cancer"],
    "model=two_hidden": ["data=area"],
    "model=preact18": [*_SMALL_IMAGES, "model.net.depth=8", "model.net.width=4"],
    "model=preact110": [*_SMALL_IMAGES, "model.net.depth=8", "model.net.width=4"],
    "model=preact164": [*_SMALL_IMAGES, "model.net.depth=11", "model.net.width=4"],
    **{f"model=resnet{n}": [*_SMALL_IMAGES, "model.net.depth=8", "model.net.width=4"] for n in (20, 32, 56, 110)},
    "model=resnet18": [*_SMALL_IMAGES, "model.net.width=4"],
    "model=resnet50": [*_SMALL_IMAGES, "model.net.width=4"],
    "model=resnet9": [*_SMALL_IMAGES, "model.net.width=4"],
    "model=wrn28_10": [*_SMALL_IMAGES, "model.net.depth=10", "model.net.widen_factor=1"],
    "data=denoising": ["model=dncnn", "model.net.depth=4", "model.net.width=4"],
    "activation=slaf": ["norm=none"],
    "loss=interval": ["norm=none", "activation=relu", "loss.ramp_start=0"],
    "loss=singleprop": ["norm=none", "activation=relu", "loss.ramp_start=0"],
    "loss=none": ["norm=none", "regularizer=variance"],
    "regularizer=coefficients": ["activation=slaf"],
    "regularizer=lipschitz": ["norm=none"],
    "regularizer=variance": ["norm=none"],
    "callbacks=alternate": ["trainer.max_epochs=3"],
    "callbacks=certify": ["norm=none"],
    "callbacks=polynomial": ["activation=slaf_2", "norm=none"],
    "callbacks=recalibrate": ["norm=batch"],
    "callbacks=release": ["trainer.max_epochs=3"],
    "callbacks=variance": ["norm=none"],
    "trainer=ddp_cpu": ["trainer.devices=1"],
    "debug=overfit": ["trainer.max_epochs=1"],
}
ELSEWHERE = ("trainer=gpu", "trainer=slurm", "trainer=fsdp", "trainer=ddp")  # for GPUs


@cache
def _files(data: str, folder: Path) -> list[str]:
    """Settings of small files, which are written once."""
    folder.mkdir(parents=True, exist_ok=True)
    return small_files(data, folder)


def arguments_of(group: str, option: str, files: Path | None) -> list[str]:
    """Overrides that choose an option, with all that it needs to run quickly; its data are in ``files``, if at all."""
    chosen = f"{group}={option}"
    needed = NEEDS.get(chosen, [])
    data = next((o.partition("=")[2] for o in [*needed, chosen] if o.startswith("data=")), "iris")
    base = [*([] if group == "model" or any(o.startswith("model=") for o in needed) else DENSE), f"data={data}"]
    first = [o for o in needed if "=" in o and "." not in o.partition("=")[0]]
    rest = [o for o in needed if o not in first]
    names = {o.partition("=")[0] for o in [*first, chosen]}
    kept = [o for o in base if o.partition("=")[0] not in names]
    return [
        *kept,
        *first,
        chosen,
        *(TINY if group != "debug" else TINY[1:]),
        *(_files(data, files) if files else []),
        *rest,
    ]


def bad_values(files: Path, chosen: Sequence[tuple[str, str]]) -> Iterator[tuple[Key, str, list[str]]]:
    """A key that takes numbers, once for each class that it goes to, a bad value, and all overrides, for each of both.

    Args:
        files: where data are.
        chosen: groups and options whose keys are meant, one option after the other.
    """
    seen = set()
    for group, option in chosen:
        if f"{group}={option}" in ELSEWHERE:
            continue
        for key in keys_of(arguments_of(group, option, None)):
            if (key.path, key.target) in seen or not (key.takes_lists or is_number(key.value, key.hint)):
                continue
            seen.add((key.path, key.target))
            for value in BAD_VALUES if key.path != "trainer.max_epochs" else BAD_VALUES[:8]:  # it would train on
                for text in (value, f"[{value}]") if key.takes_lists else (value,):
                    yield key, text, [*arguments_of(group, option, files), f"{key.path}={text}"]


# -- compositions


@cache
def choices(group: str, option: str) -> list[tuple[str, list[str]]]:
    """The keys in an option's file that are switches, words to choose from, or numbers, each with values to try."""
    text = (CONF / group / f"{option}.yaml").read_text()
    package = text.splitlines()[0].partition("@package ")[2] or group.replace("/", ".")
    tree = OmegaConf.create(text)
    assert isinstance(tree, DictConfig)
    found = []
    for path, node in nodes(tree):
        for name in map(str, node):
            where = ".".join(part for part in (package.replace("_global_", ""), path, name) if part)
            values = _valid_values(name, hint_of(node, name), node._get_node(name)._value())
            if values and name != "_partial_":
                found.append((where, values))
    return found


_KEPT = ("batch_size", "max_epochs", "depth", "widen_factor", "devices", "num_nodes")


def _valid_values(name: str, hint: Any, value: Any) -> list[str]:
    if name in ("format", "task"):
        return []
    literal = next((kind for kind in kinds(hint) if get_origin(kind) is Literal), None)
    if literal is not None:
        return [str(option) for option in get_args(literal)]
    if isinstance(value, bool):
        return ["true", "false"]
    if name in _KEPT or not isinstance(value, (int, float)):
        return []
    if isinstance(value, int):
        return [str(max(0, value + step)) for step in (-1, 1, value)] if value < 1000 else []
    return [f"{value * factor:g}" for factor in (0.0, 0.5, 0.7, 1.4, 2.0)]


_TWO_CLASSES = ["mlp", "one_hidden", "two_hidden"]
_IMAGES = [
    *("mlp", "convnet", "convnet_xs", "convnet_s", "convnet_m", "nin", "preact18", "preact110", "preact164"),
    *("wrn28_10", "resnet9", "resnet18", "resnet20", "resnet32", "resnet50", "resnet56", "resnet110"),
]
# Data and the models that go with them; what is listed twice is drawn twice as often.
QUICK = [
    *[(data, ["mlp"]) for data in ("iris", "wine", "diabetes", "fit_1d", "polynomials")],
    *[(data, _TWO_CLASSES) for data in ("breast_cancer", "two_gaussians", "spirals", "area")],
    *[("digits", ["mlp", "convnet", "convnet_xs"])] * 2,
]
WITHOUT_FILES = {data for data, _ in QUICK}
ALL = [
    *[*QUICK, ("digits", _IMAGES), ("digits", _IMAGES), ("denoising", ["dncnn"])] * 3,
    *[(data, ["mlp"]) for data in ("table", "table_regression")],
    *[(data, _IMAGES) for data in ("npz", "folder", "hub", "stream")],
    *[(data, ["mlp", "convnet", "convnet_xs", "resnet20", "resnet9"]) for data in ("mnist", "fashion_mnist")],
    *[(data, ["convnet", "convnet_xs", "resnet20", "preact18", "elu11"]) for data in ("cifar10", "cifar100")],
]


def composition(
    seed: int, files: Path, variant: int = 0, pairs: Sequence[tuple[str, list[str]]] = ALL
) -> tuple[list[str], list[str]]:
    """A job drawn at random, most of whose parts go with each other.

    Args:
        seed: of the options.
        files: where data are.
        variant: of the values, for the same options.
        pairs: data and models to draw from.

    Returns:
        Overrides that choose an option of every group, and overrides of values below them.
    """
    rng = random.Random(seed)
    careless = rng.random() < 0.15
    data, models = rng.choice(pairs)
    chosen = {"data": data, "model": rng.choice(models)}
    chosen |= {group: rng.choice(options(group)) for group in ("activation", "optimizer", "scheduler", "logger")}
    chosen["norm"] = rng.choice(options("norm"))
    if rng.random() < 0.5:
        chosen |= {"norm": "none"} | {group: rng.choice(options(group)) for group in ("norm/output", "norm/weight")}
    chosen["trainer"] = rng.choice([*["auto"] * 5, *["cpu"] * 3, "ddp_cpu", *(["gpu"] if careless else [])])
    if careless or (_is_classified(data) and rng.random() < 0.3):
        chosen["loss"] = rng.choice(options("loss"))
    several = {group: _several(group, chosen, careless, rng) for group in ("regularizer", "callbacks")}
    groups = [f"{group}={option}" for group, option in chosen.items()]
    groups += [*(f"{group}=[{','.join(names)}]" for group, names in several.items()), TINY[0]]
    rng = random.Random(seed * 1000 + variant)
    values = [*TINY[1:], *_files(data, files), *_details(chosen, several["callbacks"], careless, rng)]
    keys = [key for group, option in chosen.items() for key in choices(group, option)]
    keys += [key for group, names in several.items() for option in names for key in choices(group, option)]
    for path, tried in rng.sample(keys, min(len(keys), rng.choice([0, 1, 1, 2, 3]))):
        values.append(f"{path}={rng.choice(tried)}")
    return groups, values


def _is_classified(data: str) -> bool:
    return data not in ("diabetes", "fit_1d", "polynomials", "table_regression", "denoising")


def _several(group: str, chosen: dict[str, str], careless: bool, rng: random.Random) -> list[str]:
    """One or two options of a group that takes several."""
    learned = chosen["activation"].startswith(("spline", "slaf"))
    fitting = {
        "coefficients": chosen["activation"].startswith("slaf"),
        "variance": chosen["norm"] == "none" or rng.random() < 0.2,
        "alternate": learned,
        "release": learned,
        "sparsify": chosen["activation"].startswith("spline"),
        "certify": _is_classified(chosen["data"]),
        "polynomial": chosen["activation"] == "slaf_2" and chosen["model"] in ("mlp", "one_hidden"),
        "recalibrate": "unitize" in chosen.values() or "batch" in chosen.values(),
    }
    names = [name for name in options(group) if name != "none" and (careless or fitting.get(name, True))]
    return ["none"] if rng.random() < 0.4 else rng.sample(names, rng.choice([1, 1, 2]))


def _details(chosen: dict[str, str], callbacks: list[str], careless: bool, rng: random.Random) -> list[str]:
    """A small network, and settings that several groups share."""
    details = [need for need in NEEDS[f"model={chosen['model']}"] if need.startswith("model.net.")]
    precisions = [
        *["32-true"] * 6,
        "bf16-mixed",
        "bf16-mixed",
        "bf16-true",
        "64-true",
        *(["16-mixed"] if careless else []),
    ]
    details.append(f"trainer.precision={rng.choice(precisions)}")
    if chosen["data"] not in WITHOUT_FILES:
        details.append("data.batch_size=12")  # variance constancy needs ten
    if not {"none", "checkpoints"} & set(callbacks):
        details += ["callbacks.lipschitz.num_samples=4", "callbacks.lipschitz.num_steps=1"]
    if "certify" in callbacks:
        details += ["callbacks.certify.num_samples=8", "callbacks.certify.num_steps=2"]
    if "ics" in callbacks:
        details += ["callbacks.ics.num_samples=8", "callbacks.ics.every_n_steps=1"]
    if chosen["trainer"] == "ddp_cpu":
        details.append("trainer.devices=1")
    clip = [f"trainer.gradient_clip_val={rng.choice([0.1, 1.0])}"]
    normed = careless or chosen.get("norm/weight", "none") != "none"
    for chance, settings in (
        (0.1, [f"trainer.accumulate_grad_batches={rng.randint(1, 3)}"]),
        (0.1, clip),
        (0.1, [*clip, f"trainer.gradient_clip_algorithm={rng.choice(['norm', 'value'])}"]),
        (0.1, [f"model.activation_at.{rng.choice(['include', 'exclude'])}=[last]"]),
        (0.2 * normed, ["norm.exclude=[last]"]),
        (0.1, ["run=[fit]"]),
        (0.1, [f"seed={rng.randint(0, 2**32 - 1)}"]),
        (1.0 if "release" in callbacks else 0.1, ["trainer.max_epochs=3"]),
    ):
        if rng.random() < chance:
            details += settings
    return details
