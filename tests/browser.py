"""A browser of this machine, if there is one: tests of pages start it, others are skipped."""

import shutil
from pathlib import Path

import pytest

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), "")
needs_browser = pytest.mark.skipif(not CHROMIUM, reason="no chromium is on the PATH")


def command(folder: Path, *words: str) -> list[str]:
    """Return the browser's command line without a window, with a profile in this folder."""
    options = ("--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={folder / 'profile'}")
    return [CHROMIUM, *options, *words]
