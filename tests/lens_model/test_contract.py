"""What every `LensModel` promises, on every backend and architecture."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor

from dsteer_tl.errors import (
    CheckpointError,
    ConfigurationError,
    DependencyError,
    HookError,
    ShapeError,
)
from dsteer_tl.lens_model import Edit, Gather, load_lens_model, pad
from dsteer_tl.sites import FINAL, resid_post
from tests.lens_model.cases import HAS_HOOKED, UNSUPPORTED_BY_HOOKED, Case
from tests.models import ARCHITECTURES, CONTEXT, LAYERS, VOCABULARY, backbone_parts, random_model

ROWS = tuple(
    tuple(row)
    for row in (
        torch.randint(2, VOCABULARY, (length,), generator=torch.Generator().manual_seed(length))
        for length in (11, 4, 7)
    )
)
ROWS = tuple(tuple(int(token) for token in row) for row in ROWS)


def vector(seed: int = 0, scale: float = 1.0) -> Tensor:
    return scale * torch.randn(32, generator=torch.Generator().manual_seed(seed))


@torch.no_grad()
def plain_logits(model: Any, row: tuple[int, ...] | list[int]) -> Tensor:
    return model(input_ids=torch.tensor([list(row)]), use_cache=False).logits[0]


def plain_module(case_or_model: Any, site: str) -> Any:
    """The module whose output is the residual at a site, in plain transformers."""
    blocks, norm, _ = backbone_parts(case_or_model)
    return norm if site == FINAL else blocks[int(site.rsplit(".", 1)[1])]


@contextmanager
def plain_hook(
    model: Any, site: str, function: Callable[[Tensor], Tensor | None]
) -> Iterator[None]:
    def hook(_module: Any, _inputs: Any, output: Any) -> Any:
        if isinstance(output, tuple):
            found = function(output[0])
            return None if found is None else (found, *output[1:])
        return function(output)

    handle = plain_module(model, site).register_forward_hook(hook)
    try:
        yield
    finally:
        handle.remove()


@contextmanager
def steered_plain(model: Any, site: str, added: Tensor) -> Iterator[None]:
    with plain_hook(model, site, lambda x: x + added):
        yield


def greedy_without_cache(model: Any, row: tuple[int, ...], steps: int, ends: set[int]) -> list[int]:
    text = list(row)
    for _ in range(steps):
        text.append(int(plain_logits(model, text)[-1].argmax()))
        if text[-1] in ends:
            break
    return text[len(row) :]


def cut(tokens: list[int], ends: set[int]) -> list[int]:
    """Generated tokens up to and with the first end of sequence."""
    for index, token in enumerate(tokens):
        if token in ends:
            return tokens[: index + 1]
    return tokens


def test_dimensions(case: Case) -> None:
    lens = case.lens
    assert (lens.n_layers, lens.d_model, lens.d_vocab, lens.n_ctx) == (
        LAYERS,
        32,
        VOCABULARY,
        CONTEXT,
    )
    assert lens.sites == ("resid_post.0", "resid_post.1", "h")
    assert lens.W_U.shape == (32, VOCABULARY) and lens.b_U.shape == (VOCABULARY,)
    assert lens.end_token_ids == (1,)
    assert lens.dtype == torch.float32


def test_logits_equal_transformers(case: Case) -> None:
    for row in ROWS:
        batch = pad([row])
        with torch.no_grad():
            found = case.lens.forward(batch.ids, batch.mask)[0]
        torch.testing.assert_close(found, plain_logits(case.plain, row), rtol=0, atol=2e-5)


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("pad_token_id", [0, 99])
def test_padding_changes_nothing(case: Case, side: str, pad_token_id: int) -> None:
    batch = pad(ROWS, side=side, pad_token_id=pad_token_id)
    with torch.no_grad():
        logits = case.lens.forward(batch.ids, batch.mask)
    for index, (row, start) in enumerate(zip(ROWS, batch.offsets, strict=True)):
        found = logits[index, start : start + len(row)]
        torch.testing.assert_close(found, plain_logits(case.plain, row), rtol=0, atol=5e-5)


def captured(case: Case, side: str = "right") -> tuple[dict[str, Tensor], list[tuple[int, int]]]:
    """Every token of every row, in an order that is neither sorted by row nor by position."""
    places = [(row, position) for row in range(len(ROWS)) for position in range(len(ROWS[row]))]
    places = places[::-2] + places[::2]
    batch = pad(ROWS, side=side)
    gather = Gather(
        torch.tensor([row for row, _ in places]),
        torch.tensor([position + batch.offsets[row] for row, position in places]),
    )
    return case.lens.capture(batch.ids, batch.mask, case.lens.sites, gather), places


@pytest.mark.parametrize("side", ["left", "right"])
def test_capture_equals_hidden_states(case: Case, side: str) -> None:
    found, places = captured(case, side)
    double = copy.deepcopy(case.plain).double()
    expected: dict[str, list[Tensor]] = {site: [] for site in case.lens.sites}
    for row in ROWS:
        last_block: list[Tensor] = []
        with (
            torch.no_grad(),
            plain_hook(double, resid_post(LAYERS - 1), lambda x, kept=last_block: kept.append(x)),
        ):
            states = double(torch.tensor([row]), output_hidden_states=True).hidden_states
        expected["resid_post.0"].append(states[1][0])
        expected["resid_post.1"].append(last_block[0][0])
        expected[FINAL].append(states[-1][0])
    for site, rows in expected.items():
        assert found[site].dtype == torch.float32
        wanted = torch.stack([rows[row][position] for row, position in places])
        error = (found[site].double() - wanted).norm() / wanted.norm()
        assert error < 2e-6, (site, float(error))


def test_captured_h_gives_logit_differences(case: Case) -> None:
    """z_w − z_l = ⟨h, e_w − e_l⟩ + b_w − b_l, with soft-capping and scale undone."""
    found, places = captured(case)
    lens, h = case.lens, captured(case)[0][FINAL]
    assert torch.equal(h, found[FINAL])
    logits = torch.stack([plain_logits(case.plain, ROWS[r])[p] for r, p in places])
    z = lens.readout.invert_transform(logits)
    w, lose = torch.arange(0, 60), torch.arange(90, 150)
    identity = h @ (lens.W_U[:, w] - lens.W_U[:, lose]) + lens.b_U[w] - lens.b_U[lose]
    torch.testing.assert_close(z[:, w] - z[:, lose], identity, rtol=0, atol=1e-4)
    assert (case.architecture == "gemma2") == (lens.readout.softcap is not None)
    assert (case.architecture == "phi") == bool(lens.b_U.any())


def test_readout_at(case: Case) -> None:
    found, places = captured(case)
    logits = torch.stack([plain_logits(case.plain, ROWS[r])[p] for r, p in places])
    for site in (resid_post(LAYERS - 1), FINAL):
        with torch.no_grad():
            read = case.lens.readout_at(site)(found[site])
        torch.testing.assert_close(read, logits, rtol=0, atol=5e-5)
    with pytest.raises(HookError, match="has blocks after it"):
        case.lens.readout_at("resid_post.0")


def test_norm_parameters_are_those_of_transformers(case: Case) -> None:
    norm = plain_module(case.plain, FINAL)
    expected = dict(norm.named_parameters())
    found = case.lens.norm_parameters
    assert found.keys() == expected.keys()
    for name, parameter in found.items():
        assert torch.equal(parameter, expected[name].detach())


@pytest.mark.parametrize("site", ["resid_post.0", "resid_post.1", "h"])
def test_edit_equals_a_plain_forward_hook(case: Case, site: str) -> None:
    row, added = ROWS[0], vector(1, 2.0)
    batch = pad([row])
    with torch.no_grad():
        before = case.lens.forward(batch.ids, batch.mask)
        with case.lens.hooks([Edit(site, lambda x: x + added)]) as edited:
            found = edited.forward(batch.ids, batch.mask)[0]
        after = case.lens.forward(batch.ids, batch.mask)
        with case.lens.hooks([Edit(site, lambda x: x + torch.zeros_like(x))]):
            zero = case.lens.forward(batch.ids, batch.mask)
    with steered_plain(case.plain, site, added):
        expected = plain_logits(case.plain, row)
    assert (expected - before[0]).abs().max() > 0.5  # the edit is no trifle
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-4)
    assert torch.equal(after, before)
    assert torch.equal(zero, before)


def test_edits_at_several_sites_add_up_and_nest(case: Case) -> None:
    row, batch = ROWS[0], pad([ROWS[0]])
    everywhere = Gather(torch.zeros(len(row), dtype=torch.long), torch.arange(len(row)))
    a, b = vector(2), vector(3)
    with (
        torch.no_grad(),
        steered_plain(case.plain, "resid_post.0", a + b),
        steered_plain(case.plain, "h", b),
    ):
        expected = plain_logits(case.plain, row)
    with torch.no_grad(), case.lens.hooks([Edit("resid_post.0", lambda x: x + a)]):
        with case.lens.hooks([Edit("resid_post.0", lambda x: x + b), Edit("h", lambda x: x + b)]):
            # Reading inside must neither see less nor take the edits off.
            case.lens.capture(batch.ids, batch.mask, case.lens.sites, everywhere)
            found = case.lens.forward(batch.ids, batch.mask)[0]
        outer = case.lens.forward(batch.ids, batch.mask)[0]
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-4)
    with steered_plain(case.plain, "resid_post.0", a):
        torch.testing.assert_close(outer, plain_logits(case.plain, row), rtol=0, atol=1e-4)


def test_edit_leaves_no_trace_after_an_error(case: Case) -> None:
    batch = pad([ROWS[0]])
    with torch.no_grad():
        before = case.lens.forward(batch.ids, batch.mask)

        def fail(_: Tensor) -> Tensor:
            raise KeyError("inside")

        with pytest.raises(KeyError, match="inside"), case.lens.hooks([Edit("resid_post.0", fail)]):
            case.lens.forward(batch.ids, batch.mask)
        assert torch.equal(case.lens.forward(batch.ids, batch.mask), before)


def test_capture_sees_the_edits_of_earlier_sites(case: Case) -> None:
    row, batch, added = ROWS[0], pad([ROWS[0]]), vector(4)
    last = Gather(torch.tensor([0]), torch.tensor([len(row) - 1]))
    with case.lens.hooks([Edit("resid_post.0", lambda x: x + added)]):
        found = case.lens.capture(batch.ids, batch.mask, ["resid_post.1"], last)["resid_post.1"]
    kept: list[Tensor] = []
    with (
        torch.no_grad(),
        steered_plain(case.plain, "resid_post.0", added),
        plain_hook(case.plain, "resid_post.1", lambda x: kept.append(x)),
    ):
        plain_logits(case.plain, row)
    torch.testing.assert_close(found[0], kept[0][0, -1], rtol=0, atol=1e-4)


def test_hooks_fire_once_a_pass_and_once_a_generated_token(case: Case) -> None:
    shapes: dict[str, list[torch.Size]] = {site: [] for site in case.lens.sites}

    def counting(site: str) -> Edit:
        def function(x: Tensor) -> Tensor:
            shapes[site].append(x.shape)
            return x

        return Edit(site, function)

    batch = pad(ROWS, side="left")
    with torch.no_grad(), case.lens.hooks([counting(site) for site in case.lens.sites]):
        case.lens.forward(batch.ids, batch.mask)
        assert {site: len(found) for site, found in shapes.items()} == dict.fromkeys(shapes, 1)
        assert shapes["resid_post.0"][0] == (3, 11, 32)
        generated = case.lens.generate(batch.ids, batch.mask, max_new_tokens=4)
    steps = generated.shape[1] - batch.ids.shape[1]
    assert {site: len(found) - 1 for site, found in shapes.items()} == dict.fromkeys(shapes, steps)


def test_greedy_generation_equals_a_plain_loop_without_cache(case: Case) -> None:
    batch = pad(ROWS, side="left")
    generated = case.lens.generate(batch.ids, batch.mask, max_new_tokens=6)
    assert torch.equal(generated[:, : batch.ids.shape[1]], batch.ids)
    for index, row in enumerate(ROWS):
        tokens = cut(generated[index, batch.ids.shape[1] :].tolist(), {1})
        assert tokens == greedy_without_cache(case.plain, row, 6, {1})


@pytest.mark.parametrize("site", ["resid_post.0", "h"])
def test_steered_generation_equals_recomputing_without_cache(case: Case, site: str) -> None:
    batch, added = pad(ROWS, side="left"), vector(5, 3.0)
    plain_tokens = case.lens.generate(batch.ids, batch.mask, max_new_tokens=6)
    with case.lens.hooks([Edit(site, lambda x: x + added)]):
        generated = case.lens.generate(batch.ids, batch.mask, max_new_tokens=6)
    assert generated.shape != plain_tokens.shape or not torch.equal(generated, plain_tokens)
    for index, row in enumerate(ROWS):
        with steered_plain(case.plain, site, added):
            expected = greedy_without_cache(case.plain, row, 6, {1})
        assert cut(generated[index, batch.ids.shape[1] :].tolist(), {1}) == expected


def test_generation_stops_at_the_end_of_sequence(case: Case) -> None:
    # At h, a vector along e_end that outweighs everything.
    end = case.lens.W_U[:, 1]
    batch = pad(ROWS, side="left")
    with case.lens.hooks([Edit(FINAL, lambda x: x + 500 * end / end.norm())]):
        generated = case.lens.generate(batch.ids, batch.mask, max_new_tokens=5)
    assert generated.shape[1] == batch.ids.shape[1] + 1
    assert set(generated[:, -1].tolist()) == {1}


def test_sampling_is_reproducible_and_leaves_the_global_state(case: Case) -> None:
    batch = pad(ROWS, side="left")
    before = torch.get_rng_state()

    def sample(seed: int, **settings: Any) -> list[list[int]]:
        rows = case.lens.generate(
            batch.ids, batch.mask, max_new_tokens=5, temperature=1.5, seed=seed, **settings
        )
        return rows.tolist()

    first = sample(3)
    torch.rand(5)
    assert sample(3) == first
    assert sample(4) != first
    torch.set_rng_state(before)
    sample(5)
    assert torch.equal(torch.get_rng_state(), before)
    # A nucleus that holds one token is greedy.
    greedy = case.lens.generate(batch.ids, batch.mask, max_new_tokens=5).tolist()
    assert sample(6, top_p=1e-6) == greedy


def test_ids_that_do_not_fit_are_refused(case: Case) -> None:
    lens = case.lens
    too_long = torch.zeros((1, CONTEXT + 1), dtype=torch.long)
    with pytest.raises(ShapeError, match=f"{CONTEXT + 1} tokens is longer than the context"):
        lens.forward(too_long, torch.ones_like(too_long))
    for bad in (VOCABULARY, -1):
        ids = torch.tensor([[0, bad]])
        with pytest.raises(ShapeError, match=f"token id {bad} is outside the vocabulary"):
            lens.forward(ids, torch.ones_like(ids))
    with pytest.raises(ShapeError, match=r"shape \(3,\), expected \[batch, position\]"):
        lens.forward(torch.zeros(3, dtype=torch.long), torch.ones(3))
    ids = torch.zeros((1, CONTEXT - 2), dtype=torch.long)
    with pytest.raises(ShapeError, match="62 prompt tokens and 3 new ones exceed the context"):
        lens.generate(ids, torch.ones_like(ids), max_new_tokens=3)


def test_unknown_sites_and_hooks_are_refused(case: Case) -> None:
    lens, batch = case.lens, pad([ROWS[0]])
    first = Gather(torch.tensor([0]), torch.tensor([0]))
    with pytest.raises(HookError, match=r"no hook 'blocks.0.hook_resid_pots'; near it: \w+"):
        lens.check(["blocks.0.hook_resid_pots"])
    with pytest.raises(HookError, match=r"near it: blocks\.0\.hook_resid_post, blocks\.1\."):
        lens.check(["blocks.7.hook_resid_post"])
    lens.check([lens.hook_name("resid_post.1")])
    with pytest.raises(HookError, match=r"unknown site 'resid_middle\.0'"):
        lens.capture(batch.ids, batch.mask, ["resid_middle.0"], first)
    with (
        pytest.raises(HookError, match=r"has 2 layers, so the last is 'resid_post.1'"),
        lens.hooks([Edit("resid_post.2", lambda x: x)]),
    ):
        pass
    with pytest.raises(HookError, match="unknown site"), lens.reading(["resid_post.-1"]):
        pass


def test_reading_keeps_the_graph(case: Case) -> None:
    batch = pad([ROWS[0]])
    leaf = torch.zeros(32, requires_grad=True)
    with (
        case.lens.reading([FINAL]) as store,
        case.lens.hooks([Edit("resid_post.0", lambda x: x + leaf)]),
    ):
        case.lens.forward(batch.ids, batch.mask)
    store[FINAL].sum().backward()
    assert leaf.grad is not None and bool(leaf.grad.any())


@pytest.mark.skipif(not HAS_HOOKED, reason="needs TransformerLens 3.9")
@pytest.mark.parametrize("architecture", sorted(UNSUPPORTED_BY_HOOKED))
def test_hooked_refuses_what_it_cannot_build(architecture: str) -> None:
    with pytest.raises(CheckpointError, match=r"HookedTransformer 3\.9 cannot build"):
        load_lens_model(random_model(architecture), backend="hooked")


@pytest.mark.skipif(HAS_HOOKED, reason="TransformerLens 3.9 has HookedTransformer")
def test_hooked_names_what_to_install() -> None:
    with pytest.raises(DependencyError, match=r"dsteer-tl\[hooked-transformer\]"):
        load_lens_model(random_model(), backend="hooked")


def test_unknown_backend() -> None:
    with pytest.raises(ConfigurationError, match="unknown backend 'flax'"):
        load_lens_model(random_model(), backend="flax")  # type: ignore[arg-type]


def test_building_leaves_the_configuration_alone(backend: str) -> None:
    model = random_model("gpt2")
    before = model.config.to_dict()
    load_lens_model(model, backend=backend)
    assert model.config.to_dict() == before


def test_training_mode_is_left(backend: str) -> None:
    """TRL hands models back in training mode, where GPT-2's dropout makes logits random."""
    plain, batch = random_model("gpt2"), pad([ROWS[0]])
    expected = plain_logits(plain, ROWS[0])
    lens = load_lens_model(plain.train(), backend=backend)
    with torch.no_grad():
        found = lens.forward(batch.ids, batch.mask)[0]
    torch.testing.assert_close(found, expected, rtol=0, atol=2e-5)


def test_generation_ignores_settings_of_the_checkpoint(backend: str) -> None:
    plain, batch = random_model(), pad(ROWS, side="left")
    model = copy.deepcopy(plain)
    model.generation_config.repetition_penalty = 50.0
    model.generation_config.no_repeat_ngram_size = 1
    model.generation_config.min_new_tokens = 6
    model.generation_config.suppress_tokens = list(range(2, VOCABULARY))
    lens = load_lens_model(model, backend=backend)
    generated = lens.generate(batch.ids, batch.mask, max_new_tokens=6)
    for index, row in enumerate(ROWS):
        expected = greedy_without_cache(plain, row, 6, {1})
        assert cut(generated[index, batch.ids.shape[1] :].tolist(), {1}) == expected


def test_every_architecture_is_in_the_suite() -> None:
    assert len(ARCHITECTURES) == 10
