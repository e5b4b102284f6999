"""A page in a headless Chromium over the DevTools protocol, and all that it asks for and says."""

from __future__ import annotations

import asyncio
import contextlib
import json
import tempfile
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dsteer_tl.plots.export import find_browser


@dataclass
class BrowserPage:
    """One open page.

    Attributes:
        session: Of the DevTools protocol.
        requests: Addresses that were asked for; those inside the page (data:, blob:) are left out.
        messages: What the console, the log and the security policy said.
    """

    session: Any
    requests: list[str] = field(default_factory=list)
    messages: list[str] = field(default_factory=list)

    async def send(self, method: str, **params: Any) -> dict[str, Any]:
        reply = await asyncio.wait_for(self.session.send_command(method, params), 60)
        assert "error" not in reply, reply
        return dict(reply["result"])

    async def evaluate(self, script: str) -> Any:
        """The value of a JavaScript expression; a promise is waited for."""
        reply = await self.send(
            "Runtime.evaluate", expression=script, awaitPromise=True, returnByValue=True
        )
        assert "exceptionDetails" not in reply, reply
        return reply["result"].get("value")

    async def wait_until(self, script: str, seconds: float = 30.0) -> None:
        """Wait until an expression is true."""
        for _ in range(int(seconds / 0.1)):
            if await self.evaluate(script):
                return
            await asyncio.sleep(0.1)
        raise AssertionError(f"never true within {seconds} s: {script}")

    async def resize(self, width: int, height: int) -> None:
        await self.send(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=height,
            deviceScaleFactor=1,
            mobile=width < 600,
        )


@contextlib.asynccontextmanager
async def opened(path: Path, width: int = 1280, height: int = 900) -> AsyncIterator[BrowserPage]:
    """A file in a fresh browser, watched from before it is loaded."""
    from choreographer import Browser

    with tempfile.TemporaryDirectory() as profile:
        browser = Browser(path=find_browser(), headless=True, enable_gpu=False, tmp_dir=profile)
        async with browser:
            tab = await browser.create_tab("about:blank")
            page = BrowserPage(tab.get_session())
            await _watch(page)
            await page.resize(width, height)
            await page.send("Page.navigate", url=path.resolve().as_uri())
            await page.wait_until("document.readyState === 'complete'")
            yield page


async def _watch(page: BrowserPage) -> None:
    async def request(event: Any) -> None:
        address = event["params"]["request"]["url"]
        if not address.startswith(("data:", "blob:")):
            page.requests.append(address)

    async def said(event: Any) -> None:
        page.messages.append(json.dumps(event["params"])[:600])

    page.session.subscribe("Network.requestWillBeSent", request)
    for event in (
        "Runtime.consoleAPICalled",
        "Runtime.exceptionThrown",
        "Log.entryAdded",
        "Audits.issueAdded",
    ):
        page.session.subscribe(event, said)
    for domain in ("Page", "Runtime", "Log", "Network", "Audits"):
        await page.send(f"{domain}.enable")
