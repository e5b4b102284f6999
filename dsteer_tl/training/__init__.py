"""Preference training: DPO and its relatives through TRL, with frozen embeddings by default."""

from dsteer_tl.training.configuration import TrainingConfiguration
from dsteer_tl.training.dpo import TrainingResult, train_dpo

__all__ = ["train_dpo", "TrainingConfiguration", "TrainingResult"]
