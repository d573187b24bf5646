# Copyright 2026 The hf_rm authors. Licensed under the Apache License, Version 2.0.
"""Where training states come from: the oracle, trajectory laws, proposals of wrong tokens, the collator, the pool."""

from .collator import RMDataCollator
from .harvest import HarvestedProposal, harvest
from .laws import AttemptsLaw, PaperLaw, Trajectories, TrajectoryLaw, build_law
from .oracle import IGNORE_INDEX, KEEP_LOSS, MASK_LOSS, REVEAL_LOSS, loss_parts, oracle_labels
from .pool import OnPolicyPool
from .proposals import FixedProposal, Proposal, UniformProposal
from .remask import RemaskSFTCollator
from .shards import ShardFolder
from .source import SourceProposal
from .topk import FrozenTopKProposal, build_topk_cache

__all__ = [
    "IGNORE_INDEX",
    "KEEP_LOSS",
    "MASK_LOSS",
    "REVEAL_LOSS",
    "AttemptsLaw",
    "FixedProposal",
    "FrozenTopKProposal",
    "HarvestedProposal",
    "OnPolicyPool",
    "PaperLaw",
    "Proposal",
    "RMDataCollator",
    "RemaskSFTCollator",
    "ShardFolder",
    "SourceProposal",
    "Trajectories",
    "TrajectoryLaw",
    "UniformProposal",
    "build_law",
    "build_topk_cache",
    "harvest",
    "loss_parts",
    "oracle_labels",
]
