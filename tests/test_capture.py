"""Captured residuals against plain transformers in float64, one prompt at a time."""

from __future__ import annotations

import copy
import errno
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from dsteer_tl import capture
from dsteer_tl.capture import CaptureConfiguration, ShiftSet, capture_shifts
from dsteer_tl.errors import DataError, HookError, RunError, ShapeError
from dsteer_tl.files import read_json
from dsteer_tl.lens_model import LoadOptions, load_lens_model, load_model
from dsteer_tl.pair import ModelPair
from dsteer_tl.positions import Probe, probes_from_pairs, probes_from_prompts
from dsteer_tl.preferences import PreferencePair
from tests.models import (
    backbone_parts,
    is_block,
    policy_of,
    random_model,
    tiny_tokenizer,
)

QUIET = CaptureConfiguration(progress=False)
SMALL = CaptureConfiguration(progress=False, shard_sequences=3, token_budget=40)
PAIRS = [
    PreferencePair("Once upon a time", " the bird was happy and", " the bird was sad"),
    PreferencePair("The dog", " was blue", " saw the rain and the river"),
    PreferencePair("She said no because the old man", " was happy again.", " went to the river"),
    PreferencePair("He", " said", " said yes"),  # a prefix: no divergence
    PreferencePair("But nobody knew why", " the water was low in the morning.", " she sang"),
    PreferencePair("The old man went", " and the dog came again and again", " and no"),
    PreferencePair("Rain", " came and the flowers were red", " was low"),
]


def probes_of(pair: ModelPair) -> tuple[Probe, ...]:
    return probes_from_pairs(
        pair.tokenizer,
        PAIRS,
        ["last_prompt", "divergence", "response", "token.1"],
        response_limit=4,
    )


@torch.no_grad()
def reference_states(model: Any, ids: tuple[int, ...]) -> list[np.ndarray]:
    """resid_post of every block, then h, from a plain model in float64."""
    blocks = backbone_parts(model)[0]
    last: list[Tensor] = []

    def keep(_module: Any, _inputs: Any, output: Any) -> None:
        last.append(output[0] if isinstance(output, tuple) else output)

    handle = blocks[-1].register_forward_hook(keep)
    states = model(torch.tensor([ids]), output_hidden_states=True).hidden_states
    handle.remove()
    # hidden_states[0] is the embedding and hidden_states[-1] is already normed.
    return [state[0].numpy() for state in (*states[1:-1], last[0], states[-1])]


def reference_shifts(
    base: Any, policy: Any, probes: tuple[Probe, ...]
) -> tuple[dict[tuple[int, str], np.ndarray], dict[str, list[tuple[int, int]]]]:
    """Shifts per (place in depth, kind), in order of prompt and position."""
    base, policy = copy.deepcopy(base).double(), copy.deepcopy(policy).double()
    rows: dict[tuple[int, str], list[np.ndarray]] = {}
    places: dict[str, list[tuple[int, int]]] = {}
    for probe in probes:
        found = reference_states(base, probe.ids), reference_states(policy, probe.ids)
        for kind, positions in probe.positions.items():
            for position in sorted(positions):
                places.setdefault(kind, []).append((probe.prompt, position))
                for depth, (x, y) in enumerate(zip(*found, strict=True)):
                    rows.setdefault((depth, kind), []).append(y[position] - x[position])
    return {key: np.stack(value) for key, value in rows.items()}, places


def check_against_reference(pair: ModelPair, base: Any, policy: Any) -> None:
    probes = probes_of(pair)
    found = capture_shifts(pair, probes, configuration=SMALL)
    expected, places = reference_shifts(base, policy, probes)
    assert set(found.kinds) == set(places) and found.sites == pair.base.sites
    for kind, rows in places.items():
        assert found.count(kind) == len(rows)
        assert list(zip(found.prompts(kind), found.positions(kind), strict=True)) == rows
        for depth, site in enumerate(found.sites):
            shifts = found.shifts(site, kind)
            assert shifts.dtype == np.float64
            wanted = expected[depth, kind]
            error = np.linalg.norm(shifts - wanted) / np.linalg.norm(wanted)
            assert error < 1e-4, (site, kind, error)


@pytest.mark.parametrize("architecture", ["gpt2", "gemma2"])
def test_shifts_of_random_models(architecture: str) -> None:
    base = random_model(architecture)
    policy = policy_of(base)
    pair = ModelPair.load(copy.deepcopy(base), copy.deepcopy(policy), tokenizer=tiny_tokenizer())
    check_against_reference(pair, base, policy)


def test_shifts_of_a_pretrained_model(stories260k: Path, stories_pair: ModelPair) -> None:
    base = load_model(stories260k, LoadOptions())
    check_against_reference(stories_pair, base, policy_of(base))


def arrays(shift_set: ShiftSet) -> dict[str, np.ndarray]:
    found = {}
    for kind in shift_set.kinds:
        found[f"prompts {kind}"] = shift_set.prompts(kind)
        found[f"positions {kind}"] = shift_set.positions(kind)
        for site in shift_set.sites:
            for model in shift_set.models:
                found[f"{model} {site} {kind}"] = shift_set.residuals(model, site, kind)
    return found


def assert_same(one: ShiftSet, other: ShiftSet, tolerance: float = 0.0) -> None:
    first, second = arrays(one), arrays(other)
    assert first.keys() == second.keys()
    for name, values in first.items():
        np.testing.assert_allclose(second[name], values, rtol=0, atol=tolerance, err_msg=name)


def test_batching_changes_nothing(tiny_pair: ModelPair) -> None:
    probes = probes_of(tiny_pair)
    small = capture_shifts(
        tiny_pair, probes, configuration=CaptureConfiguration(token_budget=64, progress=False)
    )
    large = capture_shifts(
        tiny_pair, probes, configuration=CaptureConfiguration(token_budget=4096, progress=False)
    )
    sharded = capture_shifts(
        tiny_pair, probes, configuration=CaptureConfiguration(shard_sequences=2, progress=False)
    )
    assert_same(small, large, 1e-5)
    assert_same(small, sharded, 1e-5)


def test_memory_and_disk_agree(tiny_pair: ModelPair, tmp_path: Path) -> None:
    probes = probes_of(tiny_pair)
    memory = capture_shifts(tiny_pair, probes, configuration=SMALL)
    disk = capture_shifts(tiny_pair, probes, folder=tmp_path / "capture", configuration=SMALL)
    assert_same(memory, disk)
    assert_same(memory, ShiftSet.open(tmp_path / "capture"))
    assert repr(memory) == repr(disk)
    assert repr(disk).startswith("ShiftSet(base, policy; 3 sites; rows: 7 token.1, 7 last_prompt")
    assert disk.hashes == {
        "base": tiny_pair.base.weights_hash,
        "policy": tiny_pair.policy.weights_hash,
    }


def test_chosen_sites_and_controls(tiny_pair: ModelPair) -> None:
    control = load_lens_model(policy_of(random_model(), seed=5))
    probes = probes_from_prompts(tiny_pair.tokenizer, ["Once upon", "The old dog"])
    found = capture_shifts(
        tiny_pair, probes, sites=["h"], controls={"random": control}, configuration=QUIET
    )
    assert found.sites == ("h",) and found.models == ("base", "policy", "random")
    other = capture_shifts(
        ModelPair(tiny_pair.base, control, tiny_pair.tokenizer, tiny_pair.preflight),
        probes,
        configuration=QUIET,
    )
    np.testing.assert_array_equal(
        found.shifts("h", "last_prompt", "random"), other.shifts("h", "last_prompt")
    )
    np.testing.assert_array_equal(found.shifts("h", "last_prompt", "base"), 0)


# Interruption and damage


class Counter:
    """Counts forward passes of captures, and may fail at one of them."""

    def __init__(self, fail_at: int | None = None, error: BaseException | None = None) -> None:
        self.passes, self.fail_at, self.error = 0, fail_at, error


@contextmanager
def counting(pair: ModelPair, counter: Counter) -> Iterator[Counter]:
    lens: Any = pair.base
    original = lens.capture

    def capture_once(*arguments: Any, **settings: Any) -> Any:
        if counter.error is not None and counter.passes == counter.fail_at:
            raise counter.error
        counter.passes += 1
        return original(*arguments, **settings)

    lens.capture = capture_once
    try:
        yield counter
    finally:
        del lens.capture


ONE_BY_ONE = CaptureConfiguration(progress=False, shard_sequences=2, token_budget=1)


@pytest.mark.parametrize("error", [KeyboardInterrupt(), RuntimeError("killed")])
def test_an_interrupted_capture_continues(
    tiny_pair: ModelPair, tmp_path: Path, error: BaseException
) -> None:
    probes, folder = probes_of(tiny_pair), tmp_path / "capture"
    whole = capture_shifts(tiny_pair, probes, configuration=ONE_BY_ONE)
    with counting(tiny_pair, Counter(5, error)), pytest.raises(type(error)):
        capture_shifts(tiny_pair, probes, folder=folder, configuration=ONE_BY_ONE)
    # Two sequences a shard, one a pass: two shards are whole, the third was half done.
    assert sorted(path.name for path in folder.iterdir()) == [
        "index.json",
        "shard-00000.safetensors",
        "shard-00001.safetensors",
    ]
    assert read_json(folder / "index.json")["finished"] is False
    with counting(tiny_pair, Counter()) as counter:
        resumed = capture_shifts(tiny_pair, probes, folder=folder, configuration=ONE_BY_ONE)
    assert counter.passes == len(probes) - 4
    assert_same(whole, resumed)
    with counting(tiny_pair, Counter()) as counter:
        again = capture_shifts(tiny_pair, probes, folder=folder, configuration=ONE_BY_ONE)
    assert counter.passes == 0
    assert_same(whole, again)


@pytest.mark.parametrize("damage", ["truncate", "delete", "empty"])
def test_a_damaged_shard_is_redone(tiny_pair: ModelPair, tmp_path: Path, damage: str) -> None:
    probes, folder = probes_of(tiny_pair), tmp_path / "capture"
    whole = capture_shifts(tiny_pair, probes, folder=folder, configuration=ONE_BY_ONE)
    expected = arrays(whole)
    shard = folder / "shard-00001.safetensors"
    if damage == "delete":
        shard.unlink()
    else:
        content = shard.read_bytes()
        shard.write_bytes(content[: len(content) - 7] if damage == "truncate" else b"")
    with pytest.raises(RunError, match=r"shard-00001\.safetensors is missing or damaged"):
        ShiftSet.open(folder)
    with counting(tiny_pair, Counter()) as counter:
        redone = capture_shifts(tiny_pair, probes, folder=folder, configuration=ONE_BY_ONE)
    assert counter.passes == 2
    for name, values in arrays(redone).items():
        np.testing.assert_array_equal(values, expected[name])


def test_another_capture_replaces_the_shards_and_nothing_else(
    tiny_pair: ModelPair, tmp_path: Path
) -> None:
    probes, folder = probes_of(tiny_pair), tmp_path / "capture"
    folder.mkdir()
    (folder / "thesis.tex").write_text("mine")
    capture_shifts(tiny_pair, probes, folder=folder, configuration=ONE_BY_ONE)
    assert len(list(folder.glob("shard-*"))) == 4
    with counting(tiny_pair, Counter()) as counter:
        found = capture_shifts(
            tiny_pair, probes[:3], folder=folder, sites=["h"], configuration=ONE_BY_ONE
        )
    assert counter.passes == 3 and len(list(folder.glob("shard-*"))) == 2
    assert found.sites == ("h",)
    assert (folder / "thesis.tex").read_text() == "mine"
    # Other weights are another capture, too.
    policy = load_lens_model(policy_of(random_model(), seed=7))
    other = ModelPair(tiny_pair.base, policy, tiny_pair.tokenizer, tiny_pair.preflight)
    with counting(tiny_pair, Counter()) as counter:
        capture_shifts(other, probes[:3], folder=folder, sites=["h"], configuration=ONE_BY_ONE)
    assert counter.passes == 3


def test_full_disk_keeps_finished_shards(
    tiny_pair: ModelPair, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    probes, folder = probes_of(tiny_pair), tmp_path / "capture"
    whole = capture_shifts(tiny_pair, probes, configuration=ONE_BY_ONE)
    save, written = capture.save_file, []

    def full(shard: Any, path: Path) -> None:
        if len(written) == 2:
            path.write_bytes(b"half")
            raise OSError(errno.ENOSPC, "No space left on device")
        written.append(path)
        save(shard, path)

    monkeypatch.setattr(capture, "save_file", full)
    with pytest.raises(RunError, match=r"shard-00002.*No space left on device.*run the same"):
        capture_shifts(tiny_pair, probes, folder=folder, configuration=ONE_BY_ONE)
    assert len(list(folder.glob("*shard-*"))) == 2
    monkeypatch.undo()
    with counting(tiny_pair, Counter()) as counter:
        resumed = capture_shifts(tiny_pair, probes, folder=folder, configuration=ONE_BY_ONE)
    assert counter.passes == len(probes) - 4
    assert_same(whole, resumed)


def test_an_unfinished_capture_cannot_be_opened(tiny_pair: ModelPair, tmp_path: Path) -> None:
    folder = tmp_path / "capture"
    with counting(tiny_pair, Counter(3, KeyboardInterrupt())), pytest.raises(KeyboardInterrupt):
        capture_shifts(tiny_pair, probes_of(tiny_pair), folder=folder, configuration=ONE_BY_ONE)
    with pytest.raises(RunError, match="not finished"):
        ShiftSet.open(folder)
    with pytest.raises(RunError, match=r"index\.json is missing"):
        ShiftSet.open(tmp_path / "none")


# Odd inputs


def test_a_shard_without_rows(tiny_pair: ModelPair, tmp_path: Path) -> None:
    """The fourth pair does not diverge and has a shard of its own."""
    probes = probes_from_pairs(tiny_pair.tokenizer, PAIRS, ["divergence"])
    one_each = CaptureConfiguration(progress=False, shard_sequences=1)
    found = capture_shifts(tiny_pair, probes, folder=tmp_path / "a", configuration=one_each)
    assert found.prompts("divergence").tolist() == [0, 1, 2, 4, 5, 6]
    assert_same(capture_shifts(tiny_pair, probes, configuration=QUIET), found, 1e-5)


def test_nothing_to_capture(tiny_pair: ModelPair) -> None:
    for probes in ([], [Probe(0, (0, 1, 2), {})]):
        with pytest.raises(ShapeError, match="there is nothing to capture"):
            capture_shifts(tiny_pair, probes, configuration=QUIET)


def test_overlong_prompts_and_unknown_sites(tiny_pair: ModelPair) -> None:
    probe = Probe(0, (2,) * 65, {"last_prompt": (64,)})
    with pytest.raises(DataError, match="prompt 0 has 65 tokens, more than the context"):
        capture_shifts(tiny_pair, [probe], configuration=QUIET)
    with pytest.raises(HookError, match="does not exist"):
        capture_shifts(tiny_pair, [probe], sites=["resid_post.9"], configuration=QUIET)


def test_unknown_rows(tiny_pair: ModelPair) -> None:
    probes = probes_from_prompts(tiny_pair.tokenizer, ["Once", "The dog"])
    found = capture_shifts(tiny_pair, probes, sites=["h"], configuration=QUIET)
    with pytest.raises(ShapeError, match="no rows of kind 'response'"):
        found.shifts("h", "response")
    with pytest.raises(ShapeError, match=r"'policy' at 'resid_post\.0' were captured"):
        found.shifts("resid_post.0", "last_prompt")
    with pytest.raises(ShapeError, match="no residuals of 'random'"):
        found.residuals("random", "h", "last_prompt")


def test_residuals_that_are_not_finite(tiny_pair: ModelPair) -> None:
    """Finite weights can still overflow, as float16 does in deep layers."""
    policy = policy_of(random_model())
    with torch.no_grad():
        for name, parameter in policy.named_parameters():
            if is_block(name) and "down_proj" in name:
                parameter.fill_(1e38)
    lens = load_lens_model(policy, self_check=False)
    pair = ModelPair(tiny_pair.base, lens, tiny_pair.tokenizer, tiny_pair.preflight)
    with pytest.raises(ShapeError, match=r"residuals of policy at .* are NaN or infinite"):
        capture_shifts(
            pair, probes_from_prompts(pair.tokenizer, ["Once upon"]), configuration=QUIET
        )


def test_progress_goes_to_stderr(tiny_pair: ModelPair, capsys: pytest.CaptureFixture[str]) -> None:
    probes = probes_from_prompts(tiny_pair.tokenizer, ["Once", "The dog"])
    capture_shifts(tiny_pair, probes, configuration=QUIET)
    assert capsys.readouterr() == ("", "")
    capture_shifts(tiny_pair, probes)
    printed = capsys.readouterr()
    assert printed.out == "" and "capture" in printed.err and "2/2" in printed.err


def test_a_folder_that_moved(tiny_pair: ModelPair, tmp_path: Path) -> None:
    probes = probes_of(tiny_pair)
    found = capture_shifts(tiny_pair, probes, folder=tmp_path / "a", configuration=SMALL)
    expected = arrays(found)
    shutil.move(tmp_path / "a", tmp_path / "b")
    for name, values in arrays(ShiftSet.open(tmp_path / "b")).items():
        np.testing.assert_array_equal(values, expected[name])


def test_pairs_of_one_prompt_stay_together_and_in_their_order(tmp_path: Path) -> None:
    """Rows are in the order of the pairs, yet no prompt is in both halves."""
    pair = ModelPair.load(random_model(), policy_of(random_model()), tokenizer=tiny_tokenizer())
    repeated = [*PAIRS[:3], PreferencePair("The dog", " said no", " was happy"), *PAIRS[4:]]
    repeated.append(PreferencePair("Once upon a time", " it came", " no bird"))
    probes = probes_from_pairs(pair.tokenizer, repeated, ["last_prompt", "divergence"])
    for folder in (None, tmp_path):
        shifts = capture_shifts(pair, probes, folder=folder, configuration=SMALL)
        expected = [probe.prompt for probe in probes]
        assert shifts.prompts("last_prompt").tolist() == expected == [0, 1, 2, 1, 4, 5, 6, 0]
        alone = [
            capture_shifts(pair, [probe], configuration=QUIET).residuals(
                "policy", "resid_post.1", "divergence"
            )
            for probe in probes
        ]
        found = shifts.residuals("policy", "resid_post.1", "divergence")
        np.testing.assert_allclose(found, np.concatenate(alone), atol=1e-5)
        for seed in range(5):
            first, second = shifts.halves("last_prompt", seed)
            assert first | second == set(expected) and not first & second


def test_a_capture_of_the_first_version_is_in_the_order_of_its_prompts(tmp_path: Path) -> None:
    pair = ModelPair.load(random_model(), policy_of(random_model()), tokenizer=tiny_tokenizer())
    probes = probes_of(pair)
    new = capture_shifts(pair, probes, folder=tmp_path, configuration=SMALL)
    for path in tmp_path.glob("shard-*.safetensors"):
        kept = load_file(path)
        del kept["item"]
        save_file(kept, path)
    old = ShiftSet.open(tmp_path)
    for kind in new.kinds:
        assert np.array_equal(old.shifts("h", kind), new.shifts("h", kind))
