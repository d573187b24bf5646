# Copyright 2026 The hf_rm authors. Licensed under the Apache License, Version 2.0.
"""
Image editing: change what was asked, leave the rest alone.

`scenes` composes edits, `codebook` makes tokens of pictures, `layout` and `collator` make sequences and training
states of them, `model` builds the network, `edit` runs it, `metrics` and `sheets` judge and show what came out.
Pictures need pillow and scikit-image (``pip install hf-rm[image]``), imported when they are used.
"""

from .codebook import PatchCodebook, fit_codebook, load_codebook, receptive_field
from .metrics import edit_metrics, instruction_success, reconstruction_quality, vqa_score
from .scenes import OPERATIONS, SPLITS, Edit, EditExamples, generate_edits

__all__ = [
    "OPERATIONS",
    "SPLITS",
    "Edit",
    "EditExamples",
    "PatchCodebook",
    "edit_metrics",
    "fit_codebook",
    "generate_edits",
    "instruction_success",
    "load_codebook",
    "receptive_field",
    "reconstruction_quality",
    "vqa_score",
]
