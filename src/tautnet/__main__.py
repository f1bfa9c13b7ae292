"""The commands beside train.py: ``python -m tautnet <command>``, installed as ``tautnet`` too.

Imports nothing heavy: ``--help`` answers at once, and a command can say what is missing.
"""

from __future__ import annotations

import sys
from argparse import ArgumentParser, RawDescriptionHelpFormatter
from collections.abc import Sequence
from difflib import get_close_matches
from typing import Any, NoReturn

from tautnet.cli import certify, compare, doctor, evaluate, export, plot, predict, report
from tautnet.errors import ConfigError

_COMMANDS = {
    **{"evaluate": evaluate, "predict": predict, "certify": certify, "plot": plot},
    **{"compare": compare, "report": report, "export": export, "doctor": doctor},
}


class _Parser(ArgumentParser):
    """Answers a mistake in one line."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"error: {message}; see {self.prog} --help\n")

    def parse_known_args(self, args: Sequence[str] | None = None, namespace: Any = None) -> Any:  # type: ignore[override]
        """Answer an option that there is not with the nearest one."""
        given = list(args or ())
        for name in (each.partition("=")[0] for each in (given[:1] if self._subparsers else given)):
            if name.startswith("--") and not any(known.startswith(name) for known in self._option_string_actions):
                close = get_close_matches(name, self._option_string_actions, n=1)
                self.error(f"{name}: no such option{f' (did you mean {close[0]}?)' if close else ''}")
        return super().parse_known_args(args, namespace)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command and return its exit status; 2 for what cannot be understood or used.

    Args:
        arguments: of the command line, by default those of this process.
    """
    given = list(sys.argv[1:] if arguments is None else arguments)
    parser = _parser()
    if not given:
        sys.stderr.write(parser.format_help())
        return 2
    if not given[0].startswith("-") and given[0] not in _COMMANDS:
        close = get_close_matches(given[0], _COMMANDS, n=1)
        hint = f"did you mean {close[0]}? " if close else ""
        sys.stderr.write(f"error: {given[0]}: no such command; {hint}Accepted: {', '.join(_COMMANDS)}\n")
        return 2
    parsed, rest = parser.parse_known_args(given)
    if rest and ("overrides" not in parsed or any(word.startswith("-") for word in rest)):
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    if rest:  # settings behind an option, which argparse hands back
        parsed.overrides += rest
    try:
        return _COMMANDS[parsed.command].run(parsed)
    except ConfigError as error:
        sys.stderr.write(f"error: {' '.join(str(error).split())}\n")
        return 2
    except OSError as error:
        if error.filename is None:
            raise
        sys.stderr.write(f"error: {error.filename}: {error.strerror}\n")
        return 2
    except KeyboardInterrupt:
        sys.stderr.write("interrupted\n")
        return 130


def _parser() -> _Parser:
    parser = _Parser("tautnet", description="What there is beside training, which is python train.py.")
    commands = parser.add_subparsers(dest="command", metavar="<command>", required=True)
    for name, command in _COMMANDS.items():
        example = f"example: {command.EXAMPLE}"
        formatter = RawDescriptionHelpFormatter
        own = commands.add_parser(
            name, help=command.HELP, description=command.DESCRIPTION, epilog=example, formatter_class=formatter
        )
        command.add_arguments(own)
    return parser


if __name__ == "__main__":
    sys.exit(main())
