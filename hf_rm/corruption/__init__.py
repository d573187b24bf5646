# Copyright 2026 The hf_rm authors. Licensed under the Apache License, Version 2.0.
"""Where training states come from: the oracle, trajectory laws, proposals of wrong tokens, the collator, the pool."""

from .collator import RMDataCollator
from .laws import AttemptsLaw, PaperLaw, Trajectories, TrajectoryLaw, build_law
from .oracle import IGNORE_INDEX, KEEP_LOSS, MASK_LOSS, REVEAL_LOSS, loss_parts, oracle_labels
from .pool import OnPolicyPool
from .proposals import FixedProposal, Proposal, UniformProposal
from .source import SourceProposal

__all__ = [
    "IGNORE_INDEX",
    "KEEP_LOSS",
    "MASK_LOSS",
    "REVEAL_LOSS",
    "AttemptsLaw",
    "FixedProposal",
    "OnPolicyPool",
    "PaperLaw",
    "Proposal",
    "RMDataCollator",
    "SourceProposal",
    "Trajectories",
    "TrajectoryLaw",
    "UniformProposal",
    "build_law",
    "loss_parts",
    "oracle_labels",
]
