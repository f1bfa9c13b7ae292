"""When figures are drawn: often at first, ever more rarely later, so that long trainings leave small event files."""

from __future__ import annotations

_EVENLY = 20  # figures, before their distance doubles for the first time


def last_due(epochs: int, every: int) -> int:
    """The last time, in finished epochs and at most ``epochs``, at which a figure is due; 0 before the first.

    Every ``every`` epochs for 20 figures, then at twice the distance for 10, at four times for 10, and so on.
    """
    number = epochs // every
    stride = 1 << (number // _EVENLY).bit_length()
    return number // stride * stride * every
