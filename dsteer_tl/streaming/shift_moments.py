"""`ShiftMoments`: moments of the shifts at every site, in memory or in a folder."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from dsteer_tl.errors import RunError, ShapeError
from dsteer_tl.files import read_json, write_json
from dsteer_tl.streaming.moments import Moments

_FORMAT = 1
_INDEX = "moments.json"


class ShiftMoments:
    """Moments of the shifts for every site and position kind, in memory or in a folder.

    From a folder, the moments of a place are read when asked for, so that memory is that of one
    place: d_model² · 8 bytes, 134 MB at 4,096 dimensions.

    Attributes:
        sites: Sites, in the order of the forward pass.
        kinds: Position kinds.
        hashes: Weight hashes of base and policy.
    """

    def __init__(
        self,
        read: Callable[[str, str], Moments],
        *,
        sites: Sequence[str],
        kinds: Sequence[str],
        hashes: Mapping[str, str],
    ) -> None:
        self._read = read
        self.sites, self.kinds, self.hashes = tuple(sites), tuple(kinds), dict(hashes)

    @classmethod
    def empty(
        cls, d_model: int, *, sites: Sequence[str], kinds: Sequence[str], hashes: Mapping[str, str]
    ) -> ShiftMoments:
        """Moments of nothing, in memory."""
        places = {(site, kind): Moments(d_model) for site in sites for kind in kinds}
        return cls(lambda *place: places[place], sites=sites, kinds=kinds, hashes=hashes)

    def loaded(self) -> ShiftMoments:
        """The same moments in memory, to go on with."""
        places = {(site, kind): moments for site, kind, moments in self.places()}
        return ShiftMoments(
            lambda *place: places[place], sites=self.sites, kinds=self.kinds, hashes=self.hashes
        )

    def at(self, site: str, kind: str) -> Moments:
        """The moments of one place; what is read from a folder is a copy.

        Raises:
            ShapeError: The site or kind was not accumulated.
            RunError: A file is missing or damaged.
        """
        if site not in self.sites or kind not in self.kinds:
            raise ShapeError(
                f"no moments of {kind!r} at {site!r}: there are sites {self.sites} and position "
                f"kinds {self.kinds}"
            )
        return self._read(site, kind)

    def places(self) -> Iterator[tuple[str, str, Moments]]:
        """Site, kind and moments of each place, one after the other."""
        for site in self.sites:
            for kind in self.kinds:
                yield site, kind, self.at(site, kind)

    def save(self, folder: Path) -> None:
        """Write a file a place, under a temporary name; the folder is there whole or not at all.

        Raises:
            RunError: The folder cannot be written.
        """
        temporary = folder.with_name(f".{folder.name}.partial")
        try:
            shutil.rmtree(temporary, ignore_errors=True)
            temporary.mkdir(parents=True)
            for site, kind, moments in self.places():
                save_file(moments.to_state(), temporary / _file(site, kind))
            content = {"sites": self.sites, "kinds": self.kinds, "hashes": self.hashes}
            write_json(temporary / _INDEX, {"format": _FORMAT, **content})
            shutil.rmtree(folder, ignore_errors=True)
            temporary.replace(folder)
        except (OSError, SafetensorError) as error:
            shutil.rmtree(temporary, ignore_errors=True)
            reason = getattr(error, "strerror", None) or error
            raise RunError(
                f"cannot write {folder}: {reason}; free the space or mend the path and run the "
                "same command again, which goes on from the last finished state"
            ) from error

    @classmethod
    def open(cls, folder: Path) -> ShiftMoments:
        """Open what `save` wrote.

        Raises:
            RunError: There is no index, or it is of another format.
        """
        content = read_json(folder / _INDEX)
        if not (isinstance(content, dict) and content.get("format") == _FORMAT):
            raise RunError(
                f"{folder / _INDEX} is no index of moments of format {_FORMAT}: accumulate again"
            )
        return cls(
            partial(_read_place, folder),
            sites=content["sites"],
            kinds=content["kinds"],
            hashes=content["hashes"],
        )


def _read_place(folder: Path, site: str, kind: str) -> Moments:
    path = folder / _file(site, kind)
    try:
        with safe_open(path, framework="numpy") as file:
            state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise RunError(f"{path} is missing or damaged ({error}): accumulate again") from error
    return Moments.from_state(state)


def _file(site: str, kind: str) -> str:
    return f"{site}.{kind}.safetensors"
