"""``python -m dsteer_tl`` is ``dsteer``."""

from dsteer_tl.cli import entry_point

if __name__ == "__main__":
    entry_point()
