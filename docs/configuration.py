"""Write docs/configuration.md, the settings with their comments, from the files in conf/.

    python docs/configuration.py

It reads lines instead of YAML, since the comments are what the page is about.
"""

import re
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).parents[1]
CONF, PAGE = ROOT / "conf", ROOT / "docs" / "configuration.md"
GROUPS = (
    *("activation", "norm", "norm/output", "norm/weight", "model", "loss", "data", "optimizer", "scheduler"),
    *("regularizer", "trainer", "callbacks", "logger", "experiment", "debug", "hydra/sweeper"),
)
HEAD = """# Configuration

Every setting as it stands in `conf/`: key, value, and what the file says about it. A value is set on the command line
by its key, `activation.num_knots=21`; an option by its group, `activation=relu` ([usage.md](usage.md)). An option that
begins with others takes their keys and replaces or adds its own. `python train.py --cfg job` prints what is in force.

`python docs/configuration.py` makes this page; change the files in `conf/`, not the page.
"""
_KEY = re.compile(r"( *)([\w.]+):(?: +|$)(.*)")
_COMMENT = re.compile(r"(?:^| )# ?")
_SILENT = ("hydra.job_logging", "hydra.help")  # formats of Hydra's, and the text of --help


@dataclass
class Option:
    """A file of conf/.

    Attributes:
        about: its description.
        begins: the options that it begins with, and why there.
        rows: key, value, comments.
    """

    about: list[str] = field(default_factory=list)
    begins: list[tuple[str, str]] = field(default_factory=list)
    rows: list[tuple[str, str, list[str]]] = field(default_factory=list)


def read(path: Path) -> Option:
    """What a file says; keys with dots, as on the command line."""
    option, above, column = Option(), [], -1
    group = path.parent.relative_to(CONF).as_posix().strip(".").replace("/", ".")
    parents = [(-1, group)]  # indent and key of what is open
    for line in path.read_text().splitlines():
        found = _COMMENT.search(line)
        text, comment = (line[: found.start()], line[found.end() :].strip()) if found else (line, "")
        key = _KEY.fullmatch(text.rstrip())
        if comment.startswith("@package "):
            parents = [(-1, comment.removeprefix("@package ").replace("_global_", ""))]
        elif key:
            while parents[-1][0] >= len(key[1]):
                parents.pop()
            parents.append((len(key[1]), f"{parents[-1][1]}.{key[2]}".lstrip(".")))
            option.rows.append((parents[-1][1], key[3], [*above, *([comment] if comment else [])]))
            above, column = [], line.find("#")
        elif text.strip().startswith("- "):
            option.begins.append((text.strip()[2:], f" ({comment})" if comment else ""))
        elif comment and option.rows and line.find("#") == column:
            option.rows[-1][2].append(comment)
        elif comment:
            (above if option.rows else option.about).append(comment)
    return _tidy(option)


def _tidy(option: Option) -> Option:
    """Without keys that hold others and say nothing, defaults apart."""
    for key, value, _ in option.rows:
        if key.rpartition(".")[2] == "defaults":
            option.begins += [(part, "") for part in re.findall(r"[\w/@.]+", value)]
    keys = [key for key, _, _ in option.rows]
    option.rows = [
        (key, value, notes)
        for key, value, notes in option.rows
        if key.rpartition(".")[2] not in ("defaults", "_partial_")
        and not key.startswith(_SILENT)
        and (value or notes or not any(other.startswith(f"{key}.") for other in keys))
    ]
    return option


def _table(option: Option, group: str) -> list[str]:
    made = next((f"Makes `{value}`." for key, value, _ in option.rows if key == f"{group}._target_"), "")
    begins = ", ".join(f"`{part}`{why}" for part, why in option.begins if part != "_self_")
    about = [" ".join(map(_escaped, option.about)), made, begins and f"Begins with {begins}."]
    lines = [part for said in about if said for part in (said, "")]
    rows = [row for row in option.rows if row[0] != f"{group}._target_"]
    if rows:
        lines += ["| key | value | |", "| --- | --- | --- |"]
        for key, value, notes in rows:
            lines.append(f"| `{key}` | {value and f'`{value}`'} | {_escaped(' '.join(notes))} |")
        lines.append("")
    return lines


def _escaped(text: str) -> str:
    """Without what markdown would take for a column, a tag or emphasis."""
    return text.replace("|", "\\|").replace("<", "&lt;").replace("*", "\\*")


def page() -> str:
    """The page's text."""
    lines = [HEAD, "## The top level: train.yaml", "", *_table(read(CONF / "train.yaml"), "")]
    for group in GROUPS:
        lines += [f"## {group}", ""]
        for path in sorted((CONF / group).glob("*.yaml")):
            lines += [f"### {group}={path.stem}", "", *_table(read(path), group.replace("/", "."))]
    return "\n".join(lines).rstrip() + "\n"


if __name__ == "__main__":
    PAGE.write_text(page())
