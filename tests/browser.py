"""A real browser, headless, for what is looked at in one: pages of TensorBoard and reports.

with a_page() as visit:
    visit.page.goto(path.as_uri())
    assert "digits" in visit.text()
    visit.page.screenshot(path=tmp_path / "page.png", full_page=True)
assert visit.errors == [] and visit.elsewhere() == []
"""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import pytest

_NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
_QUIET = (
    *("--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking"),
    *("--disable-component-update", "--disable-sync", "--disable-default-apps", "--disable-extensions"),
)
_READ = """element => {
  const read = node => node.nodeType === Node.TEXT_NODE ? node.textContent
    : node.nodeType === Node.ELEMENT_NODE && (!node.checkVisibility() || /^(SCRIPT|STYLE)$/.test(node.tagName)) ? ""
    : [...(node.shadowRoot ? [node.shadowRoot] : []), ...node.childNodes].map(read).join(" ");
  return read(element);
}"""


@dataclass
class Visit:
    """A page, what went wrong on it and all that it asked for."""

    page: object  # of playwright, which may not be installed
    errors: list[str] = field(default_factory=list)  # of the console, and exceptions that nothing caught
    requests: list[str] = field(default_factory=list)  # addresses

    def text(self, selector: str = "body") -> str:
        """What can be read now in the first such element, in shadow trees too; white space is one blank."""
        return " ".join(self.page.locator(selector).first.evaluate(_READ).split())

    def elsewhere(self, home: str = "file://") -> list[str]:
        """Requests to any other place than ``home``; what lies in the page itself is no request."""
        return [url for url in self.requests if not url.startswith((home, "data:", "blob:", "about:"))]


@contextmanager
def a_page(width: int = 1280, height: int = 900, scale: float = 1.0, dark: bool = False) -> Iterator[Visit]:
    """A blank page in a browser of its own with a new profile; the test is skipped where there is none.

    Args:
        width: of the window, in CSS pixels; 390 is a phone's.
        height: likewise.
        scale: device pixels of one CSS pixel.
        dark: whether the user prefers dark pages.
    """
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    program = next(filter(None, map(shutil.which, _NAMES)), None)
    if program is None:
        pytest.skip(f"no browser: none of {', '.join(_NAMES)}")
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=program, args=list(_QUIET))
        try:
            page = browser.new_page(
                viewport={"width": width, "height": height},
                device_scale_factor=scale,
                color_scheme="dark" if dark else "light",
            )
            visit = Visit(page)
            page.on("console", lambda said: said.type == "error" and visit.errors.append(said.text))
            page.on("pageerror", lambda error: visit.errors.append(str(error)))
            page.on("request", lambda request: visit.requests.append(request.url))
            yield visit
        finally:
            browser.close()
