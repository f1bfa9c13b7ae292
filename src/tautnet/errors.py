"""What goes wrong because of a setting."""

from __future__ import annotations


class ConfigError(ValueError):
    """A setting cannot be used. The message names the key or file, the value and what is accepted.

    It may quote a name out of somebody else's file: as text it is one line without control characters.
    """

    def __str__(self) -> str:
        return "".join(map(_shown, super().__str__()))


def _shown(character: str) -> str:
    if character.isprintable() or "\ud800" <= character <= "\udfff":  # a byte of a file name that is no text
        return character
    return " " if character.isspace() else character.encode("unicode_escape").decode()
