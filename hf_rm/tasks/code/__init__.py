"""Programs from descriptions: MBPP and HumanEval problems, the code in a completion, its verification in a sandbox."""

from .completion import extract_code
from .problems import CodeProblem, humaneval_problem, mbpp_problem, read_humaneval, read_mbpp, split_problems
from .verify import verify_code

__all__ = [
    "CodeProblem",
    "extract_code",
    "humaneval_problem",
    "mbpp_problem",
    "read_humaneval",
    "read_mbpp",
    "split_problems",
    "verify_code",
]
