"""The flat core as its own program: exported next to a model it runs where hf_rm is not installed."""

import ast
import sys
from pathlib import Path

import pytest
import torch
from blocked import run_blocked
from safetensors.torch import load_file, save_file
from tiny_models import grid_model

import hf_rm
from hf_rm import ReflectiveGenerationConfig
from hf_rm.hub import export_code, save_for_hub

PACKAGE = Path(hf_rm.__file__).parent

DECODE = """
from safetensors.torch import load_file, save_file
from transformers import AutoModel
model = AutoModel.from_pretrained({folder!r}, trust_remote_code=True)
assert type(model).__module__.startswith("transformers_modules."), type(model)
output = model.generate_reflective(load_file({ids!r})["ids"])
save_file({{"states": output.trajectory.states.contiguous()}}, {out!r})
"""


def module_file(name: str) -> Path:
    return PACKAGE / f"{name}.py"


def imports(path: Path) -> list[ast.Import | ast.ImportFrom]:
    return [node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Import | ast.ImportFrom)]


def flat_core() -> list[Path]:
    """The files that a published model carries: the two wrappers and everything they import from their siblings."""
    names, files = ["modeling_rm", "remedi_rm"], []
    while names:
        path = module_file(names.pop())
        if path not in files:
            files.append(path)
            names += [node.module for node in imports(path) if isinstance(node, ast.ImportFrom) and node.level]
    return files


def test_the_flat_core_imports_only_its_siblings() -> None:
    files = flat_core()
    assert {path.name for path in files} >= {"configuration_rm.py", "history.py", "generation_rm.py", "modeling_rm.py"}
    siblings = {path.stem for path in files}
    for path in files:
        for node in imports(path):
            if isinstance(node, ast.Import):
                modules = [alias.name for alias in node.names]
            elif node.level:
                # transformers follows `from .x import y` alone, from a flat folder.
                assert node.level == 1 and node.module in siblings, f"{path.name}:{node.lineno}"
                continue
            else:
                modules = [str(node.module)]
            for module in modules:
                top = module.split(".")[0]
                assert top in sys.stdlib_module_names | {"torch", "transformers", "safetensors"}, (
                    f"{path.name}:{node.lineno}"
                )


def test_the_flat_core_is_small() -> None:
    lines = {path.name: code_lines(path) for path in flat_core()}
    assert sum(lines.values()) < 3000, lines


def code_lines(path: Path) -> int:
    """Lines that hold code: not empty, no comment, no docstring."""
    source = path.read_text()
    prose: set[int] = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str):
            prose.update(range(node.lineno, (node.end_lineno or node.lineno) + 1))
    lines = enumerate(source.splitlines(), start=1)
    return sum(bool(line.strip()) and not line.lstrip().startswith("#") and i not in prose for i, line in lines)


def test_the_export_is_the_flat_core(tmp_path: Path) -> None:
    export_code(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(path.name for path in flat_core())
    for path in flat_core():
        assert (tmp_path / path.name).read_bytes() == path.read_bytes()


def test_a_published_model_runs_without_hf_rm(tmp_path: Path) -> None:
    model = grid_model(history_norm="rms")
    model.generation_config = ReflectiveGenerationConfig(editable="all", max_steps=12, output_trajectory=True)
    folder = save_for_hub(model, tmp_path / "model")
    ids = torch.randint(0, 11, (3, 9), generator=torch.Generator().manual_seed(0))
    given, out = tmp_path / "ids.safetensors", tmp_path / "out.safetensors"
    save_file({"ids": ids}, given)
    script = DECODE.format(folder=str(folder), ids=str(given), out=str(out))
    result = run_blocked(script, {"hf_rm"}, tmp_path)
    assert result.returncode == 0, result.stderr
    expected = model.generate_reflective(ids).trajectory.states
    assert len(expected) > 3
    assert torch.equal(load_file(out)["states"], expected)


def test_core_and_trainer_import_without_the_optional_packages(tmp_path: Path) -> None:
    script = """
import hf_rm
assert not {"hf_rm.training", "hf_rm.corruption"} & set(sys.modules)  # nothing is imported before it is used
from hf_rm import RMTrainer, RMDataCollator, ReflectiveGenerationConfig
print(RMTrainer)
"""
    result = run_blocked(script, {"trl", "datasets"}, tmp_path, path=str(PACKAGE.parent))
    assert result.returncode == 0, result.stderr
    assert "RMTrainer" in result.stdout


def test_the_blocker_blocks(tmp_path: Path) -> None:
    """So that the two tests above mean something."""
    for name in ("hf_rm", "datasets"):
        result = run_blocked(f"import {name}", {name}, tmp_path, path=str(PACKAGE.parent))
        assert result.returncode != 0 and "ModuleNotFoundError" in result.stderr


def test_every_public_name_is_there() -> None:
    assert set(hf_rm.__all__) <= set(dir(hf_rm))
    assert all(getattr(hf_rm, name) is not None for name in hf_rm.__all__)
    with pytest.raises(AttributeError, match="no_such_name"):
        hf_rm.no_such_name  # noqa: B018
