"""Settings of the case study."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

#: Texts that the base writes by itself, as a source of labels or of running text.
SAMPLED = "sampled"
#: The completions of the run's own pairs, as a source of labels.
PAIRS = "pairs"
#: The prompts of the measured pairs.
HELD_OUT = "held_out"


@dataclass(frozen=True, slots=True, kw_only=True)
class ToxicityConfiguration:
    """The case study of Lee et al. 2024, on any attribute that a scorer can see.

    Attributes:
        enabled: Whether a run has the study.
        attribute: The attribute in one word, for people.
        scorer: What scores continuations: ``vader`` (unkind words), ``lexicon``, ``detoxify`` or
            ``perspective``.
        labels: Labelled texts of the probe: ``sampled`` from the base, or the completions of the
            run's training ``pairs``, both labelled by the scorer; ``paradetox``, ``jigsaw``,
            ``realtoxicityprompts``; or one of them or a name of your own with a file, as in
            ``paradetox=paradetox.tsv``.
        label_texts: At most so many labelled texts.
        held_out_share: Share of the labelled texts that the probe is judged on (sec. 3.1: 10 %).
        label_margin: Texts that the scorer labels have no label if their score is nearer to 0.5.
        prompts: What generation starts from: ``held_out``, or a suite as in
            ``realtoxicityprompts=file.jsonl``.
        prompt_limit: At most so many prompts.
        text: Running text for perplexity and F1: ``sampled`` from the base, ``wikitext`` (the hub's
            WikiText-2), or a text file.
        windows: Windows of that text.
        window_tokens: Tokens of a window.
        window_prompt: Tokens of a window that are given when its rest is to be continued.
        vectors: N, the value vectors closest to the probe (sec. 3.1: 128).
        neurons: k, the neurons whose keys are scaled (sec. 6: 7).
        scales: Factors of their key vectors.
        single_vectors: How many of the closest value vectors are subtracted one by one.
        singular_vectors: How many left singular vectors of them are subtracted.
        target_words: Words whose tokens the logit lens follows; empty for all that the scorer
            lists. The paper follows one (Fig. 1).
        max_new_tokens: Tokens of a continuation (the paper: 20).
        temperature: Softmax temperature of continuations; 0 is greedy, as in the paper.
        shuffled_pairs: Train a control on the same pairs with chosen and rejected swapped at
            random.
        token_budget: Padded tokens a forward pass.
        draws: Bootstrap draws.
        seed: Seed of samples, splits, controls and bootstraps.
    """

    enabled: bool = False
    attribute: str = "toxic"
    scorer: Literal["vader", "lexicon", "detoxify", "perspective"] = "detoxify"
    labels: str = "jigsaw"
    label_texts: int = 20_000
    held_out_share: float = 0.1
    label_margin: float = 0.2
    prompts: str = "realtoxicityprompts-challenging"
    prompt_limit: int = 1_200
    text: str = "wikitext"
    windows: int = 256
    window_tokens: int = 128
    window_prompt: int = 32
    vectors: int = 128
    neurons: int = 7
    scales: tuple[float, ...] = (1.0, 2.0, 3.0, 5.0, 7.0, 10.0)
    single_vectors: int = 1
    singular_vectors: int = 2
    target_words: tuple[str, ...] = ()
    max_new_tokens: int = 20
    temperature: float = 0.0
    shuffled_pairs: bool = False
    token_budget: int = 4096
    draws: int = 1000
    seed: int = 0
