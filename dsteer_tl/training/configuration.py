"""Settings of preference training."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingConfiguration:
    """How the policy is trained from the base with TRL.

    Attributes:
        beta: β of the DPO loss (D-STEER: 1; Lee et al. 2024: 0.1).
        loss_type: Passed to TRL: ``sigmoid``, ``ipo``, ``hinge``, ``sft``, …; ``kto`` is its own
            trainer, which sees the two texts of a pair as two rows.
        learning_rate: Peak learning rate.
        epochs: Passes over the training pairs.
        batch_size: Pairs a step on one device. An update sees batch_size ×
            gradient_accumulation_steps × processes pairs.
        gradient_accumulation_steps: Steps whose gradients are added up before an update.
        optimizer: A name that transformers knows (``adamw_torch``, ``rmsprop``, …).
        scheduler: Learning-rate schedule that transformers knows.
        warmup_steps: Steps of linear warm-up.
        max_steps: Stop after so many updates; -1 for ``epochs``.
        freeze_embeddings: Freeze token and positional embeddings, as D-STEER assumes.
        freeze_unembedding: Freeze W_U and b_U, which its identity needs.
        lora_rank: Train a LoRA adapter of this rank instead of the weights; 0 for full training.
        precision: ``float32`` or ``bfloat16`` (autocast). A launch that says otherwise is refused.
        gradient_checkpointing: Trade time for memory. FSDP does it in its own way, if told to.
        save_steps: Updates between checkpoints; training resumes from the last one.
        evaluate_every: Updates between records of how the steering vector forms.
        early_stopping_patience: Stop when the held-out loss has not fallen for so many
            evaluations; 0 to train to the end.
        seed: Seed of data order and dropout.
    """

    beta: float = 1.0
    loss_type: str = "sigmoid"
    learning_rate: float = 1e-4
    epochs: float = 2.0
    batch_size: int = 8
    gradient_accumulation_steps: int = 1
    optimizer: str = "adamw_torch"
    scheduler: str = "linear"
    warmup_steps: int = 5
    max_steps: int = -1
    freeze_embeddings: bool = True
    freeze_unembedding: bool = True
    lora_rank: int = 0
    precision: str = "float32"
    gradient_checkpointing: bool = False
    save_steps: int = 100
    evaluate_every: int = 10
    early_stopping_patience: int = 0
    seed: int = 0
