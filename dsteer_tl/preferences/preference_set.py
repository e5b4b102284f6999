"""`PreferenceSet`: the pairs (prompt, chosen, rejected) that every later stage reads."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal, cast

from dsteer_tl.errors import ConfigurationError, DataError
from dsteer_tl.preferences.dialogues import opening
from dsteer_tl.preferences.divergence import encode_pair
from dsteer_tl.preferences.records import field_text, read_records
from dsteer_tl.preferences.storage import counts_path, read_counts, write_counts, write_whole

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Split = Literal["train", "held_out"]


@dataclass(frozen=True, slots=True)
class PreferencePair:
    """One prompt with the completion people (or a scorer) prefer and the one they do not.

    All three are plain text. The model sees `tokenizer(prompt)`, with its special tokens, followed
    by `tokenizer(completion, add_special_tokens=False)`. Completions end without the text of the
    end-of-sequence token: training adds that token itself.

    Attributes:
        prompt: what both completions continue.
        chosen: y_w, the preferred completion.
        rejected: y_l, the other one.
        split: the side of the split, or None before `PreferenceSet.split`.
        source: where the pair comes from, for people to read.
    """

    prompt: str
    chosen: str
    rejected: str
    split: Split | None = None
    source: str = ""


@dataclass(frozen=True, slots=True)
class PreferenceSet:
    """An ordered, immutable set of pairs and the count of every pair that was left out of it.

    Build one with `from_pairs`, `load` or `load_preferences`; the constructor checks nothing.

    Attributes:
        pairs: the pairs, in the order of their source.
        dropped: reason → number of candidate pairs left out for it.
        name: what reports call the set.
    """

    pairs: tuple[PreferencePair, ...]
    dropped: Mapping[str, int] = field(default_factory=dict)
    name: str = "preferences"

    def __len__(self) -> int:
        return len(self.pairs)

    def __iter__(self) -> Iterator[PreferencePair]:
        return iter(self.pairs)

    @classmethod
    def from_pairs(
        cls,
        pairs: Iterable[PreferencePair],
        *,
        name: str,
        dropped: Mapping[str, int] | None = None,
    ) -> PreferenceSet:
        """Keep the usable pairs and count the others: the one place where pairs are dropped.

        A pair is dropped when its prompt, chosen or rejected text is empty, or when chosen and
        rejected are the same text (surrounding white space apart).

        Args:
            pairs: candidate pairs.
            name: what reports call the set.
            dropped: what the source already left out, reason → count.

        Raises:
            DataError: nothing is left.
        """
        counts = Counter(dropped or {})
        kept = []
        for pair in pairs:
            reason = _reason_to_drop(pair)
            if reason is None:
                kept.append(pair)
            else:
                counts[reason] += 1
        if not kept:
            raise DataError(
                f"{name}: no usable pair is left (dropped: {describe_dropped(counts)}); "
                f"expected at least one pair with a prompt and two different completions"
            )
        return cls(tuple(kept), _tidy(counts), name)

    @property
    def prompts(self) -> tuple[str, ...]:
        """The prompt of every pair, repeated where several pairs share it."""
        return tuple(pair.prompt for pair in self.pairs)

    @property
    def train(self) -> PreferenceSet:
        """The training side of a set that was split."""
        return self._side("train")

    @property
    def held_out(self) -> PreferenceSet:
        """The held-out side of a set that was split."""
        return self._side("held_out")

    def split(
        self,
        held_out_share: float,
        seed: int,
        *,
        group_by: Literal["prompt", "rejected"] = "prompt",
    ) -> PreferenceSet:
        """Assign every pair to "train" or "held_out" without leakage.

        Pairs with one prompt stay together, and so do all prompts of one dialogue, whatever their
        depth: they share the first human turn, and a deeper prompt quotes earlier answers. Groups
        are ordered by a hash of the seed and their text, so that the order of rows plays no part,
        and fill the held-out side until it has its share of the pairs.

        Args:
            held_out_share: share of the pairs to hold out, in [0, 1).
            seed: another seed, another split.
            group_by: "rejected" keeps together what shares its rejected text; for sets in which
                every pair has the same prompt.

        Raises:
            ConfigurationError: the share is outside [0, 1).
            DataError: there are fewer than two groups, so one side would be empty.
        """
        if not 0 <= held_out_share < 1:
            raise ConfigurationError(
                f"held_out_share is {held_out_share}; expected a number from 0 up to, not with, 1"
            )
        keys = [opening(p.prompt) if group_by == "prompt" else p.rejected for p in self.pairs]
        sizes = Counter(keys)
        if held_out_share > 0 and len(sizes) < 2:
            raise DataError(
                f"{self.name}: {len(self)} pairs share one {group_by}, so they cannot be split "
                f"without leakage; add pairs with other prompts"
                + (', or split with group_by="rejected"' if group_by == "prompt" else "")
            )
        groups = sorted(sizes, key=lambda key: _digest(seed, key))
        held_out: set[str] = set()
        taken = 0
        for group in groups[:-1]:  # the last group always trains
            if taken >= held_out_share * len(self):
                break
            held_out.add(group)
            taken += sizes[group]
        return replace(
            self,
            pairs=tuple(
                replace(pair, split="held_out" if key in held_out else "train")
                for pair, key in zip(self.pairs, keys, strict=True)
            ),
        )

    def limit(self, n: int, seed: int) -> PreferenceSet:
        """At most `n` pairs, drawn by a hash of seed and content, kept in their order.

        Raises:
            ConfigurationError: `n` is below 1.
        """
        if n < 1:
            raise ConfigurationError(f"limit is {n}; expected at least 1 pair")
        order = sorted(
            range(len(self)),
            key=lambda i: _digest(
                seed, self.pairs[i].prompt, self.pairs[i].chosen, self.pairs[i].rejected
            ),
        )
        return replace(self, pairs=tuple(self.pairs[i] for i in sorted(order[:n])))

    def without_overlong(
        self, tokenizer: PreTrainedTokenizerBase, n_ctx: int, *, strict: bool = False
    ) -> PreferenceSet:
        """Drop the pairs that the model's context cannot hold.

        The length of a pair is that of its prompt and its longer completion in tokens, plus one
        for the end-of-sequence token that training adds.

        Args:
            tokenizer: the model's tokenizer.
            n_ctx: the model's context, in tokens.
            strict: raise at the first such pair instead of dropping it.

        Raises:
            DataError: with `strict`, naming row, length and context; or nothing is left.
        """
        kept = []
        for row, pair in enumerate(self.pairs):
            encoded = encode_pair(tokenizer, pair)
            completion = max(len(encoded.chosen_ids), len(encoded.rejected_ids))
            length = len(encoded.prompt_ids) + completion + 1
            if length <= n_ctx:
                kept.append(pair)
            elif strict:
                raise DataError(
                    f"{self.name}, row {row}: {length} tokens with the end-of-sequence token, "
                    f"longer than the context of {n_ctx}; shorten the pair, or drop such pairs "
                    f"with without_overlong(strict=False)"
                )
        counts = Counter(self.dropped)
        counts["longer than the context"] += len(self) - len(kept)
        return PreferenceSet.from_pairs(kept, name=self.name, dropped=counts)

    def save(self, path: str | Path) -> Path:
        """Write one pair a line as JSON, and name and dropped counts to `<stem>.dropped.json`.

        Both files are written under temporary names and renamed, the pairs last, so that a file of
        pairs is always whole and always has its counts.

        Raises:
            ConfigurationError: the path does not end in .jsonl.
        """
        path = Path(path)
        if path.suffix != ".jsonl":
            raise ConfigurationError(f"{path}: preferences are saved as .jsonl; change the ending")
        path.parent.mkdir(parents=True, exist_ok=True)
        write_counts(counts_path(path), self.name, self.dropped)
        rows = (json.dumps(asdict(pair), ensure_ascii=False) for pair in self.pairs)
        write_whole(path, "".join(row + "\n" for row in rows))
        return path

    @classmethod
    def load(cls, path: str | Path) -> PreferenceSet:
        """Read what `save` wrote; a JSONL file without its counts is read as nothing dropped.

        Raises:
            DataError: the file is missing, empty, malformed, or has nothing usable in it.
        """
        path = Path(path)
        pairs = []
        for record in read_records(path):
            split = record.values.get("split")
            if split not in (None, "train", "held_out"):
                raise DataError(
                    f'{record.where}: split is {split!r}; expected "train", "held_out" or null'
                )
            pairs.append(
                PreferencePair(
                    prompt=field_text(record, "prompt"),
                    chosen=field_text(record, "chosen"),
                    rejected=field_text(record, "rejected"),
                    split=cast("Split | None", split),
                    source=str(record.values.get("source", "")),
                )
            )
        counts = counts_path(path)
        name, dropped = read_counts(counts) if counts.is_file() else (path.stem, None)
        return cls.from_pairs(pairs, name=name, dropped=dropped)

    def content_hash(self) -> str:
        """SHA-256 (hex) of the pairs as canonical JSON, in their order; name and counts apart."""
        rows = [asdict(pair) for pair in self.pairs]
        text = json.dumps(rows, ensure_ascii=False, sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()

    def _side(self, side: Split) -> PreferenceSet:
        if any(pair.split is None for pair in self.pairs):
            raise DataError(
                f"{self.name}: not every pair has a side; call split(held_out_share, seed) before "
                f"asking for .{side}"
            )
        pairs = tuple(pair for pair in self.pairs if pair.split == side)
        return PreferenceSet(pairs, {}, self.name)


def describe_dropped(dropped: Mapping[str, int]) -> str:
    """The counts as a line for people: "2 identical chosen and rejected, 9 differing prompts"."""
    return ", ".join(f"{count} {reason}" for reason, count in _tidy(dropped).items()) or "none"


def _reason_to_drop(pair: PreferencePair) -> str | None:
    prompt, chosen, rejected = pair.prompt.strip(), pair.chosen.strip(), pair.rejected.strip()
    if not prompt:
        return "empty prompt"
    if chosen == rejected:
        return "identical chosen and rejected"
    if not chosen:
        return "empty chosen"
    if not rejected:
        return "empty rejected"
    return None


def _tidy(counts: Mapping[str, int]) -> dict[str, int]:
    return {reason: count for reason, count in sorted(counts.items()) if count}


def _digest(seed: int, *texts: str) -> bytes:
    data = json.dumps([seed, *texts]).encode()
    return hashlib.sha256(data).digest()
