"""Pairs made from running text: what is chosen, rejected, dropped and refused."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import TypeAdapter, ValidationError
from transformers import GPT2TokenizerFast

from dsteer_tl.errors import ConfigurationError, DataError
from dsteer_tl.lens_model import LensModel, load_lens_model, pad
from dsteer_tl.pair import ModelPair
from dsteer_tl.preferences import PreferenceSet, encode_pair
from dsteer_tl.toxicity.continuation_pairs import (
    ContinuationConfiguration,
    _pairs,
    continuation_pairs,
    text_prompts,
)
from dsteer_tl.toxicity.guided_generation import GuidanceConfiguration
from dsteer_tl.toxicity.linear_probe import LinearProbe
from tests.models import random_model

SMALL = ContinuationConfiguration(
    prompts=8,
    prompt_tokens_min=4,
    prompt_tokens_max=12,
    max_new_tokens=6,
    samples=4,
    guidance=GuidanceConfiguration(strength=0.15),
    margin=1e-4,
    batch_size=8,
    seed=1,
)


@dataclass(frozen=True)
class Vowels:
    """The share of one letter: an attribute that is easy to recompute."""

    missing: str = ""
    name: str = "vowels"
    source: str = "this test"

    def obstacle(self) -> str:
        return self.missing

    def score(self, texts: Sequence[str]) -> np.ndarray:
        return np.array([text.count("e") / max(len(text), 1) for text in texts])

    def words(self) -> frozenset[str]:
        return frozenset()


@pytest.fixture(scope="module")
def wikitext(shared_folder: Path) -> list[str]:
    path = shared_folder / "data" / "evaluation" / "wikitext2_test.txt"
    return path.read_text("utf-8").splitlines()


@pytest.fixture(scope="module")
def probe(stories_pair: ModelPair) -> LinearProbe:
    lens = stories_pair.base
    weight = np.random.default_rng(0).normal(size=lens.d_model) / 8
    return LinearProbe(weight=weight, bias=0.0, site=f"resid_post.{lens.n_layers - 1}", texts=0)


@pytest.fixture(scope="module")
def guided(stories_pair: ModelPair, wikitext: list[str], probe: LinearProbe) -> PreferenceSet:
    base, tokenizer = stories_pair.base, stories_pair.tokenizer
    return continuation_pairs(base, tokenizer, wikitext, SMALL, probe=probe, progress=False)


@pytest.fixture(scope="module")
def selected(stories_pair: ModelPair, wikitext: list[str]) -> PreferenceSet:
    base, tokenizer = stories_pair.base, stories_pair.tokenizer
    configuration = replace(SMALL, rejected="selected")
    return continuation_pairs(
        base, tokenizer, wikitext, configuration, scorer=Vowels(), progress=False
    )


def probability(lens: LensModel, tokenizer: Any, probe: LinearProbe, ids: Sequence[int]) -> float:
    """σ of the probe's logit, the residuals read one text at a time."""
    batch = pad([ids])
    with torch.no_grad(), lens.reading([probe.site]) as kept:
        lens.forward(batch.ids, batch.mask)
    real = [place for place, token in enumerate(ids) if token not in tokenizer.all_special_ids]
    mean = kept[probe.site][0, real].double().mean(dim=0).numpy()
    return float(1 / (1 + np.exp(-(mean @ probe.weight + probe.bias))))


@pytest.mark.parametrize("kind", ["guided", "selected"])
def test_pairs_of_the_real_model(
    kind: str, request: pytest.FixtureRequest, stories_pair: ModelPair, wikitext: list[str]
) -> None:
    pairs: PreferenceSet = request.getfixturevalue(kind)
    lens, tokenizer = stories_pair.base, stories_pair.tokenizer
    assert len(pairs) + sum(pairs.dropped.values()) == SMALL.prompts
    assert len(pairs) >= 4
    assert pairs.name == pairs.pairs[0].source == "continuations"
    text = "\n".join(wikitext)
    assert len(set(pairs.prompts)) == len(pairs)
    for pair in pairs:
        assert pair.prompt in text
        encoded = encode_pair(tokenizer, pair)
        assert 4 <= len(encoded.prompt_ids) - 1 <= 12  # beside <s>
        batch = pad([encoded.prompt_ids])
        whole = lens.generate(batch.ids, batch.mask, max_new_tokens=6)[0].tolist()
        joined = (*encoded.prompt_ids, *encoded.chosen_ids)
        assert tokenizer.decode(joined) == tokenizer.decode(whole).removesuffix("</s>")


def test_guided_ones_are_more_probable_under_the_probe(
    guided: PreferenceSet, stories_pair: ModelPair, probe: LinearProbe
) -> None:
    for pair in guided:
        encoded = encode_pair(stories_pair.tokenizer, pair)
        rejected, chosen = (
            probability(
                stories_pair.base,
                stories_pair.tokenizer,
                probe,
                (*encoded.prompt_ids, *ids),
            )
            for ids in (encoded.rejected_ids, encoded.chosen_ids)
        )
        assert rejected - chosen >= SMALL.margin - 1e-5


def test_the_margin_drops_and_counts(
    stories_pair: ModelPair, wikitext: list[str], selected: PreferenceSet
) -> None:
    scorer = Vowels()
    differences = sorted(
        float(np.diff(scorer.score([pair.chosen, pair.rejected]))[0]) for pair in selected
    )
    assert differences[0] >= SMALL.margin
    fewer = continuation_pairs(
        stories_pair.base,
        stories_pair.tokenizer,
        wikitext,
        replace(SMALL, rejected="selected", margin=differences[-2] - 1e-9, batch_size=3),
        scorer=scorer,
        progress=False,
    )
    # Other batches, the same samples: what is left is part of what was there.
    assert set(fewer) < set(selected)
    assert len(fewer) == 2
    lost = len(selected) - len(fewer)
    assert fewer.dropped["below the margin"] == selected.dropped.get("below the margin", 0) + lost


def test_the_candidate_with_the_highest_score_is_rejected() -> None:
    scores = {" a": 0.1, " b": 0.4, " c": 0.9, " d": 0.15}
    asked: list[tuple[str, str]] = []

    def judge(written: Sequence[tuple[str, str]]) -> np.ndarray:
        asked.extend(written)
        return np.array([scores[text] for _, text in written])

    texts = [
        (" a", [" b", " c", " d"]),
        (" a", [" d"]),
        ("", [" b"]),
        (" a", ["", " "]),
        (" c", [" b", " c"]),
        (" d", ["", " b"]),
    ]
    found = _pairs("123456", texts, judge, 0.1, "test")
    assert [(pair.prompt, pair.chosen, pair.rejected) for pair in found] == [
        ("1", " a", " c"),
        ("6", " d", " b"),
    ]
    assert found.dropped == {
        "below the margin": 1,
        "empty chosen": 1,
        "empty rejected": 1,
        "identical chosen and rejected": 1,
    }
    assert all(text.strip() for _, text in asked)


def test_a_seed_repeats_and_another_differs(
    stories_pair: ModelPair, wikitext: list[str], guided: PreferenceSet, probe: LinearProbe
) -> None:
    def again(seed: int) -> PreferenceSet:
        return continuation_pairs(
            stories_pair.base,
            stories_pair.tokenizer,
            wikitext,
            replace(SMALL, seed=seed),
            probe=probe,
            progress=False,
        )

    assert again(1) == guided
    assert not set(again(2).prompts) & set(guided.prompts)


def test_the_set_is_saved_and_read_again(guided: PreferenceSet, tmp_path: Path) -> None:
    assert PreferenceSet.load(guided.save(tmp_path / "preferences.jsonl")) == guided


@pytest.mark.parametrize("kind", ["guided", "selected"])
def test_gpt2_with_its_own_tokenizer(kind: str, shared_folder: Path, wikitext: list[str]) -> None:
    folder = shared_folder / "models" / "gpt2-tokenizer"
    tokenizer = GPT2TokenizerFast(
        vocab=str(folder / "vocab.json"), merges=str(folder / "merges.txt")
    )
    end = len(tokenizer) - 1
    lens = load_lens_model(
        random_model("gpt2", vocab_size=len(tokenizer), bos_token_id=end, eos_token_id=end)
    )
    weight = np.random.default_rng(0).normal(size=lens.d_model) / 4
    found = continuation_pairs(
        lens,
        tokenizer,
        wikitext,
        replace(SMALL, rejected=kind, margin=1e-6),  # type: ignore[arg-type]
        probe=LinearProbe(weight=weight, bias=0.0, site="resid_post.1", texts=0),
        progress=False,
    )
    assert len(found) + sum(found.dropped.values()) == SMALL.prompts
    text = "\n".join(wikitext)
    for pair in found:
        assert pair.prompt in text
        encoded = encode_pair(tokenizer, pair)
        assert 4 <= len(encoded.prompt_ids) <= 12
        # Bytes of a random model seldom make whole characters: those that do are kept.
        assert tokenizer.decode(encoded.rejected_ids) == pair.rejected


def test_prompts_are_distinct_beginnings_of_sentences(stories_pair: ModelPair) -> None:
    lines = [
        " = A heading about the river = ",
        "",
        ' The old man went to the river . He saw the water ! " Is it low ? " he said . ',
        " The old man went to the river . ",
        " Wonderfulness.",
    ]
    whole = replace(SMALL, prompts=3, prompt_tokens_min=3, prompt_tokens_max=60)
    found = {
        prompt
        for seed in range(30)
        for prompt in text_prompts(stories_pair.tokenizer, lines, replace(whole, seed=seed))
    }
    sentences = ["The old man went to the river .", "He saw the water !", '" Is it low ?']
    starts = {
        " ".join(sentence.split()[:words])
        for sentence in [*sentences, '" he said .', "Wonderfulness."]
        for words in range(1, 9)
    }
    assert found <= starts
    assert set(sentences) <= found
    assert len(found) > len(sentences)


def test_a_text_that_is_too_short_says_so(stories_pair: ModelPair) -> None:
    settings = replace(SMALL, prompt_tokens_min=5)
    with pytest.raises(DataError, match=r"2 different sentences and gives 1 distinct .*expected 8"):
        text_prompts(stories_pair.tokenizer, ["The dog ran home. No. The dog ran home."], settings)


def test_nothing_to_judge_or_guide_by(
    stories_pair: ModelPair, wikitext: list[str], probe: LinearProbe
) -> None:
    def run(rejected: str, **judges: Any) -> None:
        configuration = replace(SMALL, rejected=rejected)  # type: ignore[arg-type]
        base, tokenizer = stories_pair.base, stories_pair.tokenizer
        continuation_pairs(base, tokenizer, wikitext, configuration, progress=False, **judges)

    with pytest.raises(ConfigurationError, match="a scorer or a probe"):
        run("selected")
    with pytest.raises(ConfigurationError, match="guided continuations need a probe"):
        run("guided", scorer=Vowels())
    with pytest.raises(ConfigurationError, match="'vowels' cannot judge: no letters here"):
        run("selected", scorer=Vowels(missing="no letters here"), probe=probe)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"rejected": "other"}, "rejected is 'other'; expected 'guided' or 'selected'"),
        ({"prompts": 0}, "prompts is 0"),
        ({"prompt_tokens_min": 9, "prompt_tokens_max": 8}, "prompt_tokens_max is 8; .* least 9"),
        ({"samples": 0}, "samples is 0"),
        ({"temperature": 0.0}, r"temperature is 0\.0"),
        ({"top_p": 1.5}, r"top_p is 1\.5"),
        ({"margin": 0.0}, r"margin is 0\.0"),
        ({"batch_size": 0}, "batch_size is 0"),
    ],
)
def test_settings_out_of_range(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        ContinuationConfiguration(**settings)


def test_settings_as_a_file_writes_them() -> None:
    adapter = TypeAdapter(ContinuationConfiguration)
    found = adapter.validate_python({"prompts": 9, "guidance": {"strength": 0.2}})
    assert found == ContinuationConfiguration(
        prompts=9, guidance=GuidanceConfiguration(strength=0.2)
    )
    with pytest.raises(ValidationError, match="guided"):
        adapter.validate_python({"rejected": "other"})
