"""Decoding that a probe guides: its formula, its limits, and that it leaves nothing behind."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch

from dsteer_tl.errors import ConfigurationError, HookError, ShapeError
from dsteer_tl.lens_model import LensModel, load_lens_model, pad
from dsteer_tl.pair import ModelPair
from dsteer_tl.preferences.scorers import vader_scorer
from dsteer_tl.steering.token_choice import Decoding
from dsteer_tl.toxicity.continuing import continue_prompts
from dsteer_tl.toxicity.guided_generation import (
    GuidanceConfiguration,
    _Guide,
    guided_continuations,
)
from dsteer_tl.toxicity.linear_probe import LinearProbe
from dsteer_tl.toxicity.text_features import text_features
from dsteer_tl.toxicity.windows import sample_texts
from tests.models import backbone_parts, random_model

SAMPLED = Decoding(max_new_tokens=4, temperature=1.0, top_p=0.9, seed=3)
PROMPTS = [(0, 17, 40, 9), (0, 23), (0, 5, 6, 7, 8, 9, 10, 11), (0, 99, 98)]


def probe_of(lens: LensModel, seed: int = 0, site: str | None = None) -> LinearProbe:
    weight = np.random.default_rng(seed).normal(size=lens.d_model) / lens.d_model**0.5
    site = site or f"resid_post.{lens.n_layers - 1}"
    return LinearProbe(weight=weight, bias=-0.5, site=site, texts=0)


@pytest.fixture(scope="module", params=["llama", "gpt2", "neox"])
def lens(request: pytest.FixtureRequest) -> LensModel:
    return load_lens_model(random_model(request.param, num_hidden_layers=3, n_layer=3))


@pytest.fixture(scope="module")
def llama() -> LensModel:
    return load_lens_model(random_model("llama"))


def guided(lens: LensModel, *, strength: float = 0.3, **changes: Any) -> list[tuple[int, ...]]:
    settings: dict[str, Any] = {"decoding": SAMPLED, "batch_size": 4, **changes}
    return guided_continuations(
        lens,
        PROMPTS,
        probe_of(lens),
        GuidanceConfiguration(strength=strength, iterations=2),
        progress=False,
        **settings,
    )


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_strength_zero_is_plain_decoding(lens: LensModel, temperature: float) -> None:
    decoding = Decoding(max_new_tokens=5, temperature=temperature, top_p=0.9, seed=5)
    plain = continue_prompts(lens, PROMPTS, decoding)
    assert guided(lens, strength=0.0, decoding=decoding) == plain
    assert guided(lens, strength=0.5, decoding=decoding) != plain


def test_batches_and_pads_change_nothing(lens: LensModel) -> None:
    together = guided(lens)
    assert guided(lens, batch_size=1) == together
    assert guided(lens, decoding=Decoding(max_new_tokens=4, temperature=1.0, seed=4)) != together


def test_pads_do_not_reach_the_logits(lens: LensModel) -> None:
    guide = _Guide(lens, probe_of(lens), GuidanceConfiguration(strength=0.3), {0})
    batch = pad(PROMPTS, pad_token_id=33)
    together = guide.logits(batch.ids, batch.mask)
    for row, prompt in enumerate(PROMPTS):
        alone = pad([prompt])
        single = guide.logits(alone.ids, alone.mask)[0]
        torch.testing.assert_close(together[row], single, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("architecture", ["gpt2", "neox", "llama"])
@pytest.mark.parametrize(("kl_scale", "candidates"), [(0.0, 0), (0.0, 4), (3.0, 2)])
def test_the_perturbation_is_gradient_ascent(
    architecture: str, kl_scale: float, candidates: int
) -> None:
    """Against plain transformers in float64, with its own hooks."""
    plain = random_model(architecture, num_hidden_layers=3, n_layer=3)
    lens = load_lens_model(copy.deepcopy(plain))
    probe = probe_of(lens)
    settings = GuidanceConfiguration(
        strength=0.2,
        iterations=2,
        fusion=0.7,
        kl_scale=kl_scale,
        site="resid_post.1",
        candidates=candidates,
    )
    prompt, unread = PROMPTS[0], {0, *range(40, 160, 2)}
    batch = pad([prompt])
    found = _Guide(lens, probe, settings, unread).logits(batch.ids, batch.mask)[0]
    expected = reference_logits(plain.double(), prompt, probe, settings, unread)
    np.testing.assert_allclose(found, expected, atol=2e-4)


def reference_logits(
    model: Any,
    prompt: tuple[int, ...],
    probe: LinearProbe,
    settings: GuidanceConfiguration,
    unread: set[int],
) -> np.ndarray:
    blocks = backbone_parts(model)[0]
    kept: dict[str, torch.Tensor] = {}

    def stream(output: Any) -> torch.Tensor:
        return output[0] if isinstance(output, tuple) else output

    def run(
        change: torch.Tensor | float, text: tuple[int, ...] = prompt
    ) -> tuple[torch.Tensor, torch.Tensor]:
        def add(_module: Any, _inputs: Any, output: Any) -> Any:
            kept["stream"] = stream(output)
            moved = stream(output) + change
            return (moved, *output[1:]) if isinstance(output, tuple) else moved

        def keep(_module: Any, _inputs: Any, output: Any) -> None:
            kept["last"] = stream(output)

        handles = [
            blocks[1].register_forward_hook(add),
            blocks[2].register_forward_hook(keep),
        ]
        logits = model(input_ids=torch.tensor([text])).logits
        for handle in handles:
            handle.remove()
        return logits[0, -1].log_softmax(-1), kept["last"][0]

    before = run(0.0)[0].detach()
    base = kept["stream"].detach()
    norms = np.sort(base[0].norm(dim=-1).numpy())
    size = settings.strength * norms[(len(norms) - 1) // 2] * len(prompt) ** 0.5
    change = torch.zeros_like(base)
    weight = torch.from_numpy(probe.weight)
    read = [place for place, token in enumerate(prompt) if token not in unread]
    likeliest = before.argsort(descending=True)[: settings.candidates].tolist()
    following = [run(0.0, (*prompt, token))[1][-1].detach() @ weight for token in likeliest]
    for _ in range(settings.iterations):
        change = change.detach().requires_grad_()
        after, stream_above = run(change)
        kl = torch.nn.functional.kl_div(before, after, reduction="sum", log_target=True)
        total, count = (stream_above[read] @ weight).sum(), float(len(read))
        shares = after[likeliest].softmax(dim=0)
        for token, share, value in zip(likeliest, shares, following, strict=True):
            if token not in unread:
                total, count = total + share * value, count + share
        gain = total / count + probe.bias - settings.kl_scale * kl
        slope = torch.autograd.grad(gain, change)[0]
        change = change + size * slope / slope.norm()
    after = run(change.detach())[0].detach()
    fused: np.ndarray = (settings.fusion * after + (1 - settings.fusion) * before).numpy()
    return fused


def test_a_probe_that_reads_no_token_guides_nothing(llama: LensModel) -> None:
    everything = range(llama.d_vocab)
    assert guided(llama, unread=everything) == guided(llama, strength=0.0) != guided(llama)


def test_a_finished_text_has_no_end_and_does_not_go_on(
    llama: LensModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = guided(llama)
    ends = {text[place] for place, text in zip((0, 1, 3), whole, strict=False)}
    monkeypatch.setattr(llama, "end_token_ids", tuple(ends))
    expected = []
    for text in whole:
        stop = next((i for i, token in enumerate(text) if token in ends), len(text))
        expected.append(text[:stop])
    assert guided(llama) == expected
    assert expected[0] == ()
    assert len({len(text) for text in expected}) > 2


@pytest.fixture
def untouched(llama: LensModel) -> Iterator[None]:
    """Weights, their gradients and what is trained are as before."""
    model: Any = llama.bridge.original_model  # type: ignore[attr-defined]
    parameters = dict(model.named_parameters())
    model.requires_grad_(True)
    frozen = next(p for name, p in parameters.items() if "layers" in name)
    frozen.requires_grad_(False)
    before = {name: (p.detach().clone(), p.requires_grad) for name, p in parameters.items()}
    assert len({trained for _, trained in before.values()}) == 2
    yield
    for name, parameter in parameters.items():
        assert torch.equal(parameter, before[name][0])
        assert parameter.requires_grad == before[name][1]
        assert parameter.grad is None
    frozen.requires_grad_(True)


@pytest.mark.parametrize("context", [torch.enable_grad, torch.no_grad, torch.inference_mode])
def test_no_gradient_is_left_behind(
    llama: LensModel, untouched: None, context: Callable[[], Any]
) -> None:
    with context():
        before = torch.is_grad_enabled()
        found = guided(llama)
        assert torch.is_grad_enabled() == before
    assert found == guided(llama)


def test_an_error_restores_the_weights(llama: LensModel, untouched: None) -> None:
    with pytest.raises(ShapeError, match="outside the vocabulary"):
        guided_continuations(
            llama,
            [(0, 10_000)],
            probe_of(llama),
            GuidanceConfiguration(),
            decoding=SAMPLED,
            progress=False,
        )


def test_guided_texts_score_higher_than_plain_ones(stories_pair: ModelPair) -> None:
    """A probe of how unkind the model's own texts are, fitted by ridge regression."""
    lens, tokenizer = stories_pair.base, stories_pair.tokenizer
    site = f"resid_post.{lens.n_layers - 1}"
    rows = sample_texts(lens, tokenizer, count=128, max_new_tokens=32, seed=0, progress=False)
    texts = [tokenizer.decode(row, skip_special_tokens=True) for row in rows]
    kindness = np.array(vader_scorer()(texts))
    features = text_features(lens, tokenizer, texts, site, progress=False)
    mean = features.mean(axis=0)
    spread = (features - mean).T @ (features - mean)
    ridge = spread + 0.1 * spread.trace() / len(spread) * np.eye(len(spread))
    weight = np.linalg.solve(ridge, (features - mean).T @ (kindness.mean() - kindness))
    weight /= ((features - mean) @ weight).std()
    probe = LinearProbe(weight=weight, bias=-float(mean @ weight), site=site, texts=len(texts))
    prompts = [row[:5] for row in rows[:32]]

    def scores(strength: float) -> np.ndarray:
        written = guided_continuations(
            lens,
            prompts,
            probe,
            GuidanceConfiguration(strength=strength),
            decoding=Decoding(max_new_tokens=16, temperature=1.0, top_p=0.9, seed=0),
            unread=tokenizer.all_special_ids,
            batch_size=32,
            progress=False,
        )
        texts = [tokenizer.decode([*p[1:], *ids]) for p, ids in zip(prompts, written, strict=True)]
        return probe.decision(text_features(lens, tokenizer, texts, site, progress=False))

    rise = scores(0.1) - scores(0.0)  # in standard deviations of the model's own texts
    assert rise.mean() > 1
    assert rise.mean() > 5 * rise.std() / len(rise) ** 0.5


def test_the_perturbed_site_must_lie_below_the_probe(llama: LensModel) -> None:
    def run(probe: LinearProbe, **settings: Any) -> None:
        guided_continuations(
            llama,
            PROMPTS,
            probe,
            GuidanceConfiguration(**settings),
            decoding=SAMPLED,
            progress=False,
        )

    with pytest.raises(ConfigurationError, match=r"perturbs 'resid_post.1'.*reads 'resid_post.1'"):
        run(probe_of(llama), site="resid_post.1")
    with pytest.raises(ConfigurationError, match="below the probe's"):
        run(probe_of(llama, site="h"), site="h")
    with pytest.raises(HookError, match=r"resid_post\.7"):
        run(probe_of(llama), site="resid_post.7")
    narrow = LinearProbe(weight=np.ones(8), bias=0.0, site="resid_post.1", texts=0)
    with pytest.raises(ShapeError, match=r"\(8,\), expected \(32,\)"):
        run(narrow)


@pytest.mark.parametrize("prompt", [(), (1,) * 61])
def test_prompts_must_fit(llama: LensModel, prompt: tuple[int, ...]) -> None:
    with pytest.raises(ShapeError, match=rf"prompt 1 has {len(prompt)} tokens.*from 1 to 60"):
        guided_continuations(
            llama,
            [PROMPTS[0], prompt],
            probe_of(llama),
            GuidanceConfiguration(),
            decoding=SAMPLED,
            progress=False,
        )


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"strength": -0.1}, "strength is -0.1"),
        ({"iterations": 0}, "iterations is 0"),
        ({"fusion": 1.5}, "fusion is 1.5"),
        ({"kl_scale": -1.0}, "kl_scale is -1.0"),
        ({"candidates": -1}, "candidates is -1"),
    ],
)
def test_settings_out_of_range(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        GuidanceConfiguration(**settings)
