"""Where the direction comes from: supervised training, shuffled pairs, seeds and other data."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import pandas as pd

from dsteer_tl.errors import ConfigurationError
from dsteer_tl.preferences import PreferenceSet, load_preferences
from dsteer_tl.preferences.exchanging import exchanged_at_random
from dsteer_tl.stress.columns import CONTROL
from dsteer_tl.stress.inputs import StressInputs
from dsteer_tl.stress.variant_training import Variant
from dsteer_tl.stress.variants import AS_RUN, VariantBench

SFT, SHUFFLED = "sft_on_chosen", "shuffled_pairs"
#: Share of other data that is held out, to measure on.
_HELD_OUT_SHARE = 0.25


def causes_table(inputs: StressInputs) -> pd.DataFrame:
    """The table ``stress_causes``: the run's recipe on other labels, losses, seeds and data.

    ``sft_on_chosen`` raises the log-probability of the chosen texts alone (TRL's loss ``sft``);
    ``other_seed`` is the run's recipe with the next seed. With `StressConfiguration.transfer`, the
    recipe is trained on up to as many pairs of other data, and both policies are measured on both
    data: ``cos_to_reference`` compares the vectors, ``recovered_of_reference`` says how much of the
    KL of the policy of that data the other's vector removes. Controls: pairs exchanged at random, a
    random vector of the reference's length, and random weight changes.

    Raises:
        ConfigurationError: The policy was given, so that there is no recipe; there are no pairs; or
            an entry of ``transfer`` is not ``NAME=FILE``.
        DataError: Other data cannot be read.
    """
    bench = VariantBench(inputs, "causes")
    transfers = [_transfer(bench, entry) for entry in inputs.settings.transfer]
    shuffled = exchanged_at_random(bench.preferences, inputs.settings.seed)
    reference = bench.measure_reference()
    own = [
        reference,
        *bench.measure(
            bench.variant(SFT, loss_type="sft"),
            bench.other_seed(),
            *(transfer.variant for transfer in transfers),
        ),
        *bench.measure(bench.variant(SHUFFLED, shuffled), role=CONTROL),
        bench.random_vector(),
        *bench.measure_random_weights(),
    ]
    tables = [bench.summary(own)]
    for transfer in transfers:
        there = VariantBench(inputs, "causes", transfer.variant.preferences.held_out)
        elsewhere = [
            there.measure_reference(transfer.variant),
            *there.measure(bench.variant(AS_RUN)),
            there.random_vector(),
        ]
        tables.append(there.summary(elsewhere, data=transfer.name))
    return pd.concat(tables, ignore_index=True)


@dataclass(frozen=True, slots=True)
class _Transfer:
    name: str
    variant: Variant


def _transfer(bench: VariantBench, entry: str) -> _Transfer:
    name, _, source = entry.partition("=")
    if not name or not source or Path(name).name != name:
        raise ConfigurationError(
            f"stress.transfer has {entry!r}; expected NAME=FILE, as in hh=pairs.jsonl.gz"
        )
    pairs = _fitting(bench, load_preferences(source, tokenizer=bench.tokenizer, name=name))
    return _Transfer(name, bench.variant(f"data_{name}", pairs))


def _fitting(bench: VariantBench, pairs: PreferenceSet) -> PreferenceSet:
    """Pairs that fit the context, split, and at most as many training pairs as the run has."""
    seed = bench.inputs.settings.seed
    whole = pairs.without_overlong(bench.tokenizer, bench.base.n_ctx, strict=False)
    split = whole.split(_HELD_OUT_SHARE, seed)
    training = split.train.limit(max(1, len(bench.preferences.train)), seed)
    held_out = split.held_out.limit(bench.inputs.settings.prompts, seed)
    return replace(split, pairs=(*training, *held_out))
