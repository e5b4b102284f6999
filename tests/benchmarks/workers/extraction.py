"""Extraction with packages that need an environment of their own, driven by lines of JSON.

Run by the interpreter of that environment; it knows nothing of this project. Requests come on
standard input, one a line, and each is answered by one line on standard output:

``{"command": "load", "extraction": …, "folders": {model: folder}, "prompts": [[ids], …],
"threads": n}``
    loads checkpoints and answers with the versions of the packages;
``{"command": "run"}``
    does the work once and answers with its seconds, on the clock and of CPU time;
``{"command": "rows", "path": …}``
    saves what the last run found, as ``model/site`` in an ``.npz`` file.

Anything that goes wrong is answered with ``{"error": …}``. Prompts are handed over as text whose
tokens are these ids, since that is what the packages take.
"""

from __future__ import annotations

import importlib.metadata
import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

Rows = dict[str, dict[str, Any]]


class SteeringVectors:
    """`extract_activations`, the pass of `train_steering_vector`: pairs of prompts, block outputs.

    Two prompts make one sample, so that every prompt is run once.
    """

    packages = ("steering-vectors", "transformers", "torch")

    def __init__(self, models: dict[str, Any], tokenizer: Any, texts: list[str], batch: int):
        from steering_vectors import extract_activations

        self.extract, self.models, self.tokenizer = extract_activations, models, tokenizer
        self.samples = list(zip(texts[::2], texts[1::2], strict=True))
        self.settings = {} if batch == 1 else {"batch_size": batch}

    def run(self) -> Rows:
        import torch

        rows: Rows = {}
        for name, model in self.models.items():
            first, second = self.extract(model, self.tokenizer, self.samples, **self.settings)
            rows[name] = {}
            for layer in first:
                halves = torch.cat(first[layer]), torch.cat(second[layer])
                rows[name][f"resid_post.{layer}"] = torch.stack(halves, dim=1).flatten(0, 1).numpy()
        return rows


class Repeng:
    """The pass of `ControlVector.train`, at its own batch size, without the components after it."""

    packages = ("repeng", "transformers", "torch")

    def __init__(self, models: dict[str, Any], tokenizer: Any, texts: list[str], batch: int):
        from repeng.extract import batched_get_hiddens

        self.extract, self.models, self.tokenizer = batched_get_hiddens, models, tokenizer
        self.texts, self.batch = texts, batch

    def run(self) -> Rows:
        rows: Rows = {}
        for name, model in self.models.items():
            layers = list(range(model.config.num_hidden_layers))
            found = self.extract(model, self.tokenizer, self.texts, layers, self.batch)
            # The last of transformers' hidden states has been through the final norm.
            rows[name] = {f"resid_post.{layer}": found[layer] for layer in layers[:-1]}
            rows[name]["h"] = found[layers[-1]]
        return rows


class NNsight:
    """One trace a batch of prompts, which nnsight pads on the left."""

    packages = ("nnsight", "transformers", "torch")

    def __init__(self, models: dict[str, Any], tokenizer: Any, texts: list[str], batch: int):
        import nnsight

        self.nnsight, self.batch = nnsight, batch
        tokenizer.padding_side = "left"
        self.models = {
            name: nnsight.TransformersModel(model, tokenizer=tokenizer, task="text-generation")
            for name, model in models.items()
        }
        # Long prompts with long ones, as capture has them.
        self.order = sorted(range(len(texts)), key=lambda index: len(texts[index].split()))
        self.texts = [texts[index] for index in self.order]

    def run(self) -> Rows:
        import numpy as np
        import torch

        rows: Rows = {}
        places = np.argsort(self.order)
        with torch.no_grad():
            for name, model in self.models.items():
                batches = []
                for start in range(0, len(self.texts), self.batch):
                    with model.trace(self.texts[start : start + self.batch]):
                        kept = self.nnsight.save([])
                        for layer in model.model.layers:
                            kept.append(layer.output[:, -1])
                        kept.append(model.model.norm.output[:, -1])
                    batches.append(kept)
                columns = [
                    torch.cat(column).numpy()[places] for column in zip(*batches, strict=True)
                ]
                sites = [f"resid_post.{layer}" for layer in range(len(columns) - 1)] + ["h"]
                rows[name] = dict(zip(sites, columns, strict=True))
        return rows


#: What is extracted with, and how many prompts a batch.
EXTRACTIONS: dict[str, tuple[Callable[..., Any], int]] = {
    "steering_vectors": (SteeringVectors, 1),
    "steering_vectors_batched": (SteeringVectors, 32),
    "repeng": (Repeng, 32),
    "nnsight": (NNsight, 32),
}


def load(request: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    """The extraction that was asked for, ready to run."""
    import torch
    from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast

    torch.set_num_threads(request["threads"])
    kind, batch = EXTRACTIONS[request["extraction"]]
    models = {
        name: AutoModelForCausalLM.from_pretrained(folder, torch_dtype=torch.float32).eval()
        for name, folder in request["folders"].items()
    }
    file = Path(request["folders"]["base"]) / "tokenizer.json"
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_file=str(file), pad_token="t000000", eos_token="t000001", padding_side="right"
    )
    texts = [" ".join(f"t{token:06}" for token in prompt) for prompt in request["prompts"]]
    for prompt, text in zip(request["prompts"], texts, strict=True):
        if tokenizer(text)["input_ids"] != prompt:
            raise ValueError("the tokenizer does not give the ids that were asked for")
    extraction = kind(models, tokenizer, texts, batch)
    versions = {name: importlib.metadata.version(name) for name in kind.packages}
    return extraction, {"versions": versions, "batch": batch}


def answer(request: dict[str, Any], state: dict[str, Any]) -> dict[str, Any]:
    """One answer to one request."""
    command = request["command"]
    if command == "load":
        state["extraction"], found = load(request)
        return found
    if command == "run":
        clock, cpu = time.perf_counter(), time.process_time()
        state["rows"] = state["extraction"].run()
        return {
            "seconds": time.perf_counter() - clock,
            "cpu_seconds": time.process_time() - cpu,
        }
    if command == "rows":
        import numpy as np

        rows = state["rows"]
        flat = {f"{model}/{site}": rows[model][site] for model in rows for site in rows[model]}
        np.savez(request["path"], **flat)
        return {"saved": len(flat)}
    raise ValueError(f"unknown command {command!r}: expected load, run or rows")


def main() -> None:
    """Answer until the input ends; what packages print goes to standard error."""
    replies = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    sys.stdout = sys.stderr
    state: dict[str, Any] = {}
    for line in sys.stdin:
        try:
            found = answer(json.loads(line), state)
        except Exception as error:
            text = str(error).strip().splitlines()
            found = {"error": f"{type(error).__name__}: {text[0] if text else 'no message'}"}
        replies.write(json.dumps(found) + "\n")
        replies.flush()


if __name__ == "__main__":
    main()
