"""Smaller PNG files: stored images at 300 dpi become images of at most 256 colours for paper.

Only what Chromium's encoder writes is read: 8 bits a channel, RGB or RGBA, rows as they are, or as
differences from their left or upper neighbour. Anything else is handed back as it was.
"""

from __future__ import annotations

import struct
import zlib
from typing import cast

import numpy as np
from jaxtyping import UInt8

SIGNATURE = b"\x89PNG\r\n\x1a\n"

_CHANNELS = {2: 3, 6: 4}
_AS_IS, _LEFT, _UP = 0, 1, 2
_COLOURS = 256
_LEVEL = 9


def compact_png(content: bytes) -> bytes:
    """The image at half the size in each direction and with at most 256 colours.

    Pixels are means of two by two; of more than 256 colours the most frequent ones stay, and each
    other one becomes the nearest of them.

    Args:
        content: A PNG file.

    Returns:
        A PNG file: the new one if it could be made and is smaller, else the given one.
    """
    pixels = _read(content)
    if pixels is None or min(pixels.shape[:2]) < 2:
        return content
    made = _write(*_few_colours(_halved(pixels)))
    return made if len(made) < len(content) else content


def _read(content: bytes) -> UInt8[np.ndarray, "height width 3"] | None:
    """Pixels on a white ground, or None where the file is of another kind."""
    chunks = _chunks(content)
    if chunks is None or len(chunks.get(b"IHDR", b"")) != 13:
        return None
    width, height, depth, kind, _, _, interlaced = struct.unpack(">IIBBBBB", chunks[b"IHDR"])
    channels = _CHANNELS.get(kind)
    if depth != 8 or interlaced or channels is None or b"tRNS" in chunks:
        return None
    try:
        raw = np.frombuffer(zlib.decompress(chunks.get(b"IDAT", b"")), np.uint8)
    except zlib.error:
        return None
    if raw.size != height * (1 + width * channels):
        return None
    rows = raw.reshape(height, 1 + width * channels)
    filters = rows[:, 0]
    if not np.isin(filters, (_AS_IS, _LEFT, _UP)).all():
        return None
    pixels = rows[:, 1:].reshape(height, width, channels).copy()
    # Sums of bytes wrap around at 256, as the format asks.
    left = filters == _LEFT
    pixels[left] = np.cumsum(pixels[left], axis=1, dtype=np.uint8)
    first = 0
    for last in [*np.flatnonzero(filters != _UP), height]:
        # From one row that stands for itself to the next, all are differences downwards.
        pixels[first:last] = np.cumsum(pixels[first:last], axis=0, dtype=np.uint8)
        first = int(last)
    if channels == 3:
        return pixels
    opacity = pixels[..., 3:].astype(np.uint16)
    mixed = pixels[..., :3] * opacity + 255 * (255 - opacity)
    return (mixed // 255).astype(np.uint8)


def _chunks(content: bytes) -> dict[bytes, bytes] | None:
    """Content by kind of chunk, those of one kind joined; None for what is no PNG."""
    if not content.startswith(SIGNATURE):
        return None
    found: dict[bytes, bytes] = {}
    place = len(SIGNATURE)
    while place + 8 <= len(content):
        (size,) = struct.unpack(">I", content[place : place + 4])
        kind = content[place + 4 : place + 8]
        found[kind] = found.get(kind, b"") + content[place + 8 : place + 8 + size]
        place += 12 + size
    return found if b"IEND" in found else None


def _halved(pixels: UInt8[np.ndarray, "height width 3"]) -> UInt8[np.ndarray, "h w 3"]:
    height, width = (size // 2 * 2 for size in pixels.shape[:2])
    blocks = pixels[:height, :width].reshape(height // 2, 2, width // 2, 2, 3)
    return cast(
        "UInt8[np.ndarray, 'h w 3']",
        ((blocks.sum(axis=(1, 3), dtype=np.uint16) + 2) // 4).astype(np.uint8),
    )


def _few_colours(
    pixels: UInt8[np.ndarray, "h w 3"],
) -> tuple[UInt8[np.ndarray, "h w"], UInt8[np.ndarray, "colours 3"]]:
    """Indices into a palette, and the palette."""
    wide = pixels.astype(np.uint32)
    codes = (wide[..., 0] << 16) | (wide[..., 1] << 8) | wide[..., 2]
    unique, places, counts = np.unique(codes, return_inverse=True, return_counts=True)
    colours = np.stack([unique >> 16, (unique >> 8) & 255, unique & 255], axis=1).astype(np.int32)
    # A stable order makes the same image the same file.
    chosen = colours[np.argsort(-counts, kind="stable")[:_COLOURS]]
    nearest = np.empty(len(colours), np.uint8)
    for start in range(0, len(colours), 4096):
        part = colours[start : start + 4096]
        distance = ((part[:, None] - chosen[None]) ** 2).sum(axis=2)
        nearest[start : start + 4096] = distance.argmin(axis=1)
    indices = nearest[places.reshape(codes.shape)]
    return indices, chosen.astype(np.uint8)


def _write(indices: UInt8[np.ndarray, "h w"], palette: UInt8[np.ndarray, "colours 3"]) -> bytes:
    height, width = indices.shape
    rows = np.concatenate([np.zeros((height, 1), np.uint8), indices], axis=1)
    header = struct.pack(">IIBBBBB", width, height, 8, 3, 0, 0, 0)
    return SIGNATURE + b"".join(
        struct.pack(">I", len(content))
        + kind
        + content
        + struct.pack(">I", zlib.crc32(kind + content))
        for kind, content in (
            (b"IHDR", header),
            (b"PLTE", palette.tobytes()),
            (b"IDAT", zlib.compress(rows.tobytes(), _LEVEL)),
            (b"IEND", b""),
        )
    )
