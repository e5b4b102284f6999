"""The stress tests that train variants, whole, on a tiny model of random weights."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from dsteer_tl.errors import ConfigurationError
from dsteer_tl.stress import variant_training
from dsteer_tl.stress.causes import causes_table
from dsteer_tl.stress.columns import VARIANT_COLUMNS
from dsteer_tl.stress.embeddings import embeddings_table
from dsteer_tl.stress.heterogeneous import heterogeneous_table
from dsteer_tl.stress.inputs import StressInputs
from dsteer_tl.stress.losses import losses_table
from dsteer_tl.stress.sensitivity import nested_share, sensitivity_table
from dsteer_tl.training import train_dpo
from tests.stress.tiny_stress import RECIPE, make_inputs, make_pairs

NAMES = {
    "cos_loo_mean",
    "sigma_ratio",
    "effective_rank",
    "effective_rank_centred",
    "pc1_share_centred",
    "v_norm",
    "relative_norm",
    "kl",
    "recovered",
    "readout_shift",
}


@pytest.fixture(scope="module")
def folders(
    tiny_folders: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, Path]:
    """A tiny base and a policy that was trained by the recipe."""
    policy = tmp_path_factory.mktemp("run") / "policy"
    train_dpo(tiny_folders[0], make_pairs(), policy, RECIPE, progress=False)
    return tiny_folders[0], policy


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the tests of this file keep their variants, so that they share what is the same."""
    return tmp_path_factory.mktemp("stress")


def roles(table: pd.DataFrame) -> dict[str, str]:
    return dict(table[["condition", "role"]].drop_duplicates().to_numpy().tolist())


def value(table: pd.DataFrame, condition: str, statistic: str, **where: str) -> float:
    rows = table[(table["condition"] == condition) & (table["statistic"] == statistic)]
    for column, wanted in where.items():
        rows = rows[rows[column] == wanted]
    assert len(rows) >= 1, (condition, statistic)
    return float(rows["value"].iloc[0])


def check(table: pd.DataFrame, reference: str) -> None:
    """What every table has: all statistics at both sites and kinds, and no undefined number."""
    assert tuple(table.columns) == VARIANT_COLUMNS
    first = table[(table["condition"] == reference) & (table["data"] == "run")]
    places = first[first["statistic"].isin(NAMES)].groupby(["site", "position_kind"])["statistic"]
    assert {(site, kind) for (site, kind), _ in places} == {
        (site, kind) for site in ("resid_post.1", "h") for kind in ("last_prompt", "response")
    }
    assert all(set(names) == NAMES for _, names in places)
    assert {"margin", "accuracy"} <= set(first.loc[first["site"] == "output", "statistic"])
    assert np.isfinite(table["value"]).all()
    assert (table["low"].isna() | (table["low"] <= table["high"])).all()
    keys = ["condition", "data", "site", "position_kind", "statistic"]
    assert not table.duplicated(keys).any()


def test_embeddings(
    folders: tuple[Path, Path], folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    inputs = make_inputs(folders, folder)
    table = embeddings_table(inputs)
    check(table, "frozen")
    assert roles(table) == {
        "frozen": "measured",
        "trainable": "measured",
        "other_seed": "control",
        "random_weights": "control",
    }
    assert value(table, "frozen", "readout_shift", site="h") == pytest.approx(0, abs=1e-9)
    assert value(table, "trainable", "readout_shift", site="h") > 1e-6
    assert 0 < value(table, "trainable", "unembedding_change") < 0.1
    assert value(table, "trainable", "cos_to_reference", site="h") > 0.9

    def train(*args: object, **kwargs: object) -> None:
        raise AssertionError("an up-to-date variant was trained again")

    monkeypatch.setattr(variant_training, "train_dpo", train)
    pd.testing.assert_frame_equal(embeddings_table(make_inputs(folders, folder)), table)


def test_heterogeneous(folders: tuple[Path, Path], folder: Path) -> None:
    table = heterogeneous_table(make_inputs(folders, folder, axes=(2, 1)))
    check(table, "axes_1")
    assert roles(table) == {
        "axes_1": "measured",
        "axes_2": "measured",
        "axes_2_shuffled": "control",
    }
    ratio = value(table, "axes_2", "ratio:effective_rank", site="h", position_kind="last_prompt")
    ranks = [
        value(table, name, "effective_rank", site="h", position_kind="last_prompt")
        for name in ("axes_2", "axes_1")
    ]
    assert ratio == pytest.approx(ranks[0] / ranks[1])
    assert {"accuracy:sentiment", "accuracy:brevity", "axis_cosine"} <= set(table["statistic"])
    # Happy texts are longer than sad ones, but for ties, which train nothing.
    assert value(table, "axes_1", "agreement:sentiment:brevity") < 1
    ties = value(table, "axes_1", "ties:brevity")
    assert value(table, "axes_1", "training_pairs") == 8 - ties


def test_causes_and_transfer(folders: tuple[Path, Path], folder: Path) -> None:
    other = folder / "other.jsonl"
    other.write_text(
        "".join(
            json.dumps({"prompt": name + end, "chosen": " yes, so happy.", "rejected": " no, sad."})
            + "\n"
            for name in ("He", "She", "A bird", "The old man", "The dog", "Nobody")
            for end in (" was here", " came", " went", " sang")
        ),
        "utf-8",
    )
    table = causes_table(make_inputs(folders, folder, transfer=(f"other={other}",)))
    check(table, "as_run")
    assert roles(table[table["data"] == "run"]) == {
        "as_run": "measured",
        "sft_on_chosen": "measured",
        "other_seed": "measured",
        "data_other": "measured",
        "shuffled_pairs": "control",
        "random_vector": "control",
        "random_weights": "control",
    }
    there = table[table["data"] == "other"]
    assert list(dict.fromkeys(there["condition"])) == ["data_other", "as_run", "random_vector"]
    vector = table[(table["condition"] == "random_vector") & (table["data"] == "run")]
    assert set(vector["statistic"]) >= {"cos_to_reference", "recovered_of_reference"}
    assert "cos_loo_mean" not in set(vector["statistic"])
    for site in ("h", "resid_post.1"):
        norms = [value(table, name, "v_norm", site=site) for name in ("as_run", "random_vector")]
        assert norms[0] == pytest.approx(norms[1])
    with pytest.raises(ConfigurationError, match="expected NAME=FILE"):
        causes_table(make_inputs(folders, folder, transfer=("other",)))


def test_losses(folders: tuple[Path, Path], folder: Path) -> None:
    table = losses_table(make_inputs(folders, folder, losses=("sigmoid", "ipo", "kto")))
    check(table, "as_run")
    assert list(roles(table)) == ["as_run", "loss_ipo", "loss_kto", "random_weights"]
    assert value(table, "loss_kto", "margin") > 0
    assert value(table, "loss_kto", "cos_to_reference", site="h") > 0.2


def test_sensitivity(folders: tuple[Path, Path], folder: Path) -> None:
    table = sensitivity_table(make_inputs(folders, folder, betas=(1.0, 0.1), shares=(0.5, 1.0)))
    check(table, "as_run")
    assert list(roles(table)) == ["as_run", "beta_0.1", "share_0.5", "random_weights"]


def test_shares_are_nested_and_keep_what_is_held_out() -> None:
    pairs = make_pairs()
    shares = [nested_share(pairs, share, seed=3) for share in (0.25, 0.5, 1.0)]
    sizes = [len(share.train) for share in shares]
    assert sizes == [2, 4, 8]
    for smaller, larger in pairwise(shares):
        assert set(smaller.prompts) < set(larger.prompts)
    assert all(share.held_out.pairs == pairs.held_out.pairs for share in shares)
    for share in (0.0, 1.5, 0.01):
        with pytest.raises(ConfigurationError, match="of 8 training prompts"):
            nested_share(pairs, share, seed=0)


@pytest.mark.parametrize(
    "build",
    [embeddings_table, heterogeneous_table, causes_table, losses_table, sensitivity_table],
)
def test_a_policy_that_was_given_has_no_recipe(
    build: Callable[[StressInputs], pd.DataFrame], folders: tuple[Path, Path], tmp_path: Path
) -> None:
    with pytest.raises(ConfigurationError, match="no recipe"):
        build(replace(make_inputs(folders, tmp_path), training=None))
