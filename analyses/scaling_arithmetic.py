# %% [markdown]
# # What 7B, 70B and a million prompts cost
#
# Arithmetic from the shapes of models: operations, GPU-hours, bytes in memory and on disk. Nothing
# here is measured, and the share of the peak that a GPU reaches is an assumption, named as one.
#
# `python analyses/scaling_arithmetic.py [PAGE]` writes the tables to the log and, given the page
# `docs/scaling.md`, into it, between the marks of each table. Give `figures/benchmarks.json` after
# the page and the measured table is filled as well.

# %%
from __future__ import annotations

import json
import logging
import re
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import ceil
from pathlib import Path

logging.basicConfig(level=logging.INFO, format="%(message)s")
logger = logging.getLogger("scaling_arithmetic")

# %% [markdown]
# What is assumed of the hardware and of the work.

# %%
PEAK = 989e12  # dense bfloat16 operations a second of an H100 SXM, from its data sheet
PEAK_FLOAT64 = 67e12  # the same in float64 on tensor cores
BANDWIDTH = 3.35e12  # bytes a second of its memory
GPU_BYTES = 80e9
UTILISATION = 0.40  # share of the peak that a forward pass reaches: assumed, not measured
BANDWIDTH_SHARE = 0.60  # the same for reading weights in generation: assumed
USABLE = 0.85  # share of a GPU's memory for weights; the rest is for batches and fragments
CPU_FLOAT64 = 200e9  # float64 operations a second of eight CPU cores: assumed
PROMPTS = 1_000_000
TOKENS = 128  # tokens of a prompt
SWEPT, RESPONSE, GRID = 1_000, 64, 41  # sequences scored, response tokens of each, coefficients
WRITTEN, NEW_TOKENS, COEFFICIENTS, ROWS = 200, 40, 9, 128  # prompts continued; rows of a batch
GPUS_PER_NODE = 8


@dataclass(frozen=True)
class Shape:
    """A Llama-shaped model."""

    name: str
    layers: int
    d_model: int
    heads: int
    key_value_heads: int
    d_mlp: int
    d_vocab: int

    @property
    def d_head(self) -> int:
        return self.d_model // self.heads

    @property
    def matrices(self) -> int:
        """Parameters of the blocks' matrices: what multiplies each token, and what is quantized."""
        attention = 2 * self.d_model**2 + 2 * self.d_model * self.key_value_heads * self.d_head
        return self.layers * (attention + 3 * self.d_model * self.d_mlp)

    @property
    def kept(self) -> int:
        """Embedding, unembedding and norms: never quantized."""
        return 2 * self.d_vocab * self.d_model + (2 * self.layers + 1) * self.d_model

    @property
    def parameters(self) -> int:
        return self.matrices + self.kept

    @property
    def sites(self) -> int:
        """Every resid_post, and h."""
        return self.layers + 1

    def pass_operations(self, tokens: int) -> float:
        """Of one token in a pass over so many: 2 a matrix parameter, and attention (causal: half)."""
        return 2 * self.matrices + 2 * self.layers * self.d_model * tokens

    def readout_operations(self) -> float:
        """Of one token's logits."""
        return 2 * self.d_model * self.d_vocab

    def bytes(self, form: str) -> float:
        """Of the weights. 8 bits keep a float32 scale a row, 4 bits one for every 64 weights."""
        if form in ("8bit", "4bit"):
            rows = self.matrices / self.d_model
            blocks = self.matrices + 4 * rows if form == "8bit" else self.matrices * (0.5 + 4 / 64)
            return blocks + 2 * self.kept
        return self.parameters * {"float32": 4, "bfloat16": 2}[form]

    def cache_bytes(self, tokens: int) -> float:
        """Keys and values of one row in bfloat16."""
        return 2 * self.layers * self.key_value_heads * self.d_head * 2 * tokens


SHAPES = (
    Shape("Llama 2 7B", 32, 4096, 32, 32, 11008, 32000),
    Shape("Llama 2 13B", 40, 5120, 40, 40, 13824, 32000),
    Shape("Llama 2 70B", 80, 8192, 64, 8, 28672, 32000),
)
FORMS = ("float32", "bfloat16", "8bit", "4bit")


# %% [markdown]
# Units, and tables as Markdown.


# %%
def size(value: float) -> str:
    for unit, scale in (("PB", 1e15), ("TB", 1e12), ("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if value >= scale:
            return f"{value / scale:.3g} {unit}"
    return f"{value:.0f} B"


def duration(seconds: float) -> str:
    for unit, scale in (("days", 2 * 86400.0), ("h", 2 * 3600.0), ("min", 2 * 60.0)):
        if seconds >= scale:
            return f"{seconds / {'days': 86400, 'h': 3600, 'min': 60}[unit]:.3g} {unit}"
    return f"{seconds:.2g} s" if seconds < 10 else f"{seconds:.0f} s"


def table(header: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(map(str, line)) + " |" for line in lines)


def gpus_for(weights: float) -> int:
    return ceil(weights / (USABLE * GPU_BYTES))


# %% [markdown]
# One function a table.


# %%
def assumptions() -> str:
    return table(
        ("assumed", "value", "from"),
        [
            ("bfloat16 operations a second of an H100 SXM", f"{PEAK:.3g}", "data sheet, dense"),
            ("float64 operations a second", f"{PEAK_FLOAT64:.3g}", "data sheet, tensor cores"),
            ("bytes a second of its memory", f"{BANDWIDTH:.3g}", "data sheet"),
            ("memory of a GPU", size(GPU_BYTES), "data sheet"),
            ("share of the peak in a forward pass", f"{UTILISATION:.0%}", "assumed"),
            ("share of the bandwidth in generation", f"{BANDWIDTH_SHARE:.0%}", "assumed"),
            ("share of a GPU's memory for weights", f"{USABLE:.0%}", "assumed"),
            ("float64 operations a second of eight CPU cores", f"{CPU_FLOAT64:.3g}", "assumed"),
            ("prompts", f"{PROMPTS:,}", "chosen"),
            ("tokens of a prompt", TOKENS, "chosen"),
            ("sequences scored in a sweep", f"{SWEPT:,}", "chosen"),
            ("response tokens of each", RESPONSE, "chosen"),
            ("coefficients scored", GRID, "chosen"),
            ("prompts continued", WRITTEN, "chosen"),
            ("new tokens, coefficients, rows of a batch", f"{NEW_TOKENS}, {COEFFICIENTS}, {ROWS}",
             "chosen"),
        ],
    )  # fmt: skip


def shapes() -> str:
    return table(
        ("shape", "layers", "d_model", "parameters", "of them in the blocks' matrices", "sites"),
        [
            (s.name, s.layers, s.d_model, f"{s.parameters / 1e9:.3g}B",
             f"{s.matrices / s.parameters:.1%}", s.sites)
            for s in SHAPES
        ],
    )  # fmt: skip


def memory() -> str:
    rows = []
    for s in SHAPES:
        for form in FORMS:
            one = s.bytes(form)
            rows.append(
                (s.name, form, size(one), size(2 * one), gpus_for(2 * one), size(3 * one)
                 if form in ("float32", "bfloat16") else "not possible", gpus_for(one))
            )  # fmt: skip
    return table(
        ("shape", "weights as", "one model", "the pair", "H100s for the pair",
         "with the random-weights control", "H100s for a base with an adapter"),
        rows,
    )  # fmt: skip


def capture_seconds(s: Shape, prompts: int = PROMPTS) -> float:
    """Of one GPU that works all the time, for both models."""
    return 2 * prompts * TOKENS * s.pass_operations(TOKENS) / (UTILISATION * PEAK)


def gpus_of_a_pair(s: Shape) -> int:
    return gpus_for(2 * s.bytes("bfloat16"))


def capture() -> str:
    rows = []
    for s in SHAPES:
        operations = 2 * PROMPTS * TOKENS * s.pass_operations(TOKENS)
        busy, held = capture_seconds(s), gpus_of_a_pair(s)
        processes = GPUS_PER_NODE // held
        rows.append(
            (s.name, f"{operations:.3g}", f"{busy / 3600:.3g}", held, f"{busy * held / 3600:.3g}",
             processes, duration(busy / processes))
        )  # fmt: skip
    return table(
        ("shape", "operations", "GPU-hours of work", "GPUs that hold the pair",
         "GPU-hours held", f"processes on {GPUS_PER_NODE} H100s", "time there"),
        rows,
    )  # fmt: skip


def storage() -> str:
    rows = []
    for s in SHAPES:
        row = 2 * s.sites * s.d_model * 4  # base and policy, float32
        moment = s.sites * (s.d_model**2 + s.d_model) * 8  # one float64 matrix a site, and the sum
        rows.append(
            (s.name, size(row), size(row * PROMPTS), size(row * PROMPTS * RESPONSE), size(moment),
             f"{moment / row:,.0f}")
        )  # fmt: skip
    return table(
        ("shape", "one row, all sites, both models", f"rows of {PROMPTS:,} prompts, one each",
         f"the same, {RESPONSE} response tokens each", "moments instead, any number of rows",
         "rows that take as much"),
        rows,
    )  # fmt: skip


def sweep() -> str:
    rows = []
    for s in SHAPES:
        both = 2 * SWEPT * (TOKENS + RESPONSE) * s.pass_operations(TOKENS + RESPONSE)
        scored = SWEPT * RESPONSE
        read_out = 2 * scored * s.readout_operations()
        algebra = (both + read_out) / (UTILISATION * PEAK)
        algebra += 2 * GRID * scored * s.d_vocab / (UTILISATION * PEAK_FLOAT64)
        naive = GRID * (both + read_out) / 2 / (UTILISATION * PEAK)

        def replay(depth: float, both: float = both, read_out: float = read_out) -> float:
            above = GRID * ((1 - depth) * both + read_out) / 2
            return (both + read_out + above) / (UTILISATION * PEAK)

        rows.append(
            (s.name, duration(algebra), duration(replay(0.7)), duration(replay(0.0)),
             duration(naive))
        )  # fmt: skip
    return table(
        ("shape", "at h, by algebra", "at 0.7 of the depth, by replay", "at the first layer",
         "one pass a coefficient"),
        rows,
    )  # fmt: skip


def generation() -> str:
    rows = []
    for s in SHAPES:
        cache = s.cache_bytes(TOKENS + NEW_TOKENS)
        packed_steps = ceil(WRITTEN * COEFFICIENTS / ROWS) * NEW_TOKENS

        def seconds(steps: float, batch: float, s: Shape = s, cache: float = cache) -> float:
            read = (s.bytes("bfloat16") + batch * cache) / (BANDWIDTH_SHARE * BANDWIDTH)
            work = batch * (s.pass_operations(TOKENS) + s.readout_operations())
            return steps * max(read, work / (UTILISATION * PEAK))

        alone = seconds(WRITTEN * COEFFICIENTS * NEW_TOKENS, 1)
        rows.append(
            (s.name, size(cache), size(ROWS * cache), duration(seconds(packed_steps, ROWS)),
             duration(alone))
        )  # fmt: skip
    return table(
        ("shape", "keys and values of a row", f"of {ROWS} rows", "one vector, packed",
         "row by row"),
        rows,
    )  # fmt: skip


def spectra() -> str:
    rows = []
    for s in SHAPES:
        # d² multiplications and additions a row and site; 9 d³ for all eigenvectors of a site.
        gather = 2 * s.d_model**2 * s.sites * PROMPTS
        decompose = 9 * s.d_model**3 * s.sites
        working = 3 * s.d_model**2 * 8
        rows.append(
            (s.name, duration(gather / (UTILISATION * PEAK_FLOAT64)),
             duration(gather / CPU_FLOAT64), duration(decompose / CPU_FLOAT64),
             size(working))
        )  # fmt: skip
    return table(
        ("shape", "moments of all rows, on an H100", "the same on eight cores",
         "eigenvectors of all sites, eight cores", "memory of one site's decomposition"),
        rows,
    )  # fmt: skip


def choices() -> str:
    small = ("4M (`tales`)", "one CPU", "cpu", "", "float32", "", "rows", "1", "no launcher")
    rows = [small]
    for s in SHAPES:
        for form in ("bfloat16", "4bit"):
            held = gpus_for(2 * s.bytes(form))
            one = held == 1
            processes = GPUS_PER_NODE if one else 1
            row = 2 * s.sites * s.d_model * 4
            most = int(1e12 / row)
            rows.append(
                (s.name, f"{held} × H100", "cuda" if one else "", "" if one else "auto",
                 "bfloat16", form if form == "4bit" else "",
                 f"rows to {most:,} (1 TB), moments beyond", processes,
                 f"`torchrun --nproc_per_node {GPUS_PER_NODE}`" if one else
                 f"one process; {GPUS_PER_NODE // held or 1} by hand with CUDA_VISIBLE_DEVICES")
            )  # fmt: skip
    return table(
        ("pair", "holds the pair", "`model.device`", "`model.device_map`", "`model.dtype`",
         "`model.quantization`", "residuals", f"processes on {GPUS_PER_NODE} GPUs", "launch"),
        rows,
    )  # fmt: skip


TABLES: dict[str, Callable[[], str]] = {
    "assumptions": assumptions,
    "shapes": shapes,
    "memory": memory,
    "capture": capture,
    "storage": storage,
    "sweep": sweep,
    "generation": generation,
    "spectra": spectra,
    "choices": choices,
}


# %% [markdown]
# The page: each table stands between `<!-- name -->` and `<!-- /name -->`.


# %%
def filled(page: str, tables: dict[str, str]) -> str:
    for name, text in tables.items():
        block = re.compile(rf"<!-- {name} -->\n.*?<!-- /{name} -->", re.DOTALL)
        if len(block.findall(page)) != 1:
            raise ValueError(f"the page has no one place for the table {name!r}")
        page = block.sub(lambda _, n=name, t=text: f"<!-- {n} -->\n{t}\n<!-- /{n} -->", page)
    return page


def measured(path: Path) -> str:
    """Every benchmark as `make bench` left it."""
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
    from tests.benchmarks.table import markdown_table

    return markdown_table(json.loads(path.read_text("utf-8")))


found = {name: make() for name, make in TABLES.items()}
for name, text in found.items():
    logger.info("%s\n%s\n", name, text)
arguments = [Path(argument) for argument in sys.argv[1:] if argument.endswith((".md", ".json"))]
for page in (path for path in arguments if path.suffix == ".md"):
    for results in (path for path in arguments if path.suffix == ".json"):
        found["benchmarks"] = measured(results)
    page.write_text(filled(page.read_text("utf-8"), found), encoding="utf-8")
