"""The documentation site builds without a warning, names what is public, and fetches nothing."""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path

import pytest
import yaml

import dsteer_tl

#: Elements that fetch what they name, and where they name it.
FETCHING = {
    "script": "src",
    "link": "href",
    "img": "src",
    "iframe": "src",
    "source": "src",
    "video": "src",
    "audio": "src",
    "embed": "src",
    "object": "data",
}
#: Packages that a page documents by its directive; every module lies in one of them.
DIRECTIVE = re.compile(r"^::: (\S+)$", flags=re.MULTILINE)


class _Fetched(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        # A canonical address or the next page is named, not fetched.
        named = tag == "link" and given.get("rel") in ("canonical", "next", "prev")
        if tag in FETCHING and not named and given.get(FETCHING[tag]):
            self.found.append(str(given[FETCHING[tag]]))


def pages_of(entry: object) -> Iterator[str]:
    if isinstance(entry, str):
        yield entry
    elif isinstance(entry, dict):
        for value in entry.values():
            yield from pages_of(value)
    elif isinstance(entry, list):
        for value in entry:
            yield from pages_of(value)


def settings(repository: Path) -> dict[str, object]:
    found = yaml.safe_load((repository / "mkdocs.yml").read_text("utf-8"))
    assert isinstance(found, dict)
    return found


def documented_modules(repository: Path) -> set[str]:
    pages = (repository / "docs" / "reference").glob("*.md")
    return {name for page in pages for name in DIRECTIVE.findall(page.read_text("utf-8"))}


@pytest.fixture(scope="module")
def site(repository: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    for name in ("mkdocs", "material", "mkdocstrings_handlers"):
        if importlib.util.find_spec(name) is None:
            pytest.skip(f"{name} is not installed: install the extra 'docs'")
    target = tmp_path_factory.mktemp("site")
    found = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(target)],
        cwd=repository,
        env=os.environ | {"NO_MKDOCS_2_WARNING": "1"},
        capture_output=True,
        text=True,
        timeout=600,
    )
    printed = found.stdout + found.stderr
    assert found.returncode == 0, printed[-4000:]
    assert "WARNING" not in printed
    return target


def test_every_page_is_in_the_navigation_and_every_entry_is_a_page(repository: Path) -> None:
    docs = repository / "docs"
    found = {path.relative_to(docs).as_posix() for path in docs.rglob("*.md")}
    assert set(pages_of(settings(repository)["nav"])) == found


def test_every_module_is_in_the_reference(repository: Path) -> None:
    package = repository / "dsteer_tl"
    names = {path.stem for path in package.glob("*.py")} | {
        path.parent.name for path in package.glob("*/__init__.py")
    }
    private = {"__init__", "__main__"}
    known = {name.removeprefix("dsteer_tl.") for name in documented_modules(repository)}
    assert known == names - private


def test_public_names_are_listed_and_lead_to_their_docstrings(site: Path) -> None:
    index = (site / "reference" / "index.html").read_text("utf-8")
    for name in set(dsteer_tl.__all__) - {"__version__"}:
        link = re.search(rf'href="([^"#]*)#(dsteer_tl[\w.]*\.{name})"><code>{name}</code>', index)
        assert link is not None, name
        page = (site / "reference" / link[1] / "index.html").read_text("utf-8")
        assert f'id="{link[2]}"' in page


def test_jaxtyping_shapes_stand_in_signatures(site: Path) -> None:
    page = (site / "reference" / "directions" / "index.html").read_text("utf-8")
    text = re.sub(r"<[^>]+>", "", page)
    assert "Float[ndarray" in text
    assert "pair d_model" in text


def test_examples_are_code(site: Path) -> None:
    page = (site / "reference" / "directions" / "index.html").read_text("utf-8")
    assert '<span class="gp">&gt;&gt;&gt; </span>' in page
    assert "doctest: +SKIP" not in page
    assert "<blockquote>" not in page


def test_no_page_fetches_anything_from_elsewhere(site: Path) -> None:
    pages = list(site.rglob("*.html"))
    assert len(pages) > 20
    for page in pages:
        parser = _Fetched()
        parser.feed(page.read_text("utf-8"))
        assert parser.found, page
        elsewhere = [name for name in parser.found if re.match(r"(https?:)?//", name)]
        assert elsewhere == [], page
        styles = [path.read_text("utf-8") for path in site.rglob("*.css")]
    assert styles
    assert not any(re.search(r"(url\(|@import)\s*[\"']?(https?:)?//", text) for text in styles)


def test_links_that_leave_the_pages_lead_to_copies(site: Path, repository: Path) -> None:
    copy = site / "repository" / "figures" / "kl_recovery.png"
    assert copy.read_bytes() == (repository / "figures" / "kl_recovery.png").read_bytes()
    assert 'src="repository/figures/kl_recovery.png"' in (site / "index.html").read_text("utf-8")
    tutorial = site / "repository" / "analyses" / "tutorial_your_own_pair.py"
    assert tutorial.is_file()
    assert not (site / "hooks").exists()
