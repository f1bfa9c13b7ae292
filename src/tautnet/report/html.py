"""HTML out of elements: whatever is not mark-up already is text, and is escaped."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape
from pathlib import Path

MARKER = "<!-- tautnet report -->"  # by which a report is known when it is written anew
_VOID = {"meta", "br", "hr"}


class Html(str):
    """Mark-up. Made by ``element`` and ``raw`` alone."""

    __slots__ = ()


def raw(mark_up: str) -> Html:
    """Mark-up of our own making, such as a figure."""
    return Html(mark_up)


def element(tag: str, *children: str, **attributes: str) -> Html:
    """An element; children and attributes that are not ``Html`` are text.

    Args:
        tag: its name.
        *children: in order.
        **attributes: an underscore in front or behind is left out, those within are hyphens.
    """
    pairs = (
        f' {name.strip("_").replace("_", "-")}="{escape(_printable(value))}"' for name, value in attributes.items()
    )
    start = f"<{tag}{''.join(pairs)}>"
    return Html(start) if tag in _VOID else Html(f"{start}{joined(children)}</{tag}>")


def joined(children: Iterable[str]) -> Html:
    """Children one after the other."""
    return Html("".join(child if isinstance(child, Html) else escape(_printable(child)) for child in children))


def _printable(text: str) -> str:
    """Without what no page can hold: control characters, bytes of file names that are no text."""
    kept = (c if c.isprintable() or c in "\n\t\N{NO-BREAK SPACE}" else "\N{REPLACEMENT CHARACTER}" for c in text)
    return "".join(kept)


def table(rows: Sequence[Sequence[str]], caption: str = "", text_columns: int = 1) -> Html:
    """A table that scrolls within the page where it is too wide.

    Args:
        rows: the heading first.
        caption: above it; empty for none.
        text_columns: how many of the first columns are words; the others are numbers, on the right.
    """
    kinds = ["t" if column < text_columns else "n" for column in range(len(rows[0]))]
    pairs = zip(map(unbroken, rows[0]), kinds, strict=True)
    heading = element("tr", *(element("th", cell, scope="col", _class=kind) for cell, kind in pairs))
    body = []
    for row in rows[1:]:
        cells = (element("td", cell, _class=kind) for cell, kind in zip(row[1:], kinds[1:], strict=True))
        body.append(element("tr", element("th", row[0], scope="row"), *cells))
    whole = element("table", element("thead", heading), element("tbody", *body))
    scrolling = element("div", whole, _class="wide", role="region", tabindex="0", aria_label=caption or "table")
    return joined([element("p", caption, _class="caption"), scrolling] if caption else [scrolling])


def unbroken(words: str) -> str:
    """Words in which ``p = 2`` stays on a line."""
    return words.replace(" = ", "\N{NO-BREAK SPACE}=\N{NO-BREAK SPACE}")


def picture(svg: str, description: str) -> Html:
    """A figure with its description, which is read out and stands above it."""
    image = element("div", raw(svg), role="img", aria_label=description)
    return element("figure", element("figcaption", description), image)


def folded(summary: str, *children: str) -> Html:
    """What is shown when it is asked for."""
    return element("details", element("summary", summary), *children)


def section(title: str, anchor: str, *children: str) -> Html:
    """A part of the page with its heading."""
    return element("section", element("h2", title), *children, id=anchor)


def page(title: str, *children: str) -> str:
    """A whole page, which asks for nothing beyond itself."""
    style = Path(__file__).with_name("page.css").read_text(encoding="utf-8")
    policy = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"
    head = element(
        "head",
        element("meta", charset="utf-8"),
        element("meta", http_equiv="Content-Security-Policy", content=policy),
        element("meta", name="viewport", content="width=device-width, initial-scale=1"),
        element("meta", name="color-scheme", content="light dark"),
        element("title", title),
        element("style", raw(style)),
    )
    body = element("body", element("main", *children))
    return f"<!DOCTYPE html>\n{MARKER}\n{element('html', head, raw(chr(10)), body, lang='en')}\n"
