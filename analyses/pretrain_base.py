# %% [markdown]
# # Pretrain the embedded base model
#
# A 4-million-parameter Llama-architecture model of English stories and dialogues, with its own
# byte-level BPE tokenizer. The result ships inside the package, so that every later script has a
# real base model without a network.
#
# ```
# python analyses/pretrain_base.py --text-folder DATA --output-folder build/tales-base
# python analyses/pretrain_base.py --from-hub       --output-folder build/tales-base
# ```
#
# `--architecture gpt2` or `gpt_neox` with `--layers 6 --hidden-size 128 --steps 1200` gives the small
# siblings that the stress test over models compares with; they do not ship.
#
# `DATA` holds `text/*.jsonl.gz` (one `{"text": …}` a line) and
# `preferences/hh_{harmless,helpful}_base_test.jsonl.gz`. The run can be stopped at any time and
# continues from its last checkpoint. The learning rate is flat and falls linearly over the last
# part of `--steps`, so a longer or shorter run may be decided while it is under way.

# %%
from __future__ import annotations

import os

# Before torch is loaded: threads that spin while they wait lose most of two cores as soon as
# anything else runs beside the training.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import argparse
import gzip
import json
import logging
import math
import time
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from tqdm.auto import tqdm
from transformers import (
    AutoModelForCausalLM,
    GPT2Config,
    GPTNeoXConfig,
    LlamaConfig,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)

logger = logging.getLogger("pretrain_base")

BOS, EOS, PAD = "<s>", "</s>", "<pad>"

#: Passes over each source in one epoch: stories carry the language, dialogues the register of HH.
MIXTURE = {
    "tinystories": 2,
    "african_storybook": 2,
    "pratham_books": 2,
    "aesop": 2,
    "hh": 1,
    "fairytaleqa": 1,
}
#: The share of each HH file that training may see; the rest stays held out.
HH_TRAINING_SHARE = 0.8


@dataclass(frozen=True)
class Recipe:
    """Everything that decides the weights, saved beside them."""

    architecture: str = "llama"
    vocab_size: int = 4096
    hidden_size: int = 192
    intermediate_size: int = 512
    layers: int = 8
    heads: int = 3
    context: int = 512
    flat_context: int = 256
    tokens_per_step: int = 4096
    steps: int = 4500
    warmup_steps: int = 100
    decay_share: float = 0.35
    learning_rate: float = 4e-3
    weight_decay: float = 0.1
    seed: int = 0


# %% [markdown]
# ## Documents


# %%
def read_jsonl(path: Path) -> list[dict[str, str]]:
    with gzip.open(path, "rt", encoding="utf-8") as file:
        return [json.loads(line) for line in file]


def split_share(rows: list[str], share: float) -> tuple[list[str], list[str]]:
    cut = int(len(rows) * share)
    return rows[:cut], rows[cut:]


def documents_from_folder(folder: Path) -> tuple[dict[str, list[str]], dict[str, list[str]]]:
    """Training and held-out documents per source, from files on disk."""
    text, preferences = folder / "text", folder / "preferences"
    training = {
        "tinystories": [row["text"] for row in read_jsonl(text / "tinystories_cased.jsonl.gz")],
        "african_storybook": [
            row["text"] for row in read_jsonl(text / "african_storybook_en.jsonl.gz")
        ],
        "pratham_books": [row["text"] for row in read_jsonl(text / "pratham_books_en.jsonl.gz")],
        "aesop": [row["text"] for row in read_jsonl(text / "aesop_for_children.jsonl.gz")],
        "fairytaleqa": [row["text"] for row in read_jsonl(text / "fairytaleqa_stories.jsonl.gz")],
    }
    held_out = {
        "tinystories": [
            row["text"] for row in read_jsonl(text / "tinystories_valid_head.jsonl.gz")
        ],
        "hh": [],
    }
    training["hh"] = []
    for kind in ("harmless", "helpful"):
        rows = [row["chosen"] for row in read_jsonl(preferences / f"hh_{kind}_base_test.jsonl.gz")]
        seen, unseen = split_share(rows, HH_TRAINING_SHARE)
        training["hh"] += seen
        held_out["hh"] += unseen
    return training, held_out


def documents_from_hub() -> tuple[dict[str, list[str]], dict[str, list[str]]]:
    """The two sources that the hub serves by name; the picture books are not there."""
    from datasets import load_dataset

    stories = load_dataset("roneneldan/TinyStories", split="train[:20000]")
    validation = load_dataset("roneneldan/TinyStories", split="validation[:800]")
    training, held_out = (
        {"tinystories": list(stories["text"])},
        {"tinystories": list(validation["text"])},
    )
    training["hh"], held_out["hh"] = [], []
    for kind in ("harmless-base", "helpful-base"):
        rows = list(load_dataset("Anthropic/hh-rlhf", data_dir=kind, split="test")["chosen"])
        seen, unseen = split_share(rows, HH_TRAINING_SHARE)
        training["hh"] += seen
        held_out["hh"] += unseen
    return training, held_out


# %% [markdown]
# ## Tokenizer and packed tokens


# %%
def train_tokenizer(
    documents: Iterable[str], vocab_size: int, context: int
) -> PreTrainedTokenizerFast:
    """Byte-level BPE without normalisation, so that decoding returns the text byte for byte."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[BOS, EOS, PAD],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(documents, trainer)
    tokenizer.post_processor = processors.Sequence(
        [
            processors.ByteLevel(trim_offsets=False),
            processors.TemplateProcessing(single=f"{BOS} $A", special_tokens=[(BOS, 0)]),
        ]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=BOS,
        eos_token=EOS,
        pad_token=PAD,
        model_max_length=context,
        clean_up_tokenization_spaces=False,
    )


def tokenize(tokenizer: PreTrainedTokenizerFast, documents: list[str]) -> list[np.ndarray]:
    batches = tokenizer.backend_tokenizer.encode_batch(documents)
    eos = tokenizer.eos_token_id
    return [np.asarray([*encoding.ids, eos], dtype=np.uint16) for encoding in batches]


def batches(
    documents: dict[str, list[np.ndarray]], recipe: Recipe, first_step: int
) -> Iterator[torch.Tensor]:
    """Endless batches of packed documents; each epoch has its own order, fixed by the seed.

    The context is short while the learning rate is flat, where attention would cost half of the
    time on a CPU, and full while it falls.
    """
    step, epoch = 0, 0
    while True:
        generator = np.random.default_rng([recipe.seed, epoch])
        epoch_documents = [
            document
            for source, rows in documents.items()
            for _ in range(MIXTURE[source])
            for document in rows
        ]
        order = generator.permutation(len(epoch_documents))
        stream = np.concatenate([epoch_documents[index] for index in order])
        for start in range(0, len(stream) - recipe.tokens_per_step + 1, recipe.tokens_per_step):
            if step >= first_step:
                rows = stream[start : start + recipe.tokens_per_step].astype(np.int64)
                context = recipe.flat_context if schedule(step, recipe) == 1.0 else recipe.context
                yield torch.from_numpy(rows).view(-1, context)
            step += 1
        epoch += 1


# %% [markdown]
# ## Model, optimiser, schedule


# %%
def build_model(recipe: Recipe) -> PreTrainedModel:
    shared = {
        "vocab_size": recipe.vocab_size,
        "tie_word_embeddings": recipe.architecture != "gpt_neox",
        "bos_token_id": 0,
        "eos_token_id": 1,
        "pad_token_id": 2,
        "use_cache": False,
    }
    if recipe.architecture == "gpt2":
        config = GPT2Config(
            n_embd=recipe.hidden_size,
            n_inner=recipe.intermediate_size,
            n_layer=recipe.layers,
            n_head=recipe.heads,
            n_positions=recipe.context,
            resid_pdrop=0.0,
            embd_pdrop=0.0,
            attn_pdrop=0.0,
            **shared,
        )
    else:
        kind = {"llama": LlamaConfig, "gpt_neox": GPTNeoXConfig}[recipe.architecture]
        config = kind(
            hidden_size=recipe.hidden_size,
            intermediate_size=recipe.intermediate_size,
            num_hidden_layers=recipe.layers,
            num_attention_heads=recipe.heads,
            max_position_embeddings=recipe.context,
            **shared,
        )
    torch.manual_seed(recipe.seed)
    return AutoModelForCausalLM.from_config(config)


def build_optimizers(model: PreTrainedModel, recipe: Recipe) -> list[torch.optim.Optimizer]:
    """Muon for the matrices inside the blocks, AdamW for embeddings and norms."""
    outside = ("embed", "wte", "wpe", "lm_head")
    named = [(any(part in n for part in outside), p) for n, p in model.named_parameters()]
    matrices = [p for embedding, p in named if p.ndim == 2 and not embedding]
    embeddings = [p for embedding, p in named if p.ndim == 2 and embedding]
    norms = [p for p in model.parameters() if p.ndim == 1]
    return [
        torch.optim.Muon(
            matrices,
            lr=recipe.learning_rate,
            weight_decay=recipe.weight_decay,
            adjust_lr_fn="match_rms_adamw",
        ),
        torch.optim.AdamW(
            [{"params": embeddings}, {"params": norms}],
            lr=recipe.learning_rate,
            betas=(0.9, 0.95),
            weight_decay=0.0,
        ),
    ]


def schedule(step: int, recipe: Recipe) -> float:
    """Linear warm-up, flat, then linear to zero over the last `decay_share` of the steps."""
    decay_steps = recipe.decay_share * recipe.steps
    return min(1.0, (step + 1) / recipe.warmup_steps, max(0.0, (recipe.steps - step) / decay_steps))


@torch.no_grad()
def held_out_loss(model: torch.nn.Module, documents: list[np.ndarray], context: int) -> float:
    """Mean negative log-likelihood in nats a token; documents longer than the context are cut."""
    model.eval()
    total, count = 0.0, 0
    for document in documents:
        ids = torch.from_numpy(document[:context].astype(np.int64))[None]
        logits = model(input_ids=ids).logits[0, :-1].float()
        total += float(torch.nn.functional.cross_entropy(logits, ids[0, 1:], reduction="sum"))
        count += ids.shape[1] - 1
    model.train()
    return total / count


# %% [markdown]
# ## Training


# %%
def save_checkpoint(
    path: Path, step: int, model: PreTrainedModel, optimizers: list[torch.optim.Optimizer]
) -> None:
    temporary = path.with_suffix(".partial")
    torch.save(
        {
            "step": step,
            "model": model.state_dict(),
            "optimizers": [optimizer.state_dict() for optimizer in optimizers],
        },
        temporary,
    )
    temporary.replace(path)


def train(
    recipe: Recipe,
    training: dict[str, list[np.ndarray]],
    held_out: dict[str, list[np.ndarray]],
    folder: Path,
    *,
    evaluate_every: int = 250,
) -> PreTrainedModel:
    model = build_model(recipe)
    optimizers = build_optimizers(model, recipe)
    checkpoint, log = folder / "checkpoint.pt", folder / "training.jsonl"
    first_step = 0
    if checkpoint.exists():
        state = torch.load(checkpoint, weights_only=True)
        first_step = state["step"]
        model.load_state_dict(state["model"])
        for optimizer, saved in zip(optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(saved)
        logger.info("continuing from step %d", first_step)

    def loss_of(ids: torch.Tensor) -> torch.Tensor:
        logits = model(input_ids=ids).logits[:, :-1]
        return torch.nn.functional.cross_entropy(logits.flatten(0, 1).float(), ids[:, 1:].flatten())

    compiled_loss = torch.compile(loss_of, dynamic=False)
    model.train()
    started, tokens_since = time.perf_counter(), 0
    running: list[float] = []
    data = batches(training, recipe, first_step)
    for step in tqdm(range(first_step, recipe.steps), initial=first_step, total=recipe.steps):
        ids = next(data)
        scale = schedule(step, recipe)
        for optimizer in optimizers:
            for group in optimizer.param_groups:
                group["lr"] = recipe.learning_rate * scale
        with torch.autocast("cpu", dtype=torch.bfloat16):
            loss = compiled_loss(ids)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        running.append(loss.item())
        tokens_since += ids.numel()
        if (step + 1) % evaluate_every == 0 or step + 1 == recipe.steps:
            row = {
                "step": step + 1,
                "tokens": (step + 1) * ids.numel(),
                "training_loss": float(np.mean(running)),
                "tokens_per_second": tokens_since / (time.perf_counter() - started),
                **{
                    f"held_out_loss_{name}": held_out_loss(model, rows[:200], recipe.context)
                    for name, rows in held_out.items()
                },
            }
            with log.open("a", encoding="utf-8") as file:
                file.write(json.dumps(row) + "\n")
            logger.info("%s", row)
            save_checkpoint(checkpoint, step + 1, model, optimizers)
            running, tokens_since, started = [], 0, time.perf_counter()
    return model


def main() -> None:
    parser = argparse.ArgumentParser(description="Pretrain the embedded base model.")
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--text-folder", type=Path)
    source.add_argument("--from-hub", action="store_true")
    parser.add_argument("--output-folder", type=Path, required=True)
    parser.add_argument("--architecture", choices=("llama", "gpt2", "gpt_neox"), default="llama")
    parser.add_argument("--layers", type=int, default=Recipe.layers)
    parser.add_argument("--hidden-size", type=int, default=Recipe.hidden_size)
    parser.add_argument("--heads", type=int, default=Recipe.heads)
    parser.add_argument("--steps", type=int, default=Recipe.steps)
    parser.add_argument("--learning-rate", type=float, default=Recipe.learning_rate)
    parser.add_argument("--evaluate-every", type=int, default=250)
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    logging.getLogger("httpx").setLevel(logging.WARNING)

    recipe = Recipe(
        architecture=arguments.architecture,
        layers=arguments.layers,
        hidden_size=arguments.hidden_size,
        heads=arguments.heads,
        steps=arguments.steps,
        learning_rate=arguments.learning_rate,
    )
    folder: Path = arguments.output_folder
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "recipe.json").write_text(json.dumps(asdict(recipe), indent=2) + "\n")
    training, held_out = (
        documents_from_hub() if arguments.from_hub else documents_from_folder(arguments.text_folder)
    )
    if (folder / "model" / "tokenizer.json").exists():
        tokenizer = PreTrainedTokenizerFast.from_pretrained(folder / "model")
    else:
        tokenizer = train_tokenizer(
            (document for rows in training.values() for document in rows),
            recipe.vocab_size,
            recipe.context,
        )
        tokenizer.save_pretrained(folder / "model")
    tokens = {name: tokenize(tokenizer, rows) for name, rows in training.items()}
    held_out_tokens = {name: tokenize(tokenizer, rows) for name, rows in held_out.items()}
    sizes = {name: sum(map(len, rows)) for name, rows in tokens.items()}
    (folder / "tokens_per_source.json").write_text(json.dumps(sizes, indent=2) + "\n")
    logger.info("tokens a source: %s", sizes)
    model = train(recipe, tokens, held_out_tokens, folder, evaluate_every=arguments.evaluate_every)
    losses = {
        name: held_out_loss(model, rows, recipe.context) for name, rows in held_out_tokens.items()
    }
    (folder / "held_out.json").write_text(
        json.dumps(
            {name: {"loss": loss, "perplexity": math.exp(loss)} for name, loss in losses.items()},
            indent=2,
        )
        + "\n"
    )
    model.config.use_cache = True
    model.to(torch.bfloat16).save_pretrained(folder / "model")
    logger.info("held-out loss %s", losses)


if __name__ == "__main__":
    main()
