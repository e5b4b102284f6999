from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dsteer_tl.errors import ConfigurationError, DataError
from dsteer_tl.preferences import PreferencePair, PreferenceSet


def make_set(prompts: list[str]) -> PreferenceSet:
    return PreferenceSet.from_pairs(
        [PreferencePair(p, f" good {i}", f" bad {i}") for i, p in enumerate(prompts)], name="toy"
    )


prompt_lists = st.lists(
    st.sampled_from([f"prompt {i}" for i in range(12)]), min_size=2, max_size=60
)
proper = prompt_lists.filter(lambda prompts: len(set(prompts)) > 1)


def test_unusable_pairs_are_dropped_and_counted_by_reason() -> None:
    pairs = [
        PreferencePair("p", " a", " b"),
        PreferencePair("p", " a", "a "),
        PreferencePair("p", " ", " b"),
        PreferencePair("p", " a", ""),
        PreferencePair("\n", " a", " b"),
    ]
    preferences = PreferenceSet.from_pairs(pairs, name="toy", dropped={"differing prompts": 3})
    assert list(preferences) == pairs[:1]
    assert preferences.dropped == {
        "differing prompts": 3,
        "identical chosen and rejected": 1,
        "empty chosen": 1,
        "empty rejected": 1,
        "empty prompt": 1,
    }


def test_nothing_left_is_an_error_with_the_counts() -> None:
    with pytest.raises(DataError, match=r"toy: no usable pair.*1 empty prompt, 2 equal ranks"):
        PreferenceSet.from_pairs(
            [PreferencePair("", "a", "b")], name="toy", dropped={"equal ranks": 2}
        )


@settings(deadline=None, max_examples=30)
@given(prompts=proper, share=st.floats(0.01, 0.99), seed=st.integers(0, 99))
def test_split_keeps_prompts_apart_and_both_sides_filled(
    prompts: list[str], share: float, seed: int
) -> None:
    preferences = make_set(prompts).split(share, seed)
    train, held_out = preferences.train, preferences.held_out
    assert len(train) + len(held_out) == len(prompts)
    assert not set(train.prompts) & set(held_out.prompts)
    assert train.prompts
    assert held_out.prompts


@settings(deadline=None, max_examples=30)
@given(prompts=proper, seed=st.integers(0, 99))
def test_split_does_not_depend_on_the_order_of_rows(prompts: list[str], seed: int) -> None:
    preferences = make_set(prompts)
    pairs = list(preferences)
    random.Random(seed).shuffle(pairs)
    shuffled = PreferenceSet.from_pairs(pairs, name="toy")
    assert set(preferences.split(0.3, seed)) == set(shuffled.split(0.3, seed))


def test_split_takes_the_share_and_changes_with_the_seed() -> None:
    preferences = make_set([f"prompt {i}" for i in range(200)])
    assert len(preferences.split(0.25, 0).held_out) == 50
    assert preferences.split(0.25, 0) == preferences.split(0.25, 0)
    assert preferences.split(0.25, 0) != preferences.split(0.25, 1)
    assert len(preferences.split(0.0, 0).held_out) == 0


def test_split_keeps_all_depths_of_a_dialogue_on_one_side() -> None:
    first = [f"\n\nHuman: question {i}\n\nAssistant:" for i in range(30)]
    deeper = [f"{p} answer\n\nHuman: and then?\n\nAssistant:" for p in first]
    preferences = make_set([*first, *deeper]).split(0.4, 0)
    held_out = set(preferences.held_out.prompts)
    assert len(held_out) == 24
    assert all((p in held_out) == (q in held_out) for p, q in zip(first, deeper, strict=True))


def test_split_of_one_prompt_is_refused_unless_grouped_by_rejected() -> None:
    preferences = make_set(["same"] * 4)
    with pytest.raises(DataError, match=r"4 pairs share one prompt.*group_by=\"rejected\""):
        preferences.split(0.5, 0)
    assert len(preferences.split(0.5, 0, group_by="rejected").held_out) == 2


@pytest.mark.parametrize("share", [-0.1, 1.0, float("nan")])
def test_split_refuses_shares_outside_the_range(share: float) -> None:
    with pytest.raises(ConfigurationError, match="held_out_share is"):
        make_set(["a", "b"]).split(share, 0)


def test_sides_need_a_split() -> None:
    with pytest.raises(DataError, match=r"call split.*before asking for \.train"):
        _ = make_set(["a", "b"]).train


def test_limit_draws_by_seed_and_keeps_the_order() -> None:
    preferences = make_set([f"prompt {i}" for i in range(50)])
    limited = preferences.limit(10, 0)
    positions = [list(preferences).index(pair) for pair in limited]
    assert len(positions) == 10
    assert positions == sorted(positions)
    assert limited != preferences.limit(10, 1)
    assert preferences.limit(99, 0) == preferences
    with pytest.raises(ConfigurationError, match="at least 1"):
        preferences.limit(0, 0)


def test_overlong_pairs_are_dropped_or_named(gpt2_tokenizer: Any) -> None:
    pairs = [PreferencePair("one", " two", " three"), PreferencePair("one", " two" * 5, " three")]
    preferences = PreferenceSet.from_pairs(pairs, name="toy")
    # one + five + end of sequence = 7 tokens
    assert list(preferences.without_overlong(gpt2_tokenizer, 7)) == pairs
    kept = preferences.without_overlong(gpt2_tokenizer, 6)
    assert list(kept) == pairs[:1]
    assert kept.dropped == {"longer than the context": 1}
    with pytest.raises(DataError, match=r"toy, row 1: 7 tokens.*context of 6"):
        preferences.without_overlong(gpt2_tokenizer, 6, strict=True)


def test_save_and_load_return_the_same_set(tmp_path: Path) -> None:
    pairs = [PreferencePair(f"p{i}\u2028\n", " ä", " b\t", source="x") for i in range(4)]
    preferences = PreferenceSet.from_pairs(pairs, name="toy", dropped={"equal ranks": 2})
    preferences = preferences.split(0.5, 0)
    path = preferences.save(tmp_path / "run" / "preferences.jsonl")
    assert PreferenceSet.load(path) == preferences
    assert {p.name for p in path.parent.iterdir()} == {
        "preferences.jsonl",
        "preferences.dropped.json",
    }
    assert json.loads(path.read_text().split("\n")[0])["prompt"] == "p0\u2028\n"


def test_an_interrupted_save_leaves_the_old_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = make_set(["old"]).save(tmp_path / "preferences.jsonl")
    before = path.read_bytes()

    def fail(self: Path, target: Path) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Path, "replace", fail)
    with pytest.raises(KeyboardInterrupt):
        make_set(["new"]).save(path)
    assert path.read_bytes() == before


def test_save_refuses_another_ending(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"saved as \.jsonl"):
        make_set(["a"]).save(tmp_path / "preferences.jsonl.gz")


def test_load_reads_hand_made_files_and_refuses_unknown_sides(tmp_path: Path) -> None:
    path = tmp_path / "mine.jsonl"
    row = {"prompt": "p", "chosen": " a", "rejected": " b"}
    path.write_text(json.dumps(row) + "\n")
    assert PreferenceSet.load(path) == PreferenceSet((PreferencePair("p", " a", " b"),), {}, "mine")
    path.write_text(json.dumps({**row, "split": "test"}) + "\n")
    with pytest.raises(DataError, match=r"line 1: split is 'test'; expected \"train\""):
        PreferenceSet.load(path)


def test_load_refuses_damaged_counts(tmp_path: Path) -> None:
    path = make_set(["a"]).save(tmp_path / "p.jsonl")
    (tmp_path / "p.dropped.json").write_text("[]")
    with pytest.raises(DataError, match=r"p\.dropped\.json: not the counts"):
        PreferenceSet.load(path)


def test_content_hash_follows_content_alone() -> None:
    preferences = make_set(["a", "b"])
    renamed = PreferenceSet(preferences.pairs, {"x": 1}, "other")
    assert preferences.content_hash() == renamed.content_hash()
    assert len(preferences.content_hash()) == 64
    assert preferences.content_hash() != make_set(["b", "a"]).content_hash()
    assert preferences.content_hash() != preferences.split(0.5, 0).content_hash()
