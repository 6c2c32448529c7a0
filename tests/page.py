"""The troubleshooting page, which users search for the line that they see."""

from __future__ import annotations

import re
from pathlib import Path

PAGE = Path(__file__).parents[1] / "docs/troubleshooting.md"


def headings() -> list[str]:
    """Return the lines that the page explains."""
    return re.findall(r"^### `(.*)`$", PAGE.read_text(), re.MULTILINE)


def told(said: object, part: str) -> None:
    """Check that what a user sees is the one heading of the page that has this part."""
    (heading,) = (each for each in headings() if part in each)
    line = r".*".join(map(re.escape, re.split(r"\s*…\s*", heading)))
    assert re.search(line, str(said)), f"{heading}\nis not said by\n{said}"
