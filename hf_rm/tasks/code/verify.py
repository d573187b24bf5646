"""Whether a completion solves its problem."""

from __future__ import annotations

from typing import Any

from ...evaluation.sandbox import SandboxResult, run_code
from .completion import extract_code
from .problems import CodeProblem


def verify_code(problem: CodeProblem, completion: str, **settings: Any) -> SandboxResult:
    """Run a completion's program against its problem's tests, in the sandbox.

    Args:
        problem: The problem.
        completion: What the model wrote.
        settings: Passed on to [`~hf_rm.evaluation.sandbox.run_code`]: `timeout`, `memory_mb`, `isolation` and the
            others.

    Returns:
        Whether every test passed, and how it ended.

    Raises:
        SandboxUnavailableError: If this machine gives no isolation.
        ValueError: If a setting makes no sense.

    Example:
        >>> from hf_rm.evaluation.sandbox import sandbox_available
        >>> problem = CodeProblem("1", "Double a number.", ("assert double(2) == 4",), ("double",), "")
        >>> if sandbox_available().available:
        ...     assert verify_code(problem, "def double(x):\\n    return 2 * x").passed
    """
    code = extract_code(completion, problem.prefix, problem.entry_points[-1])
    return run_code(code, problem.tests, entry_points=problem.entry_points, **settings)
