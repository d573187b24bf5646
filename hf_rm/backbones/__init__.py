# Copyright 2026 The hf_rm authors. Licensed under the Apache License, Version 2.0.
"""What a backbone is: its traits, the probe that measures them, and causal models made bidirectional."""

from .autoregressive import from_autoregressive
from .probe import measure, probe, probe_on_load
from .traits import BackboneTraits

__all__ = ["BackboneTraits", "from_autoregressive", "measure", "probe", "probe_on_load"]
