# Copyright 2026 The hf_rm authors. Licensed under the Apache License, Version 2.0.
"""Learning what to keep: problems, stages (supervised, then by reinforcement) and the report of the Remask recipes."""
