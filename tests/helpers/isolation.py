"""
Tests that run model-written code in isolation.

Where a machine gives none they are skipped, with the reason. CI says HF_RM_REQUIRE_SANDBOX=1: there they run all the
same, and fail, so that no run is green that has not seen the sandbox.
"""

import os
from collections.abc import Mapping

import pytest

from hf_rm.evaluation.sandbox import SandboxSupport, sandbox_available

REQUIRED = "HF_RM_REQUIRE_SANDBOX"


def is_required(environment: Mapping[str, str]) -> bool:
    """Whether a machine without isolation is a failure."""
    return environment.get(REQUIRED, "0") not in ("", "0")


def skip_reason(support: SandboxSupport, environment: Mapping[str, str]) -> str:
    """Why these tests are skipped; nothing where they run."""
    if support.available or is_required(environment):
        return ""
    return f"no isolation here ({REQUIRED}=1 makes this a failure): {support.missing}"


_REASON = skip_reason(sandbox_available(), os.environ)
isolated = pytest.mark.skipif(bool(_REASON), reason=_REASON)
