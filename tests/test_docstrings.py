"""Every example in a docstring of the package runs and prints what it says."""

import doctest
import warnings
from importlib import import_module
from pkgutil import walk_packages

import pytest

import hf_rm

MODULES = ["hf_rm", *sorted(module.name for module in walk_packages(hf_rm.__path__, "hf_rm."))]


@pytest.mark.parametrize("name", MODULES)
def test_the_examples_hold(name: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)  # an example may open a file and let it go
        failed, _ = doctest.testmod(import_module(name))
    assert failed == 0


def test_there_are_examples() -> None:
    """So that the test above means something."""
    finder = doctest.DocTestFinder(exclude_empty=True)
    assert sum(bool(test.examples) for name in MODULES for test in finder.find(import_module(name))) > 50
