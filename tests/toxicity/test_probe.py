from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import balanced_accuracy_score, roc_auc_score
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from dsteer_tl.errors import ConfigurationError, DataError, HookError, ShapeError, SpaceError
from dsteer_tl.lens_model import LensModel, LoadOptions, load_lens_model, load_tokenizer
from dsteer_tl.pair import ModelPair
from dsteer_tl.sites import resid_post
from dsteer_tl.toxicity import regression
from dsteer_tl.toxicity.labelled_texts import load_labelled_texts
from dsteer_tl.toxicity.probe import LinearProbe, ProbeFit, fit_probe, text_features
from dsteer_tl.toxicity.probe_tables import probe_score_table, probe_table
from dsteer_tl.toxicity.regression import auroc, held_out_rows, linear_direction, word_scores
from dsteer_tl.toxicity.types import LabelledText
from tests.models import CONTEXT, LAYERS, backbone_parts, random_model, tiny_tokenizer

LAST = resid_post(LAYERS - 1)
TEXTS = (
    "Once upon a time there was a little bird who liked to sing in the morning.",
    "no",
    "The old man went to the river",
    "She was happy because the rain came and the flowers were blue and red again. " * 4,
    "He said yes</s> and nobody knew",
    "a",
)


# What the probe reads


def plain_features(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, texts: Sequence[str], layer: int
) -> np.ndarray:
    """Means over real tokens, each text alone, read off the block of the plain model in float64."""
    blocks, _, _ = backbone_parts(model)
    found: list[torch.Tensor] = []

    def keep(module: object, inputs: object, output: object) -> None:
        found.append(output[0] if isinstance(output, tuple) else output)

    handle = blocks[layer].register_forward_hook(keep)
    means = []
    for text in texts:
        ids = tokenizer(text)["input_ids"][:CONTEXT]
        found.clear()
        with torch.no_grad():
            model(torch.tensor([ids]))
        kept = [place for place, token in enumerate(ids) if token not in (0, 1)]
        means.append(found[0].reshape(len(ids), -1)[kept].double().mean(dim=0).numpy())
    handle.remove()
    return np.stack(means)


@pytest.mark.parametrize("architecture", ["llama", "gpt2", "neox"])
@pytest.mark.parametrize("token_budget", [1, 80, 4096])
def test_features_are_those_of_each_text_alone(architecture: str, token_budget: int) -> None:
    plain, tokenizer = random_model(architecture), tiny_tokenizer()
    expected = [plain_features(plain, tokenizer, TEXTS, layer) for layer in range(LAYERS)]
    lens = load_lens_model(plain)
    for layer in range(LAYERS):
        site = resid_post(layer)
        found = text_features(
            lens, tokenizer, TEXTS, site, token_budget=token_budget, progress=False
        )
        assert found.dtype == np.float64
        np.testing.assert_allclose(found, expected[layer], rtol=2e-5, atol=2e-5)


def test_long_texts_are_cut_at_the_end_of_the_context(tiny_pair: ModelPair) -> None:
    tokenizer = tiny_pair.tokenizer
    beginning = tokenizer.decode(tokenizer(TEXTS[3])["input_ids"][1:CONTEXT])
    assert len(tokenizer(TEXTS[3])["input_ids"]) > CONTEXT == tiny_pair.base.n_ctx
    read = [(TEXTS[3] + other, beginning) for other in ("", " The dog was sad.")]
    for texts in read:
        whole, cut = text_features(tiny_pair.base, tokenizer, texts, LAST, progress=False)
        np.testing.assert_allclose(whole, cut, rtol=1e-5, atol=1e-5)


def test_the_token_at_the_beginning_changes_nothing() -> None:
    """Without attention nothing reaches other positions: BOS could only enter through the mean."""
    bare = tiny_tokenizer()
    bare.backend_tokenizer.post_processor = None
    assert bare("no")["input_ids"] == tiny_tokenizer()("no")["input_ids"][1:]
    features = []
    for tokenizer, size in ((bare, 1.0), (tiny_tokenizer(), 1.0), (tiny_tokenizer(), 1000.0)):
        plain = random_model("llama")
        with torch.no_grad():
            for layer in plain.model.layers:
                layer.self_attn.o_proj.weight.zero_()
            plain.model.embed_tokens.weight[0] *= size
        features.append(
            text_features(load_lens_model(plain), tokenizer, TEXTS[:3], LAST, progress=False)
        )
    np.testing.assert_allclose(features[1], features[0], rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(features[2], features[0], rtol=1e-5, atol=1e-5)


def test_texts_without_tokens_are_named(tiny_pair: ModelPair) -> None:
    lens, tokenizer = tiny_pair.base, tiny_pair.tokenizer
    for empty in ("", "</s>"):
        with pytest.raises(DataError, match="text 1 of 2"):
            text_features(lens, tokenizer, ["no", empty], LAST, progress=False)
    with pytest.raises(DataError, match="found no texts"):
        text_features(lens, tokenizer, [], LAST, progress=False)
    with pytest.raises(HookError, match="resid_post"):
        text_features(lens, tokenizer, ["no"], resid_post(LAYERS), progress=False)


# Fitting


def planted(
    count: int = 400, share: float = 0.5, size: float = 3.0, seed: int = 0
) -> tuple[np.ndarray, list[LabelledText], np.ndarray]:
    """Noise of 8 dimensions, with a direction that tells the classes; words say nothing."""
    generator = np.random.default_rng(seed)
    direction = generator.standard_normal(8)
    direction /= np.linalg.norm(direction)
    labels = np.arange(count) < share * count
    features = generator.standard_normal((count, 8)) + size * np.outer(labels - 0.5, direction)
    nouns = np.array(["bird", "river", "dog", "tree", "house", "boat"])
    texts = [
        LabelledText(" ".join(generator.choice(nouns, size=6)), bool(label)) for label in labels
    ]
    return features, texts, direction


def fit(features: np.ndarray, texts: Sequence[LabelledText], **changes: object) -> ProbeFit:
    options = {"site": LAST, "draws": 200, "held_out_share": 0.25} | changes
    return fit_probe(features, texts, **options)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def found() -> ProbeFit:
    features, texts, _ = planted()
    return fit(features, texts)


def test_a_planted_direction_is_found_and_no_control_finds_it(found: ProbeFit) -> None:
    features, texts, direction = planted()
    assert found.probe.unit @ direction > 0.95
    assert abs(found.shuffled.unit @ direction) < 0.7
    results = {result.control: result for result in found.results}
    assert list(results) == ["probe", "shuffled_labels", "majority", "words"]
    assert results["probe"].auroc.low > 0.9 and results["probe"].balanced_accuracy.low > 0.8
    for control in ("shuffled_labels", "majority", "words"):
        interval = results[control].balanced_accuracy
        assert interval.low <= 0.5 and interval.value < 0.6
    assert len(found.held_out) == 100 and found.probe.texts == 300
    assert found.labels.tolist() == [texts[row].label for row in found.held_out]
    np.testing.assert_allclose(
        results["probe"].scores, features[found.held_out] @ found.probe.weight + found.probe.bias
    )


def test_results_agree_with_scikit_learn(found: ProbeFit) -> None:
    for result in found.results:
        if result.control == "shuffled_labels":
            continue
        guessed = result.scores > 0
        assert result.balanced_accuracy.value == pytest.approx(
            balanced_accuracy_score(found.labels, guessed)
        )
        assert result.auroc.value == pytest.approx(roc_auc_score(found.labels, result.scores))
        assert result.accuracy == pytest.approx(np.mean(guessed == found.labels))
        for interval in (result.balanced_accuracy, result.auroc):
            assert interval.low <= interval.value <= interval.high


def test_the_null_is_that_of_many_shuffles(found: ProbeFit) -> None:
    features, texts, _ = planted()
    null, one = found.result("shuffled_labels"), fit(features, texts, shuffles=1)
    assert null.auroc.draws == null.balanced_accuracy.draws == 20
    assert null.auroc.low < 0.5 < null.auroc.high < found.result("probe").auroc.low
    alone = one.result("shuffled_labels")
    np.testing.assert_array_equal(alone.scores, null.scores)
    np.testing.assert_array_equal(one.shuffled.weight, found.shuffled.weight)
    np.testing.assert_allclose(alone.scores, one.shuffled.decision(features[one.held_out]))
    assert alone.auroc.value == pytest.approx(roc_auc_score(one.labels, alone.scores))
    assert alone.balanced_accuracy.value == alone.balanced_accuracy.low
    assert alone.balanced_accuracy.value == pytest.approx(
        balanced_accuracy_score(one.labels, alone.scores > 0)
    )
    assert alone.accuracy == pytest.approx(np.mean((alone.scores > 0) == one.labels))
    with pytest.raises(ConfigurationError, match="shuffles is 0"):
        fit(features, texts, shuffles=0)


def test_imbalance_flatters_accuracy_alone() -> None:
    features, texts, _ = planted(count=600, share=0.05, size=0.0)
    rare = fit(features, texts)
    majority, probe = rare.result("majority"), rare.result("probe")
    assert rare.positive_share == pytest.approx(0.05)
    assert majority.accuracy > 0.94
    for interval in (majority.balanced_accuracy, majority.auroc):
        assert (interval.value, interval.low, interval.high) == (0.5, 0.5, 0.5)
    assert probe.balanced_accuracy.low < 0.5 < probe.balanced_accuracy.high
    easy = fit(*planted(count=600, share=0.05, size=6.0)[:2])
    assert easy.result("probe").balanced_accuracy.value > 0.9  # classes count alike


def test_single_words_can_give_what_the_residual_does_not() -> None:
    features, texts, _ = planted(size=0.0)
    telling = [
        LabelledText(f"{text.text} {'stupid' if text.label else 'kind'}", text.label)
        for text in texts
    ]
    told = fit(features, telling)
    assert told.result("words").auroc.value == 1
    assert told.result("probe").auroc.low < 0.5 < told.result("probe").auroc.high


def test_words_of_held_out_texts_are_unknown() -> None:
    labels = np.arange(60) % 2 == 0
    train = [f"word{row}" for row in range(60)]
    scores = word_scores(train, labels, np.arange(60), ["elsewhere", "word0", "word1"], 0)
    assert scores[2] < scores[0] < scores[1] and abs(scores[0]) < 1e-6
    assert word_scores(["…"] * 60, labels, np.arange(60), ["word", "!"], 0).tolist() == [0, 0]


def test_scale_and_origin_do_not_matter(found: ProbeFit) -> None:
    features, texts, _ = planted()
    offset = np.random.default_rng(3).normal(scale=500.0, size=8)
    moved = fit(40.0 * features + offset, texts)
    np.testing.assert_allclose(40 * moved.probe.weight, found.probe.weight, rtol=1e-3, atol=1e-4)
    np.testing.assert_allclose(
        moved.result("probe").scores, found.result("probe").scores, rtol=1e-3, atol=1e-3
    )


def test_one_outlier_dimension_neither_hides_nor_makes_the_direction() -> None:
    features, texts, direction = planted()
    loud = np.random.default_rng(1).normal(loc=900.0, scale=300.0, size=(len(texts), 1))
    wide = fit(np.hstack([features, loud]), texts)
    assert wide.probe.unit[:8] @ direction > 0.95 and abs(wide.probe.unit[8]) < 0.05
    assert wide.result("probe").auroc.value > 0.9


def test_weight_and_bias_are_where_the_loss_is_least() -> None:
    """∂/∂(w, b) of ‖s·w‖²/2 + C Σ c_i log(1 + exp(−y_i f(x_i))) is zero, in raw units."""
    features, texts, _ = planted(count=120, share=0.3, size=1.0)
    features = 3 * features + 7
    labels = np.array([text.label for text in texts])
    for penalty in (1e-2, 1.0):
        weight, bias = linear_direction(features, labels, penalty)
        signs = np.where(labels, 1.0, -1.0)
        balance = len(labels) / (2 * np.where(labels, labels.sum(), (~labels).sum()))
        wrong = 1 / (1 + np.exp(signs * (features @ weight + bias)))
        pulls = penalty * balance * wrong * signs
        scale = np.median(features.std(axis=0))
        np.testing.assert_allclose(
            pulls @ (features - features.mean(axis=0)) / scale, scale * weight, atol=2e-3 * penalty
        )
        assert abs(pulls.sum()) < 2e-3 * penalty


def test_two_fits_are_equal_and_seeds_differ(found: ProbeFit) -> None:
    features, texts, _ = planted()
    again, other = fit(features, texts), fit(features, texts, seed=1)
    pd.testing.assert_frame_equal(probe_table(again, "a", "b"), probe_table(found, "a", "b"))
    pd.testing.assert_frame_equal(probe_score_table(again), probe_score_table(found))
    assert set(other.held_out) != set(found.held_out)


# The split


@settings(max_examples=30, deadline=None)
@given(
    st.lists(st.tuples(st.booleans(), st.integers(0, 30)), min_size=60, max_size=120),
    st.floats(0.05, 0.6),
    st.integers(0, 100),
)
def test_groups_are_never_parted(rows: list[tuple[bool, int]], share: float, seed: int) -> None:
    labels, groups = np.array([row[0] for row in rows]), np.array([row[1] for row in rows])
    try:
        held_out = held_out_rows(labels, groups, share, seed)
    except DataError:
        return  # one class is too rare
    train = np.setdiff1d(np.arange(len(rows)), held_out)
    assert not set(groups[held_out]) & set(groups[train])
    largest = np.bincount(groups).max()
    assert abs(len(held_out) - share * len(rows)) <= 1.5 * largest
    for side in (held_out, train):
        assert 0 < labels[side].sum() < len(side)


def test_rewrites_and_single_texts_are_drawn_alike() -> None:
    # 100 groups of one positive and two negatives, 50 positives and 400 negatives alone
    labels = np.array([True, False, False] * 100 + [True] * 50 + [False] * 400)
    groups = np.concatenate([np.repeat(np.arange(100), 3), np.arange(100, 550)])
    held_out = held_out_rows(labels, groups, 0.1, 0)
    assert (len(held_out), labels[held_out].sum()) == (30 + 5 + 40, 10 + 5)


def test_few_texts_and_bad_shares() -> None:
    features, texts, _ = planted(count=100, share=0.19)
    with pytest.raises(DataError, match="found 19 texts with the attribute and 81 without it"):
        fit(features, texts)
    features, texts, _ = planted(count=100)
    for share in (0.0, 1.0):
        with pytest.raises(ConfigurationError, match="held_out_share"):
            fit(features, texts, held_out_share=share)
    with pytest.raises(ShapeError, match="found 99 features for 100 texts"):
        fit(features[1:], texts)
    with pytest.raises(DataError, match="training side has 20 texts with the attribute among 20"):
        one_group = [LabelledText(t.text, t.label, None if t.label else 0) for t in texts]
        fit(features, one_group, held_out_share=0.6)
    with pytest.raises(DataError, match="the same features"):
        fit(np.ones((100, 3)), texts)


def test_a_fit_that_does_not_converge_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(regression, "_MAX_ITERATIONS", 1)
    features, texts, _ = planted()
    with pytest.raises(DataError, match="did not converge within 1 iterations; look for outliers"):
        fit(features, texts)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.integers(-3, 3), st.booleans()), min_size=2, max_size=40))
def test_auroc_with_ties(rows: list[tuple[int, bool]]) -> None:
    scores, labels = np.array([float(row[0]) for row in rows]), np.array([row[1] for row in rows])
    if labels.all() or not labels.any():
        assert np.isnan(auroc(scores, labels))
        return
    assert auroc(scores, labels) == pytest.approx(roc_auc_score(labels, scores))
    assert auroc(-scores, labels) == pytest.approx(1 - auroc(scores, labels))


# The direction


def test_a_saved_probe_comes_back(found: ProbeFit, tmp_path: Path) -> None:
    found.probe.save(tmp_path / "probe.safetensors")
    read = LinearProbe.load(tmp_path / "probe.safetensors")
    np.testing.assert_array_equal(read.weight, found.probe.weight)
    assert (read.bias, read.site, read.texts) == (found.probe.bias, LAST, 300)
    with pytest.raises(SpaceError, match="cannot read a probe"):
        LinearProbe.load(tmp_path / "none.safetensors")


def test_a_probe_is_a_vector_at_its_site(tiny_pair: ModelPair, tmp_path: Path) -> None:
    lens = tiny_pair.base
    weight = np.random.default_rng(0).standard_normal(lens.d_model)
    probe = LinearProbe(weight=weight, bias=0.5, site=resid_post(0), texts=7)
    vector = probe.vector(lens)
    np.testing.assert_array_equal(vector.values, weight)
    assert (vector.space, vector.name, vector.rows) == (resid_post(0), "probe", 7)
    assert vector.models == {"base": lens.weights_hash}
    np.testing.assert_allclose(probe.unit, weight / np.linalg.norm(weight))
    np.testing.assert_allclose(probe.decision(weight[None]), [weight @ weight + 0.5])
    with vector.apply(lens, -1.0):
        pass
    vector.save(tmp_path / "vector.safetensors")
    with pytest.raises(SpaceError, match="holds no probe"):
        LinearProbe.load(tmp_path / "vector.safetensors")
    with pytest.raises(SpaceError, match="3 dimensions"):
        LinearProbe(weight=weight[:3], bias=0.0, site=resid_post(0), texts=7).vector(lens)
    with pytest.raises(ShapeError, match="weight 0"):
        _ = LinearProbe(weight=0 * weight, bias=0.0, site=resid_post(0), texts=7).unit


# Tables


def test_tables_have_their_columns(found: ProbeFit) -> None:
    table = probe_table(found, "unkind", "sampled")
    columns = "control balanced_accuracy low high auroc auroc_low auroc_high accuracy n_train"
    columns += " n_held_out positive_share site attribute labels"
    assert " ".join(table.columns) == columns
    assert list(table["control"]) == ["probe", "shuffled_labels", "majority", "words"]
    assert table["auroc"].iloc[0] == found.result("probe").auroc.value
    assert table["high"].iloc[1] == found.result("shuffled_labels").balanced_accuracy.high
    assert set(table["n_train"]) == {300} and set(table["n_held_out"]) == {100}
    assert (table["attribute"] == "unkind").all() and (table["labels"] == "sampled").all()
    scores = probe_score_table(found)
    assert list(scores.columns) == ["control", "label", "score"]
    own = scores[scores["control"] == "probe"]
    assert roc_auc_score(own["label"], own["score"]) == pytest.approx(table["auroc"].iloc[0])
    for control in ("probe", "shuffled_labels"):
        own = scores[scores["control"] == control]
        assert own["label"].tolist() == found.labels.tolist()
        assert own["score"].tolist() == found.result(control).scores.tolist()
    assert len(scores) == 200


# Real texts, a real model


@pytest.fixture(scope="module")
def stories(stories260k: Path) -> tuple[LensModel, PreTrainedTokenizerFast]:
    return load_lens_model(stories260k), load_tokenizer(stories260k, LoadOptions())


@pytest.mark.parametrize(
    ("name", "file", "limit"),
    [
        ("paradetox", "preferences/paradetox.tsv", 400),
        ("realtoxicityprompts", "evaluation/realtoxicityprompts_5k.jsonl", 1500),
    ],
)
def test_a_probe_of_published_texts(
    stories: tuple[LensModel, PreTrainedTokenizerFast],
    shared_folder: Path,
    name: str,
    file: str,
    limit: int,
) -> None:
    lens, tokenizer = stories
    texts = load_labelled_texts(name, shared_folder / "data" / file, limit=limit)
    site = resid_post(lens.n_layers // 2)
    features = text_features(lens, tokenizer, [t.text for t in texts], site, progress=False)
    real = fit_probe(features, texts, site=site, held_out_share=0.4, draws=200)
    probe, shuffled = real.result("probe").auroc, real.result("shuffled_labels").auroc
    assert probe.low > 0.5 and probe.value > shuffled.high
    held_out = {texts[row].group for row in real.held_out} - {None}
    assert not held_out & {
        text.group for row, text in enumerate(texts) if row not in set(real.held_out)
    }
