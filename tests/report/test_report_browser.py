"""The report in a headless Chromium: all is drawn, nothing is asked for, text stays text."""

from __future__ import annotations

import asyncio
import importlib.util
import shutil
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from dsteer_tl.plots.export import find_browser
from dsteer_tl.report import build_report
from tests.report.browser import BrowserPage, opened
from tests.report.synthetic_run import write_run

pytestmark = [
    pytest.mark.skipif(find_browser() is None, reason="opening a report needs a Chromium"),
    pytest.mark.skipif(
        importlib.util.find_spec("choreographer") is None,
        reason="the DevTools protocol is spoken by choreographer, which comes with kaleido",
    ),
]

#: Of the software renderer that stands in for a graphics card, about its own speed.
_OF_THE_RENDERER = "GL Driver Message"

_SCROLL = """
(async () => {
  const seen = new Set();
  const drawn = () => document.querySelectorAll(".frame.drawn").forEach((f) => seen.add(f));
  let most = 0;
  for (const frame of document.querySelectorAll(".frame")) {
    frame.scrollIntoView({ block: "center" });
    for (let i = 0; i < 300 && !frame.classList.contains("drawn"); i++) {
      if (frame.classList.contains("failed")) break;
      await new Promise((resolve) => setTimeout(resolve, 30));
    }
    drawn();
    most = Math.max(most, document.querySelectorAll(".frame.drawn[data-webgl]").length);
  }
  return [seen.size, most, document.querySelectorAll(".failed").length];
})()
"""


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_report(write_run(tmp_path_factory.mktemp("run") / "tiny", clouds=11))


def visit(path: Path, test: Callable[[BrowserPage], Awaitable[None]], width: int = 1280) -> None:
    async def run() -> None:
        async with opened(path, width) as page:
            await test(page)

    asyncio.run(run())


def test_all_is_drawn_nothing_is_asked_for_and_text_stays_text(report: Path) -> None:
    async def look(page: BrowserPage) -> None:
        title = await page.evaluate("document.title")
        frames = await page.evaluate("document.querySelectorAll('.frame').length")
        assert frames == 16
        assert await page.evaluate(_SCROLL) == [frames, 12, 0]
        # What was far away was taken down and is drawn again; the rest kept its drawing.
        await page.evaluate("document.querySelector('.frame').scrollIntoView()")
        await page.wait_until("document.querySelector('.frame').classList.contains('drawn')")
        flat = "[...document.querySelectorAll('.frame:not([data-webgl])')]"
        assert await page.evaluate(f"{flat}.every(f => f.querySelector('.main-svg'))")
        assert await page.evaluate("document.querySelectorAll('.drawn canvas').length >= 12")
        # Injected markup is text: the title is as it was, and no element came of it.
        assert "owned" in title
        assert await page.evaluate("document.title") == title
        assert await page.evaluate("document.querySelectorAll('img:not(.frame img)').length") == 0
        assert await page.evaluate("document.querySelectorAll('[onerror], iframe').length") == 0
        links = "[...document.querySelectorAll('a')].filter(a => a.protocol === 'javascript:')"
        assert await page.evaluate(f"{links}.length") == 0
        assert await page.evaluate("document.querySelectorAll('script:not([type])').length") == 3
        assert page.requests == [report.resolve().as_uri()]
        assert [said for said in page.messages if _OF_THE_RENDERER not in said] == []

    visit(report, look)


def test_a_script_that_is_not_the_page_s_own_is_refused_and_seen(
    report: Path, tmp_path: Path
) -> None:
    """The other tests would see a violation if there were one."""
    shutil.copy(report, tmp_path / "page.html")
    text = (tmp_path / "page.html").read_text("utf-8")
    bad = "<img src='https://example.org/x.png'><script>document.title='owned'</script>"
    (tmp_path / "page.html").write_text(text.replace("<header", f"{bad}<header"), "utf-8")

    async def look(page: BrowserPage) -> None:
        assert await page.evaluate("document.title") != "owned"
        await page.wait_until("true")
        said = " ".join(page.messages)
        assert "script-src" in said
        assert "example.org" in said

    visit(tmp_path / "page.html", look)


def test_a_narrow_screen_has_no_sideways_scroll(report: Path) -> None:
    async def look(page: BrowserPage) -> None:
        await page.evaluate("document.querySelectorAll('details').forEach(d => { d.open = true; })")
        await page.evaluate("document.querySelector('.frame').scrollIntoView()")
        await page.wait_until("document.querySelector('.frame').classList.contains('drawn')")
        width = "document.documentElement.scrollWidth"
        assert await page.evaluate(f"[{width}, window.innerWidth]") == [390, 390]
        box = await page.evaluate(
            "document.querySelector('.frame.drawn .main-svg').getBoundingClientRect().right"
        )
        assert box <= 390

    visit(report, look, width=390)


def test_the_table_of_choices_is_stacked_on_a_narrow_screen(report: Path) -> None:
    async def look(page: BrowserPage) -> None:
        inside = (
            "(e => [e.scrollWidth, e.clientWidth])(document.querySelector('#multiverse .scroll'))"
        )
        wide, shown = await page.evaluate(inside)
        assert wide <= shown
        cell = "document.querySelector('.multiverse td[data-head]')"
        assert await page.evaluate(f"getComputedStyle({cell}, '::before').content") == (
            '"Kept by one choice"'
        )

    visit(report, look, width=390)


def test_paper_has_no_sideways_scroll(report: Path) -> None:
    """A4 without its margins, at 96 dots an inch, is 794 px and less."""

    async def look(page: BrowserPage) -> None:
        await page.evaluate("document.querySelectorAll('details').forEach(d => { d.open = true; })")
        await page.send("Emulation.setEmulatedMedia", media="print")
        wide, shown = await page.evaluate(
            "(e => [e.scrollWidth, e.clientWidth])(document.documentElement)"
        )
        assert wide <= shown
        over = (
            "[...document.querySelectorAll('.scroll')].filter(e => e.scrollWidth > e.clientWidth)"
        )
        assert await page.evaluate(f"{over}.length") == 0

    visit(report, look, width=794)


def test_rows_are_filtered_sorted_and_shown_again_by_a_link(report: Path) -> None:
    shown = "[...document.querySelectorAll('.claims tbody')].filter(r => r.offsetHeight)"

    async def look(page: BrowserPage) -> None:
        rows = await page.evaluate("document.querySelectorAll('.claims tbody').length")
        await page.evaluate("document.querySelector('button[data-verdict=not-run]').click()")
        some = await page.evaluate(f"{shown}.length")
        assert 0 < some < rows
        assert await page.evaluate(f"{shown}.every(r => r.dataset.verdict === 'not-run')")
        await page.evaluate("location.hash = '#claim-1'")
        await page.wait_until(f"{shown}.length === {rows}")
        await page.evaluate(
            "(o => { o.value = 'verdict'; o.dispatchEvent(new Event('change')); })"
            "(document.getElementById('claim-order'))"
        )
        order = await page.evaluate(f"{shown}.map(r => r.dataset.verdict)")
        assert order == sorted(order, key=order.index)
        assert await page.evaluate(f"{shown}.map(r => +r.dataset.id).toString()") != ",".join(
            str(row) for row in range(1, rows + 1)
        )

    visit(report, look)


def test_paper_and_pages_without_scripts_show_the_images(report: Path) -> None:
    visible = "document.querySelectorAll('.frame img').length === " + (
        "[...document.querySelectorAll('.frame img')].filter(i => i.offsetHeight).length"
    )

    async def on_paper(page: BrowserPage) -> None:
        await page.wait_until("document.documentElement.classList.contains('js')")
        await page.evaluate("document.querySelector('.frame').scrollIntoView()")
        await page.wait_until("document.querySelector('.frame').classList.contains('drawn')")
        assert not await page.evaluate(visible)
        await page.send("Emulation.setEmulatedMedia", media="print")
        assert await page.evaluate(visible)
        plot = "document.querySelector('.frame.drawn .plot').offsetHeight"
        assert await page.evaluate(plot) == 0

    async def without_scripts(page: BrowserPage) -> None:
        await page.send("Emulation.setScriptExecutionDisabled", value=True)
        await page.send("Page.reload")
        await asyncio.sleep(1.0)
        await page.send("Emulation.setScriptExecutionDisabled", value=False)
        assert not await page.evaluate("document.documentElement.classList.contains('js')")
        assert await page.evaluate(visible)
        assert await page.evaluate("document.getElementById('claim-filter').hidden")

    visit(report, on_paper)
    visit(report, without_scripts)
