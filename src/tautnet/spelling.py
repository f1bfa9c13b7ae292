"""Names that do not exist, and what was meant."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches


def suggest(name: str, accepted: Iterable[str], hidden: Iterable[str] = ()) -> str:
    """The end of a message about a name that does not exist: what was probably meant, and all accepted names.

    Args:
        name: as it was typed.
        accepted: the names that exist.
        hidden: further ones, which are suggested but not listed.
    """
    listed = sorted(accepted)
    close = nearest(name, [*listed, *hidden])
    hint = f"did you mean {' or '.join(close)}? " if close else ""
    return f"; {hint}Accepted: {', '.join(listed) or 'none'}"


def nearest(name: str, accepted: Iterable[str]) -> list[str]:
    """Those of the accepted names that are one slip away, else one that looks alike, if there is one."""
    names = list(accepted)
    return [other for other in names if one_slip(name, other)] or get_close_matches(name, names, n=1)


def one_slip(name: str, other: str) -> bool:
    """Whether a character too many, too few or wrong, or two neighbours swapped, make the difference."""
    start = _num_alike(name, other)
    rest, other_rest = name[start:], other[start:]
    end = _num_alike(rest[::-1], other_rest[::-1])
    left, right = rest[: len(rest) - end], other_rest[: len(other_rest) - end]
    return max(len(left), len(right)) == 1 or (len(left) == 2 and left == right[::-1])


def _num_alike(one: str, other: str) -> int:
    """Characters up to the first that differs."""
    pairs = enumerate(zip(one, other, strict=False))
    return next((index for index, (a, b) in pairs if a != b), min(len(one), len(other)))
