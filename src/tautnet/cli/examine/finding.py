"""One line of the doctor."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Mark = Literal["ok", "note", "PROBLEM"]
OK: Mark = "ok"
NOTE: Mark = "note"  # worth knowing; nothing fails
PROBLEM: Mark = "PROBLEM"  # something fails, or is several times slower than it need be


@dataclass(frozen=True)
class Finding:
    """What an examination has found.

    Attributes:
        mark: how bad it is.
        subject: of what it speaks.
        text: what was found.
        cure: what to do about it, "" for nothing.
    """

    mark: Mark
    subject: str
    text: str
    cure: str = ""

    def line(self) -> str:
        """The finding in one line."""
        text = f"{self.text}; cure: {self.cure}" if self.cure else self.text
        return f"{self.mark:<8} {self.subject:<22} {' '.join(text.split())}"
