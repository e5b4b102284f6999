"""What keeps text of models and prompts text, and the page closed to the network."""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Sequence


def whole(text: str) -> str:
    """Text with U+FFFD for each half of a surrogate pair and each NUL, which no page can hold."""
    mended = text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return mended.replace("\x00", "\ufffd")


def island_json(content: object) -> str:
    r"""JSON that may stand inside `<script>`: ASCII, and `<`, `>`, `&` as escapes.

    Raises:
        ValueError: It holds NaN or an infinity.
    """
    text = json.dumps(content, allow_nan=False, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def script_text(source: str) -> str:
    """A script that cannot close its own element, with the line ends that a browser will read.

    A browser hashes a script after it has made every line end one character, so that this is the
    text to take the digest of.
    """
    unix = source.replace("\r\n", "\n").replace("\r", "\n")
    return unix.replace("</script", "<\\/script").replace("<!--", "<\\!--")


def digest(text: str) -> str:
    """A script's source expression in a content security policy."""
    return "'sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() + "'"


def content_security_policy(scripts: Sequence[str]) -> str:
    """The policy of the page: these scripts by digest, images inside the file, nothing else.

    Plotly writes style attributes and a style element of its own, so that styles cannot be had by
    digest: a digest beside 'unsafe-inline' would switch the latter off. Images of the toolbar's
    camera are blobs.

    Args:
        scripts: Text of every inline script.
    """
    return "; ".join(
        (
            "default-src 'none'",
            "script-src " + " ".join(digest(text) for text in scripts),
            "style-src 'unsafe-inline'",
            "img-src data: blob:",
            "base-uri 'none'",
            "form-action 'none'",
        )
    )


def data_uri(content: bytes, kind: str = "image/png") -> str:
    """Bytes as an address that asks nothing of a network."""
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"
