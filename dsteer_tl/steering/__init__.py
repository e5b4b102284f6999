"""Steering: interventions, coefficient sweeps by three exact engines, and their check."""

from dsteer_tl.steering.check import check_steering
from dsteer_tl.steering.interventions import Intervention
from dsteer_tl.steering.matching import match_by_kl
from dsteer_tl.steering.packed_generation import generate_rows
from dsteer_tl.steering.plan import SweepPlan
from dsteer_tl.steering.scored import Scored, TokenSequence
from dsteer_tl.steering.sweep import SweepResult, execute, plan_sweep
from dsteer_tl.steering.teacher_forced import Setting, score_directions, score_sequences
from dsteer_tl.steering.token_choice import Decoding
from dsteer_tl.steering.vectors import VECTORS, build_interventions

__all__ = [
    "Intervention",
    "VECTORS",
    "build_interventions",
    "Setting",
    "Decoding",
    "TokenSequence",
    "Scored",
    "score_sequences",
    "score_directions",
    "match_by_kl",
    "generate_rows",
    "check_steering",
    "plan_sweep",
    "SweepPlan",
    "SweepResult",
    "execute",
]
