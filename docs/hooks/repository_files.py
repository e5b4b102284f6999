"""Links that leave docs/ work on the site as they do in the repository.

A page may link to, or show, any file of the repository by its relative path, such as
``../figures/kl_recovery.png`` or ``../analyses/tokens.py``. The site carries a copy of what is
linked, and the link leads there. A link to a file that is not there stays as it is, and the strict
build refuses it.
"""

from __future__ import annotations

import posixpath
import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File

#: Where copies lie on the site.
FOLDER = "repository"
_LINK = re.compile(r"(\]\()([^)#\s]+)((?:#[^)\s]*)?\))")


def leaving(page: str, link: str) -> str | None:
    """The file of the repository that a link of a page leads to, if it leaves docs/.

    Args:
        page: Path of the page under docs/.
        link: As written there, without an anchor.
    """
    path = posixpath.normpath(posixpath.join(posixpath.dirname(page), link))
    return path[3:] if path.startswith("../") and not path.startswith("../../") else None


def on_files(files: Any, config: Any) -> Any:
    """Add what the pages link to outside docs/."""
    root = Path(config["docs_dir"]).parent
    for page in list(files.documentation_pages()):
        for _, link, _ in _LINK.findall(page.content_string):
            target = leaving(page.src_uri, link)
            name = f"{FOLDER}/{target}"
            if target and (root / target).is_file() and name not in files.src_uris:
                files.append(File.generated(config, name, abs_src_path=str(root / target)))
    return files


def on_page_markdown(markdown: str, page: Any, files: Any, **_: Any) -> str:
    """Point those links at the copies."""
    here = page.file.src_uri

    def moved(match: re.Match[str]) -> str:
        name = f"{FOLDER}/{leaving(here, match[2])}"
        if name not in files.src_uris:
            return match[0]
        return f"{match[1]}{posixpath.relpath(name, posixpath.dirname(here) or '.')}{match[3]}"

    return _LINK.sub(moved, markdown)
