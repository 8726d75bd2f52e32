"""The figures of a report as files, clicked in a browser: each is what it is called and holds what is drawn."""

import asyncio
import itertools
import re
import subprocess
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import aiohttp
import pandas as pd
import pytest
from browser import command, needs_browser
from PIL import Image
from study_folder import make_study

from arc_ray.report import write_report

FORMATS = (".csv", ".svg", ".png")
MOST_SAVED = 9
"""Files that a browser lets a page save by itself."""
CLICK = "[...document.querySelectorAll('.save > *')][{}].click()"
FIGURES = "[...document.querySelectorAll('.save a:first-child')].map((link) => link.download)"
TOO_WIDE = """[...document.querySelectorAll('figure.chart text')].filter((text) => {
  const [box, frame] = [text.getBoundingClientRect(), text.closest('svg').getBoundingClientRect()];
  return box.left < frame.left - 1 || box.right > frame.right + 1 || box.bottom > frame.bottom + 1;
}).map((text) => text.textContent)"""
LOADED = "new Promise((done) => document.readyState === 'complete' ? done() : addEventListener('load', done))"
SEEN = "document.documentElement.scrollWidth"


class Page:
    """A page of a browser, by the DevTools protocol."""

    def __init__(self, socket: aiohttp.ClientWebSocketResponse) -> None:
        self._socket, self._numbers = socket, itertools.count(1)

    async def tell(self, method: str, **params: Any) -> Any:
        number = next(self._numbers)
        await self._socket.send_json({"id": number, "method": method, "params": params})
        while (answer := await self._socket.receive_json()).get("id") != number:
            pass
        assert "error" not in answer, answer
        return answer["result"].get("result", {}).get("value")

    async def evaluate(self, expression: str) -> Any:
        words = {"expression": expression, "returnByValue": True, "awaitPromise": True, "userGesture": True}
        return await self.tell("Runtime.evaluate", **words)

    async def open(self, uri: str) -> None:
        await self.tell("Page.navigate", url=uri)
        await self.evaluate(LOADED)


async def clicked(address: str, uri: str, width: int, folder: Path) -> list[Any]:
    """Open a page in a window of a width and click all that saves a figure into a folder; return the figures' names, the
    labels that stand out of their picture, and the width of the page."""
    async with aiohttp.ClientSession() as session:
        async with session.get(f"http://{address}/json") as listed:
            place = next(target for target in await listed.json() if target["type"] == "page")
        async with session.ws_connect(place["webSocketDebuggerUrl"], max_msg_size=0) as socket:
            page, screen = Page(socket), {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 500}
            await page.tell("Emulation.setDeviceMetricsOverride", **screen)
            await page.tell("Browser.setDownloadBehavior", behavior="allow", downloadPath=str(folder))
            await page.open(uri)
            found = [await page.evaluate(expression) for expression in (FIGURES, TOO_WIDE, SEEN)]
            for number in range(len(FORMATS) * len(found[0])):
                if number % MOST_SAVED == 0:
                    await page.open(uri)
                await page.evaluate(CLICK.format(number))
                while sum(path.suffix in FORMATS for path in folder.iterdir()) <= number:
                    await asyncio.sleep(0.02)
            return found


@needs_browser
@pytest.mark.parametrize("width", [1280, 390])
def test_a_click_saves_what_it_says(width: int, tmp_path: Path) -> None:
    """Catches an export that does nothing, writes over another's, or lacks what the page draws; and labels cut off."""
    study, saved = make_study(tmp_path / "runs", arms=("base", "count", "mixed")), tmp_path / "saved"
    saved.mkdir()
    uri = Path(write_report([str(study)])["report.html"]).as_uri()
    words = command(tmp_path, "--hide-scrollbars", "--remote-debugging-port=0", "about:blank")
    with subprocess.Popen(words, stderr=subprocess.PIPE, text=True) as browser:
        try:
            listening = next(
                filter(None, (re.search(r"listening on ws://([^/]+)/", line) for line in browser.stderr or ()))
            )
            names, too_wide, seen = asyncio.run(asyncio.wait_for(clicked(listening[1], uri, width, saved), 300))
        finally:
            browser.terminate()
            browser.communicate()
    assert too_wide == []
    assert seen <= width
    stems = [Path(name).stem for name in names]
    assert len(stems) == len(set(stems)) >= 8
    for stem in stems:
        assert len(pd.read_csv(saved / f"{stem}.csv")) > 3
        drawing = ElementTree.parse(saved / f"{stem}.svg").getroot()
        shapes = [part for part in drawing.iter() if part.tag.endswith(("}path", "}use"))]
        assert drawing.tag.endswith("}svg")
        assert len(shapes) > 6
        assert all("stroke" in part.get("style", "") for part in shapes if part.tag.endswith("}use"))
        with Image.open(saved / f"{stem}.png") as picture:
            assert picture.size == tuple(3 * int(float(drawing.get(side) or 0)) for side in ("width", "height"))
            assert len(picture.convert("RGB").resize((400, 200)).getcolors(80_000) or ()) > 20, "an empty picture"
