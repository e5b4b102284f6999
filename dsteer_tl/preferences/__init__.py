"""Preferences: pairs from files, hubs and the model itself, and where their completions part."""

from __future__ import annotations

from dsteer_tl.preferences.conversational import preferences_from_conversations
from dsteer_tl.preferences.divergence import (
    Divergence,
    EncodedPair,
    divergence_position,
    encode_pair,
)
from dsteer_tl.preferences.hh import preferences_from_dialogues
from dsteer_tl.preferences.oasst import preferences_from_messages, preferences_from_trees
from dsteer_tl.preferences.preference_set import (
    PreferencePair,
    PreferenceSet,
    Split,
    describe_dropped,
)
from dsteer_tl.preferences.prompts import load_prompts
from dsteer_tl.preferences.records import Record, read_records
from dsteer_tl.preferences.sampling import (
    Generate,
    SamplingConfiguration,
    rank_preferences,
    sample_completions,
    sample_preferences,
    sample_prompts,
)
from dsteer_tl.preferences.scorers import SCORERS, Scorer, get_scorer, length_scorer, vader_scorer
from dsteer_tl.preferences.source import Layout, load_preferences
from dsteer_tl.preferences.tables import preferences_from_columns, preferences_from_rewrites

__all__ = [
    "PreferencePair",
    "PreferenceSet",
    "Split",
    "describe_dropped",
    "load_preferences",
    "Layout",
    "Record",
    "read_records",
    "preferences_from_dialogues",
    "preferences_from_trees",
    "preferences_from_messages",
    "preferences_from_columns",
    "preferences_from_rewrites",
    "preferences_from_conversations",
    "load_prompts",
    "Scorer",
    "SCORERS",
    "get_scorer",
    "vader_scorer",
    "length_scorer",
    "Generate",
    "SamplingConfiguration",
    "sample_preferences",
    "sample_prompts",
    "sample_completions",
    "rank_preferences",
    "EncodedPair",
    "Divergence",
    "encode_pair",
    "divergence_position",
]
