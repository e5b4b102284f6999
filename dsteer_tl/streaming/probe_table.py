"""`ProbeTable`: the token sequences of any number of prompts, on disk and mapped into memory."""

from __future__ import annotations

import hashlib
import json
import logging
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, overload

import pyarrow as pa
from transformers import PreTrainedTokenizerBase

from dsteer_tl import positions
from dsteer_tl.errors import DataError, RunError
from dsteer_tl.files import hash_content, read_json, replacing, write_json
from dsteer_tl.positions import PROMPT_KINDS, Probe, check_kinds
from dsteer_tl.streaming.prompt_streams import prompt_batches, source_key, source_name

if TYPE_CHECKING:
    from datasets import Dataset, IterableDataset

logger = logging.getLogger(__name__)

_FORMAT = 1
#: What the rows are; written after them.
_INDEX = "probes.json"
_ROWS = "probes.arrow"
_SCHEMA = pa.schema([("item", pa.int64()), ("prompt", pa.int64()), ("ids", pa.list_(pa.int32()))])
#: Probes read at once when all are gone through.
_BLOCK = 1024
#: Bits of the number of a prompt: as many as a float64 holds exactly, so that numbers survive
#: JSON and tables with gaps.
_NUMBER_BITS = 53


class ProbeTable(Sequence[Probe]):
    """Probes on disk, as `probes_from_prompts` makes them; memory does not grow with their number.

    Rows are an Arrow file that ``datasets`` maps into memory. What was read stays in the page
    cache, which the system takes back when it needs room. Positions follow from lengths and are not
    stored.

    `Probe.prompt` is made from the text (`prompt_number`), since numbers by first appearance need
    all texts at once. It is a label and nothing else.

    Attributes:
        folder: Where the rows are.
        kinds: Position kinds of every probe.
        longest: Tokens of the longest sequence.
        dropped: Reason → number of prompts left out.
    """

    def __init__(self, folder: Path) -> None:
        """Open a table that `probe_table_from_prompts` made.

        Raises:
            RunError: Files are missing or damaged.
        """
        content = read_json(folder / _INDEX)
        if not (isinstance(content, dict) and content.get("format") == _FORMAT):
            raise RunError(
                f"{folder / _INDEX} is no index of probes of format {_FORMAT}: make the table again"
            )
        self.folder = folder
        self.kinds: tuple[str, ...] = tuple(content["kinds"])
        self.longest: int = content["longest"]
        self.dropped: dict[str, int] = content["dropped"]
        self._content_hash: str = content["content_hash"]
        self._rows = _mapped(folder / _ROWS)
        if len(self._rows) != content["rows"]:
            raise RunError(
                f"{folder / _ROWS} has {len(self._rows)} probes and {_INDEX} says "
                f"{content['rows']}: make the table again"
            )

    def __repr__(self) -> str:
        left_out = ", ".join(f"{count} {reason}" for reason, count in self.dropped.items())
        return (
            f"ProbeTable({len(self)} prompts; {', '.join(self.kinds)}; longest {self.longest} "
            f"tokens; left out: {left_out or 'none'})"
        )

    def __len__(self) -> int:
        return len(self._rows)

    @overload
    def __getitem__(self, index: int) -> Probe: ...

    @overload
    def __getitem__(self, index: slice) -> tuple[Probe, ...]: ...

    def __getitem__(self, index: int | slice) -> Probe | tuple[Probe, ...]:
        rows = range(len(self))
        if isinstance(index, slice):
            return tuple(_probes(self._rows, self.kinds, rows[index]))
        (probe,) = _probes(self._rows, self.kinds, [rows[index]])
        return probe

    def __iter__(self) -> Iterator[Probe]:
        return _all_probes(self._rows, self.kinds)

    def content_hash(self) -> str:
        """What `positions.content_hash` says of these probes; it was computed when they were made.

        Token ids, positions and prompts decide it, and not the process or the folder.
        """
        return self._content_hash


def probe_table_from_prompts(
    tokenizer: PreTrainedTokenizerBase,
    source: str | Path | Dataset | IterableDataset,
    folder: Path,
    *,
    column: str | None = None,
    kinds: Sequence[str] = PROMPT_KINDS,
    limit: int = 0,
    n_ctx: int | None = None,
) -> ProbeTable:
    """Tokenise prompts into a folder, a batch at a time.

    The probes are those of ``probes_from_prompts(tokenizer, load_prompts(source))``, but for the
    numbers of the prompts. Empty prompts are passed over; they and overlong ones are counted. A
    folder that holds the same prompts, tokenised with the same settings, is opened as it is.

    Args:
        tokenizer: The tokenizer of the base.
        source: A ``datasets`` object, a file of prompts, or a hub data set (`prompt_batches`).
        folder: Where the table is kept.
        column: Column of the texts; by default "prompt", else "text".
        kinds: Position kinds to read.
        limit: At most so many prompts; 0 for all.
        n_ctx: Leave longer sequences out; None keeps all.

    Raises:
        DataError: The source cannot be read, a prompt has no tokens or no k-th token, or nothing is
            left.
        ConfigurationError: An unknown kind of position.
        RunError: The folder cannot be written.
    """
    kinds = check_kinds(kinds, pairs=False)
    identity = source_key(source)
    key = hash_content([_FORMAT, identity, column, kinds, limit, n_ctx, _tokenizer_key(tokenizer)])
    if identity is not None and _holds(folder, key):
        return ProbeTable(folder)
    (folder / _INDEX).unlink(missing_ok=True)
    counts: Counter[str] = Counter()
    rows = longest = 0
    with (
        replacing(folder / _ROWS) as temporary,
        pa.OSFile(str(temporary), "wb") as file,
        pa.ipc.new_stream(file, _SCHEMA) as writer,
    ):
        texts = _limited(prompt_batches(source, column), limit, counts)
        for first, batch in texts:
            sequences = tokenizer(batch, verbose=False)["input_ids"]
            found = []
            for item, (text, ids) in enumerate(zip(batch, sequences, strict=True), first):
                if not ids:
                    raise DataError(f"prompt {item} has no tokens: {text!r}")
                if n_ctx is not None and len(ids) > n_ctx:
                    counts["longer than the context"] += 1
                    continue
                _positions(kinds, len(ids), item)
                found.append((item, prompt_number(text), ids))
                longest = max(longest, len(ids))
            rows += len(found)
            writer.write_batch(_record_batch(found))
    if not rows:
        (folder / _ROWS).unlink()
        raise DataError(
            f"{source_name(source)}: no prompt is left (left out: {dict(counts) or 'none'}); "
            "expected at least one text that fits the context"
        )
    if counts:
        logger.info("%s: prompts left out: %s", source_name(source), dict(counts))
    content = {
        "format": _FORMAT,
        "key": key,
        "rows": rows,
        "longest": longest,
        "kinds": kinds,
        "dropped": dict(sorted(counts.items())),
        "content_hash": positions.content_hash(_all_probes(_mapped(folder / _ROWS), kinds)),
    }
    write_json(folder / _INDEX, content)
    return ProbeTable(folder)


def prompt_number(text: str) -> int:
    """The first 53 bits of the SHA-256 of a prompt: the same in every set and process.

    Two of n different prompts share a number with a chance below n²/2⁵⁴, 6·10⁻⁵ for a million; they
    would then be resampled together, and nothing else.
    """
    digest = hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()
    return int.from_bytes(digest[:8], "big") >> (64 - _NUMBER_BITS)


def _limited(
    batches: Iterator[list[str]], limit: int, counts: Counter[str]
) -> Iterator[tuple[int, list[str]]]:
    """Batches without empty prompts, each with the number of its first."""
    first = 0
    for batch in batches:
        kept = [text for text in batch if text.strip()]
        if limit and first + len(kept) >= limit:
            yield first, kept[: limit - first]
            return
        if len(kept) < len(batch):
            counts["empty"] += len(batch) - len(kept)
        if kept:
            yield first, kept
        first += len(kept)


def _holds(folder: Path, key: str) -> bool:
    try:
        content = read_json(folder / _INDEX)
        return (
            isinstance(content, dict) and content.get("key") == key and len(ProbeTable(folder)) > 0
        )
    except RunError:
        return False


def _tokenizer_key(tokenizer: PreTrainedTokenizerBase) -> str:
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        return hash_content([type(tokenizer).__name__, repr(tokenizer), tokenizer.get_vocab()])
    settings = json.loads(backend.to_str())
    for name in ("padding", "truncation"):  # of its last call, and not its own
        settings.pop(name, None)
    return hash_content(settings)


def _record_batch(rows: Sequence[tuple[int, int, Sequence[int]]]) -> Any:
    columns = list(zip(*rows, strict=True)) or [(), (), ()]
    return pa.record_batch(
        [pa.array(column, type=field.type) for column, field in zip(columns, _SCHEMA, strict=True)],
        schema=_SCHEMA,
    )


def _mapped(path: Path) -> Any:
    from datasets import Dataset

    try:
        return Dataset.from_file(str(path))
    except (OSError, ValueError) as error:
        raise RunError(f"{path} cannot be read ({error}): make the table again") from error


def _all_probes(rows: Any, kinds: Sequence[str]) -> Iterator[Probe]:
    for start in range(0, len(rows), _BLOCK):
        yield from _probes(rows, kinds, range(start, min(start + _BLOCK, len(rows))))


def _probes(rows: Any, kinds: Sequence[str], indices: Sequence[int]) -> Iterator[Probe]:
    if not indices:
        return
    found = rows[indices]
    for item, prompt, ids in zip(found["item"], found["prompt"], found["ids"], strict=True):
        yield Probe(prompt, tuple(ids), _positions(kinds, len(ids), item), item=item)


def _positions(kinds: Sequence[str], length: int, item: int) -> dict[str, tuple[int, ...]]:
    found: dict[str, tuple[int, ...]] = {}
    for kind in kinds:
        position = length - 1 if kind == "last_prompt" else int(kind.removeprefix("token."))
        if position >= length:
            raise DataError(f"prompt {item} has {length} tokens, so it has no position {kind!r}")
        found[kind] = (position,)
    return found
