"""Every preset up to the point where the hub would be asked.

The hub's edge is replaced: checkpoints are tiny random ones of the same architecture, and data sets
serve real rows in the shape of the hub's. Everything between is the real thing.
"""

from __future__ import annotations

import csv
import gzip
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets
import pytest
import torch
import transformers

from dsteer_tl.capture import capture_shifts
from dsteer_tl.cli import main
from dsteer_tl.experiment.configuration import (
    CONTINUATIONS,
    ExperimentConfiguration,
    build_configuration,
    preset_names,
    preset_settings,
)
from dsteer_tl.experiment.stages import Experiment
from tests.models import policy_of, random_model, save_checkpoint, tiny_tokenizer

CONTEXT = 1024
ROWS = 400
SHORTEST = 24
TEMPLATE = (
    "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)

#: Architecture of each preset's models, as the registry of `tests.models` calls it.
ARCHITECTURES = {
    "gpt2-toxicity": "gpt2",
    "pythia-160m-hh": "neox",
    "llama2-7b-hh": "llama",
    "llama2-7b-oasst1": "llama",
    "mistral-7b-hh": "mistral",
    "pythia-2.8b-hh": "neox",
    "pythia-6.9b-hh": "neox",
    "zephyr-7b": "mistral",
    "tulu3-8b": "llama",
    "olmo2-7b": "olmo2",
}
SPLITS = {
    "s-nlp/paradetox": {"train"},
    "Anthropic/hh-rlhf": {"train", "test"},
    "OpenAssistant/oasst1": {"train", "validation"},
    "HuggingFaceH4/ultrafeedback_binarized": {"train_prefs", "test_prefs"},
}
PRESETS = sorted(ARCHITECTURES)
TRAINED = sorted(name for name in PRESETS if not preset_settings(name).get("policy"))
#: Pairs from the hub in place of those that a preset makes itself; its own are those of
#: `test_gpt2_toxicity`.
READY_MADE: dict[str, dict[str, Any]] = {
    "gpt2-toxicity": {
        "preferences": {"sources": ["s-nlp/paradetox"], "layout": "rewrites"},
        "toxicity": {"enabled": False},
    }
}
#: One of each kind of training is enough: the others differ in data and sizes alone.
DISTINCT_TRAINING = ("gpt2-toxicity", "pythia-160m-hh", "llama2-7b-oasst1")


def test_every_preset_that_asks_the_hub_is_tested() -> None:
    assert set(preset_names()) - {"tales"} == set(PRESETS)


@pytest.mark.parametrize("name", PRESETS)
def test_settings_validate_and_say_what_to_expect(name: str) -> None:
    found = build_configuration(preset_settings(name))
    assert found.name == name
    assert found.description.endswith(".")
    assert found.expectation.minutes > 0
    assert found.expectation.memory
    assert found.expectation.hardware
    assert not found.expectation.measured
    assert "/" in found.base
    assert found.policy != found.base
    # The identity of claim 1 needs a readout that does not move.
    assert found.training.freeze_embeddings
    assert found.training.freeze_unembedding
    for source in set(found.preferences.sources) - {CONTINUATIONS}:
        assert found.preferences.hub_split in SPLITS[source]


@pytest.mark.parametrize("name", TRAINED)
def test_weights_that_are_trained_in_full_are_float32(name: str) -> None:
    """A bfloat16 weight rounds away an update that is 1/512 of it or less."""
    found = build_configuration(preset_settings(name))
    assert found.training.lora_rank > 0 or found.model.dtype == "float32"
    # There is no random-weights control for an adapter.
    assert not (found.training.lora_rank and found.measurement.random_weights)


# The hub's rows, from real files.


def hh_rows(folder: Path) -> list[dict[str, Any]]:
    with gzip.open(folder / "hh_harmless_base_test.jsonl.gz", "rt", encoding="utf-8") as file:
        return [json.loads(line) for _, line in zip(range(ROWS), file, strict=False)]


def oasst_rows(folder: Path) -> list[dict[str, Any]]:
    def flatten(message: dict[str, Any], parent: str | None) -> Iterator[dict[str, Any]]:
        keys = ("message_id", "text", "role", "lang", "deleted", "review_result")
        flat = {key: message[key] for key in keys}
        yield {**flat, "rank": message.get("rank"), "parent_id": parent}
        for reply in message["replies"]:
            yield from flatten(reply, message["message_id"])

    with (folder / "oasst1_en_100_trees.jsonl").open(encoding="utf-8") as file:
        return [m for line in file for m in flatten(json.loads(line)["prompt"], None)]


def paradetox_rows(folder: Path) -> list[dict[str, Any]]:
    """One rewrite a row, as on the hub."""
    with (folder / "paradetox.tsv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE))[:ROWS]
    return [
        {"en_toxic_comment": row["toxic"], "en_neutral_comment": row[column]}
        for row in rows
        for column in ("neutral1", "neutral2", "neutral3")
        if row[column]
    ]


def ultrafeedback_rows(folder: Path) -> list[dict[str, Any]]:
    """Real dialogues of one turn as messages, with the prompt as a text beside them."""
    rows = []
    for row in hh_rows(folder):
        turns = {side: row[side].split("\n\nHuman: ")[1:] for side in ("chosen", "rejected")}
        if any(len(found) != 1 for found in turns.values()):
            continue
        messages = {}
        for side, (turn,) in turns.items():
            question, _, answer = turn.partition("\n\nAssistant: ")
            messages[side] = [
                {"role": "user", "content": question},
                {"role": "assistant", "content": answer},
            ]
        rows.append({"prompt": messages["chosen"][0]["content"], **messages})
    return rows


HUB: dict[str, Callable[[Path], list[dict[str, Any]]]] = {
    "s-nlp/paradetox": paradetox_rows,
    "Anthropic/hh-rlhf": hh_rows,
    "OpenAssistant/oasst1": oasst_rows,
    "HuggingFaceH4/ultrafeedback_binarized": ultrafeedback_rows,
}


@dataclass
class Hub:
    """What was asked of the hub."""

    models: list[tuple[str, dict[str, Any]]]
    data: list[tuple[str, str]]


@pytest.fixture
def hub(
    request: pytest.FixtureRequest,
    shared_folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> Hub:
    """Tiny checkpoints under the names of a preset, and real rows under those of its data."""
    name: str = request.node.callspec.params["name"]
    found = build_configuration(preset_settings(name))
    architecture = ARCHITECTURES[name]
    length = "n_positions" if architecture == "gpt2" else "max_position_embeddings"
    base = random_model(architecture, **{length: CONTEXT})
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = TEMPLATE
    folders = {found.base: save_checkpoint(base, tmp_path / "base", tokenizer)}
    if found.policy:
        policy = policy_of(base)
        folders[found.policy] = save_checkpoint(policy, tmp_path / "policy", tokenizer)
    asked = Hub([], [])

    def redirected(original: Callable[..., Any], name: str) -> Callable[..., Any]:
        def from_pretrained(source: str, **settings: Any) -> Any:
            if name == "AutoModelForCausalLM" and source in folders:
                asked.models.append((source, settings))
            return original(folders.get(source, source), **settings)

        return from_pretrained

    for name in ("AutoModelForCausalLM", "AutoTokenizer", "AutoConfig"):
        kind = getattr(transformers, name)
        monkeypatch.setattr(kind, "from_pretrained", redirected(kind.from_pretrained, name))

    def load_dataset(source: str, *_: object, split: str, **__: object) -> datasets.Dataset:
        asked.data.append((source, split))
        return datasets.Dataset.from_list(HUB[source](shared_folder / "data" / "preferences"))

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    return asked


def tiny(name: str, **training: Any) -> ExperimentConfiguration:
    """A preset on the CPU with as few steps and pairs as show that it works."""
    return build_configuration(
        preset_settings(name),
        READY_MADE.get(name, {}),
        {
            "model": {"device": "cpu"},
            "preferences": {"limit": SHORTEST},
            "training": {"max_steps": 2, "batch_size": 2, "warmup_steps": 0, **training},
            "measurement": {"pairs": 4, "response_limit": 2},
        },
    )


def read_pairs(experiment: Experiment) -> list[str]:
    """Run the preferences stage alone and return the prompts that it kept."""
    experiment.preferences_stage()
    assert experiment.preferences is not None
    return [pair.prompt for pair in experiment.preferences]


@pytest.mark.parametrize("name", PRESETS)
def test_pair_and_capture_of_the_same_architecture(name: str, hub: Hub, tmp_path: Path) -> None:
    configuration = tiny(name)
    if not configuration.policy:
        # Training has a test of its own: any sibling of the base serves here.
        sibling = random_model(ARCHITECTURES[name], **_length(name))
        save_checkpoint(policy_of(sibling), tmp_path / "sibling")
        configuration = build_configuration(
            preset_settings(name),
            READY_MADE.get(name, {}),
            {
                "model": {"device": "cpu"},
                "policy": str(tmp_path / "sibling"),
                "preferences": {"limit": SHORTEST},
                "measurement": {"pairs": 4, "response_limit": 2},
            },
        )
    experiment = Experiment(configuration, tmp_path / "run", progress=False)
    prompts = read_pairs(experiment)
    assert len(prompts) == SHORTEST
    assert hub.data == [
        (source, configuration.preferences.hub_split)
        for source in configuration.preferences.sources
    ]
    if configuration.preferences.layout == "conversations":
        assert all(p.startswith("<|user|>") and p.endswith("<|assistant|>") for p in prompts)
    elif configuration.preferences.layout != "rewrites":
        assert all(p.startswith("\n\nHuman:") and p.endswith("\n\nAssistant:") for p in prompts)

    shift_set = capture_shifts(experiment.pair, experiment.probes)
    assert hub.models[0][0] == configuration.base
    assert hub.models[0][1]["dtype"] == getattr(torch, configuration.model.dtype)
    assert hub.models[0][1]["trust_remote_code"] is False
    assert shift_set.sites == experiment.pair.base.sites
    assert shift_set.count("last_prompt") == 4
    assert 0 < shift_set.count("response") <= 8
    for site in shift_set.sites:
        assert abs(shift_set.shifts(site, "last_prompt")).max() > 0


def _length(name: str) -> dict[str, int]:
    return {"n_positions" if name == "gpt2-toxicity" else "max_position_embeddings": CONTEXT}


# PEFT 0.21 reads a name that transformers 5.23 deprecates.
@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning")
@pytest.mark.parametrize("name", DISTINCT_TRAINING)
def test_training_settings_are_accepted(name: str, hub: Hub, tmp_path: Path) -> None:
    configuration = tiny(name)
    experiment = Experiment(configuration, tmp_path / "run", progress=False)
    experiment.train()
    adapter = (tmp_path / "run" / "policy" / "adapter_config.json").is_file()
    assert adapter == (configuration.training.lora_rank > 0)
    losses = experiment.directory.table("training").query("name == 'train_loss'")["value"]
    assert len(losses) == 1
    assert losses.notna().all()
    assert experiment.pair.preflight.same_readout or not adapter


@pytest.mark.parametrize(
    "name",
    [
        "zephyr-7b",
        "pythia-6.9b-hh",
    ],
)
def test_whole_run_in_bfloat16(name: str, hub: Hub, tmp_path: Path) -> None:
    """RMSNorm and LayerNorm take rows of another dtype differently."""
    out = tmp_path / "run"
    settings = (
        "model.device=cpu",
        f"preferences.limit={SHORTEST}",
        "measurement.pairs=8",
        "measurement.draws=10",
        "measurement.null_draws=2",
        "measurement.gradient_pairs=2",
        "measurement.patching_pairs=2",
        "measurement.coefficients=[0.0, 1.0]",
        "sweep.prompts=2",
        "sweep.interpolate=[-1.0, 0.0, 1.0, 2.0]",
        "sweep.invert=[0.0, 1.0]",
        "sweep.max_new_tokens=4",
        "sweep.draws=10",
    )
    arguments = ["reproduce", "--preset", name, "--out", str(out), "--quiet", "--no-images"]
    assert main([*arguments, "--set", *settings]) == 0
    claims = json.loads((out / "claims.json").read_text("utf-8"))
    reasons = {claim["id"]: claim["reason"] for claim in claims if claim["verdict"] == "NOT RUN"}
    # Random weights share no phrase of four words with any reference.
    assert "bleu is 0 at every λ > 0" in reasons.pop(12, "bleu is 0 at every λ > 0")
    # Without a judge, suites of harmful prompts, the toxicity study, and the stress tests.
    assert set(reasons) == {14, 16, 17, *range(20, 37)}


@pytest.mark.parametrize("name", PRESETS)
def test_offline_the_hub_request_fails_in_one_line(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HOME", str(tmp_path / "home"))
    out = tmp_path / "run"
    assert main(["reproduce", "--preset", name, "--out", str(out), "--quiet", "--no-images"]) == 2
    error = capsys.readouterr().err
    base = build_configuration(preset_settings(name)).base
    lines = [line for line in error.splitlines() if line.startswith("dsteer: ")]
    assert len(lines) == 1
    assert base in lines[0]
    assert "Traceback" not in error
    assert not (out / "preferences.jsonl").exists()
