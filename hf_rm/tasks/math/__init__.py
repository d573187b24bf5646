"""Math word problems: GSM8K, MATH and CMATH from local files, the answer in a completion, and equivalence of answers.

Equivalence uses the optional library math-verify (``pip install hf-rm[recipes]``); it is imported when it is needed.
"""

from .answers import extract_answer, extract_boxed, extract_marked
from .equivalence import answers_equal
from .problems import MathProblem, read_cmath, read_gsm8k, read_math

__all__ = [
    "MathProblem",
    "answers_equal",
    "extract_answer",
    "extract_boxed",
    "extract_marked",
    "read_cmath",
    "read_gsm8k",
    "read_math",
]
