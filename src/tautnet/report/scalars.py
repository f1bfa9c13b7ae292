"""What a run has logged over time: out of TensorBoard's event files, or out of CSV files."""

from __future__ import annotations

import csv
import os
import struct
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Curve:
    """A number over time.

    Attributes:
        steps: optimizer steps that had been made, rising.
        values: one a step; inf and NaN as they were logged.
    """

    steps: tuple[int, ...]
    values: tuple[float, ...]


def read_curves(run: Path) -> tuple[dict[str, Curve], list[str]]:
    """All that was logged in a run's directory by name, and a line on each file that cannot be read.

    TensorBoard's files are taken where there are any, else those of the CSV logger. What an attempt logged after the
    step from which the next one went on is left out.
    """
    points: dict[str, dict[int, float]] = {}
    problems: list[str] = []
    for folder in sorted({file.parent for file in run.rglob("events.out.tfevents.*")}):
        _of_events(folder, points, problems)
    for file in sorted(run.rglob("metrics.csv"), key=_first_step) if not points else ():
        _forget_later(points, _first_step(file) + 1)
        _add(points, _of_csv(file, problems))
    return {name: _curve(found) for name, found in points.items() if found}, problems


def _add(points: dict[str, dict[int, float]], found: Iterable[tuple[str, int, float]]) -> None:
    for name, step, value in found:
        points.setdefault(name, {})[step] = value


def _curve(found: Mapping[int, float]) -> Curve:
    steps = tuple(sorted(found))
    return Curve(steps, tuple(found[step] for step in steps))


def _of_events(folder: Path, points: dict[str, dict[int, float]], problems: list[str]) -> None:
    """Read the event files of a folder in the order in which they were begun."""
    from google.protobuf.message import DecodeError  # type: ignore[import-untyped]
    from tensorboard.backend.event_processing.event_file_loader import EventFileLoader  # type: ignore[import-untyped]

    for file in sorted(folder.glob("events.out.tfevents.*")):
        num_read = 0
        try:
            for event in EventFileLoader(str(file)).Load():
                num_read += 1
                _take_event(event, points)
        except (DecodeError, ValueError):
            num_read = -1
        if num_read != _num_records(file):  # the loader ends at the first record whose checksum is wrong
            problems.append(f"{file}: damaged, or still being written; read up to there")


def _take_event(event: Any, points: dict[str, dict[int, float]]) -> None:
    """Note its scalars; the first event of a run that goes on takes back what was logged from that step on."""
    if event.HasField("session_log") and event.session_log.status == event.session_log.START:
        _forget_later(points, event.step)
    for value in event.summary.value:
        if value.metadata.plugin_data.plugin_name == "scalars":
            tensor = value.tensor
            found = tensor.float_val or tensor.double_val or struct.unpack("<f", tensor.tensor_content[:4])
            points.setdefault(value.tag, {})[event.step] = float(found[0])


def _num_records(file: Path) -> int:
    """How many records an event file begins: of each its length (8 bytes), 4 of a checksum, itself, 4 of another."""
    num, size = 0, file.stat().st_size
    with file.open("rb") as records:
        while records.tell() < size:
            num += 1
            length = int.from_bytes(records.read(8), "little")
            records.seek(min(length + 8, size), os.SEEK_CUR)
    return num


def _first_step(file: Path) -> int:
    """Of the attempt that wrote a CSV file: one that goes on has a folder named for the step it goes on from."""
    number = file.parent.name.removeprefix("from_step_")
    return int(number) if number.isdecimal() else -1


def _forget_later(points: dict[str, dict[int, float]], step: int) -> None:
    for found in points.values():
        for later in [logged for logged in found if logged >= step]:
            del found[later]


def _of_csv(file: Path, problems: list[str]) -> Iterator[tuple[str, int, float]]:
    try:
        with file.open(newline="", encoding="utf-8") as lines:
            for row in csv.DictReader(lines):
                step = int(row["step"])
                yield from ((name, step, float(text)) for name, text in row.items() if text and name != "step")
    except (OSError, ValueError, KeyError, TypeError, csv.Error):
        problems.append(f"{file}: not a table of the CSV logger, or damaged; read up to there")
