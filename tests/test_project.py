"""The project as a stranger gets it: the wheel, the pins, the README's commands, nothing of one machine."""

import ast
import re
import shutil
import subprocess
import sys
import zipfile
from email.message import Message
from email.parser import Parser
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

ROOT = Path(__file__).parents[1]
EXTRAS = {"test", "recipes", "sudoku", "eval", "rl", "image", "app", "dev"}
BUILD_TOOLS = {"pip", "setuptools"}  # every environment brings its own


def project_files() -> list[Path]:
    """Tracked files and those about to be: all that git does not ignore."""
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    result = subprocess.run(command, cwd=ROOT, capture_output=True)
    if result.returncode:
        pytest.skip(f"not a git checkout: {result.stderr.decode().strip()}")
    files = (ROOT / name for name in result.stdout.decode().split("\0") if name)
    return [path for path in files if path.is_file()]


def relative(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


# The wheel


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel of the tree as it is, built in a copy so that the checkout gets no build folder."""
    source, out = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("wheel")
    for name in ("pyproject.toml", "setup.cfg", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    shutil.copytree(ROOT / "hf_rm", source / "hf_rm", ignore=shutil.ignore_patterns("__pycache__"))
    options = ["--no-deps", "--no-build-isolation", "--no-index", "--quiet", "--wheel-dir", str(out)]
    command = [sys.executable, "-m", "pip", "wheel", *options, str(source)]
    result = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    assert result.returncode == 0, result.stdout
    (path,) = out.glob("*.whl")
    return path


@pytest.fixture(scope="module")
def metadata(wheel: Path) -> Message:
    with zipfile.ZipFile(wheel) as archive:
        (name,) = (name for name in archive.namelist() if name.endswith(".dist-info/METADATA"))
        return Parser().parsestr(archive.read(name).decode())


def test_the_wheel_holds_exactly_the_package(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        packed = {name for name in archive.namelist() if ".dist-info/" not in name and not name.endswith("/")}
    files = [path for path in (ROOT / "hf_rm").rglob("*") if path.is_file() and "__pycache__" not in path.parts]

    assert packed == {relative(path) for path in files}
    assert "hf_rm/py.typed" in packed


def test_every_folder_with_code_is_a_package() -> None:
    folders = {path.parent for path in (ROOT / "hf_rm").rglob("*.py")}
    assert [relative(folder) for folder in sorted(folders) if not (folder / "__init__.py").is_file()] == []


def test_the_metadata_names_the_licence_and_the_extras(metadata: Message) -> None:
    assert metadata["Name"] == "hf-rm"
    assert metadata["License-Expression"] == "Apache-2.0"
    assert metadata["License-File"] == "LICENSE"
    assert EXTRAS <= set(metadata.get_all("Provides-Extra", []))


# The pins


def pins() -> dict[str, Version]:
    lines = (line.partition("#")[0].strip() for line in (ROOT / "constraints.txt").read_text().splitlines())
    pairs = (re.fullmatch(r"([A-Za-z0-9._-]+)==([^\s;]+)", line) or pytest.fail(line) for line in lines if line)
    return {canonicalize_name(match[1]): Version(match[2]) for match in pairs}


def test_the_pins_satisfy_the_ranges(metadata: Message) -> None:
    requirements = [Requirement(text) for text in metadata.get_all("Requires-Dist", [])]
    pinned = pins()

    assert requirements
    for requirement in requirements:
        name = canonicalize_name(requirement.name)
        if name in BUILD_TOOLS | {"hf-rm"}:  # an extra that contains another one requires hf-rm itself
            continue
        assert name in pinned, f"{requirement} has no pin"
        assert requirement.specifier.contains(pinned[name]), f"{requirement}, but the pin is {pinned[name]}"


def test_the_core_requires_neither_trl_nor_datasets(metadata: Message) -> None:
    requirements = [Requirement(text) for text in metadata.get_all("Requires-Dist", [])]
    core = {requirement.name for requirement in requirements if requirement.marker is None}
    assert "transformers" in core
    assert not core & {"trl", "datasets"}


def imported_modules() -> dict[str, str]:
    """Each third-party module that the package imports, anywhere in a file, with one file that does."""
    modules = {}
    for path in (ROOT / "hf_rm").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom) and node.level == 0:
                names = [node.module or ""]
            modules.update({name.partition(".")[0]: relative(path) for name in names})
    return {name: file for name, file in modules.items() if name not in {*sys.stdlib_module_names, "hf_rm"}}


def test_every_import_is_declared(metadata: Message) -> None:
    declared = {canonicalize_name(Requirement(text).name) for text in metadata.get_all("Requires-Dist", [])}
    distributions = {"PIL": "pillow", "yaml": "pyyaml", "skimage": "scikit-image"}  # the others share the name
    modules = imported_modules()

    assert "torch" in modules
    for name, file in modules.items():
        assert canonicalize_name(distributions.get(name, name)) in declared, f"{file} imports {name}"


def test_every_extra_serves_code(metadata: Message) -> None:
    """What an extra brings is imported somewhere; of tools and of the tests' own packages that is not asked."""
    text = "\n".join(
        path.read_text() for name in ("hf_rm", "recipes", "benchmarks") for path in (ROOT / name).rglob("*.py")
    )
    modules = {"pillow": "PIL", "scikit-image": "skimage", "math-verify": "math_verify", "lm-eval": "lm_eval"}
    optional = [Requirement(line) for line in metadata.get_all("Requires-Dist", []) if "extra ==" in line]
    served = [r.name for r in optional if not any(f'"{extra}"' in str(r.marker) for extra in ("test", "dev"))]
    assert {"matplotlib", "ortools", "gradio"} <= set(served)
    for name in {*served} - {"hf-rm"}:  # an extra that contains another one
        module = modules.get(name, name)
        assert re.search(rf"^\s*(from|import) {module}\b", text, re.MULTILINE) or f'files("{module}")' in text, name


def test_errors_name_extras_that_exist(metadata: Message) -> None:
    known = set(metadata.get_all("Provides-Extra", []))
    files = [path for name in ("hf_rm", "recipes", "benchmarks") for path in (ROOT / name).rglob("*.py")]
    named = {(extra, relative(path)) for path in files for extra in re.findall(r"hf-rm\[(\w+)\]", path.read_text())}
    assert {"recipes", "sudoku", "image"} <= {extra for extra, _ in named}
    assert {(extra, path) for extra, path in named if extra not in known | {"test"}} == set()
    assert [path for extra, path in named if extra == "test"] == []  # users do not install the tests


# Arrows point one way

FLOORS = (("the flat core",), ("corruption", "backbones", "hub"), ("tasks", "training", "evaluation", "visualize"))
ROOF = ("__init__", "cli")  # what users enter by: both name everything and import it when it is asked for


def floor(module: str) -> int:
    """How high a module of the package stands: 0 for the files directly under it."""
    name = module.split(".")[1] if "." in module else "__init__"
    if name in ROOF:
        return len(FLOORS)
    return next((number for number, names in enumerate(FLOORS) if name in names), 0)


def own_imports(path: Path) -> list[tuple[str, int]]:
    """Modules of the package (and of this repository's scripts) that a file imports, wherever in it, with the line."""
    found: list[tuple[str, int]] = []
    package = relative(path).removesuffix(".py").split("/")[:-1]
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found += [(alias.name, node.lineno) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            module = ".".join([*base, *filter(None, [node.module])])
            # `from . import x` names modules; what `from .package import x` names stands no higher than the package.
            names = [f"{module}.{alias.name}" for alias in node.names] if node.level and not node.module else [module]
            found += [(name, node.lineno) for name in names]
    return [(name, line) for name, line in found if name.split(".")[0] in {"hf_rm", "recipes", "benchmarks", "tests"}]


def test_every_folder_stands_on_a_floor() -> None:
    folders = {path.parent.name for path in (ROOT / "hf_rm").glob("*/__init__.py")}
    assert folders == {name for names in FLOORS[1:] for name in names}


def test_no_module_imports_upwards() -> None:
    upwards, counted = [], 0
    for path in sorted((ROOT / "hf_rm").rglob("*.py")):
        module = relative(path).removesuffix(".py").removesuffix("/__init__").replace("/", ".")
        for name, line in own_imports(path):
            counted += 1
            if not name.startswith("hf_rm") or floor(name) > floor(module):
                upwards.append(f"{relative(path)}:{line} imports {name}")
    assert counted > 300
    assert upwards == []


def test_an_import_upwards_is_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """So that the test above means something: at the top, inside a function, with and without a name."""
    monkeypatch.setitem(globals(), "ROOT", tmp_path)
    file = tmp_path / "hf_rm" / "corruption" / "pool.py"
    file.parent.mkdir(parents=True)
    file.write_text("from ..history import x\ndef f():\n    from .. import training\n    from ..tasks.math import y\n")
    (tmp_path / "hf_rm" / "cli.py").write_text("import hf_rm.backbones\nimport recipes.math\n")
    found = own_imports(file)
    assert found == [("hf_rm.history", 1), ("hf_rm.training", 3), ("hf_rm.tasks.math", 4)]
    assert [floor(name) > floor("hf_rm.corruption.pool") for name, _ in found] == [False, True, True]
    assert own_imports(tmp_path / "hf_rm" / "cli.py") == [("hf_rm.backbones", 1), ("recipes.math", 2)]
    assert (floor("hf_rm"), floor("hf_rm.cli"), floor("hf_rm.processes")) == (3, 3, 0)


# What readers are told


@pytest.mark.parametrize("command", ["make demo", "make test"])
def test_the_readme_names_the_command(command: str) -> None:
    assert re.search(rf"^\s*(\$ )?{command}\s*(#.*)?$", (ROOT / "README.md").read_text(), re.MULTILINE)


NAMED_PATH = re.compile(r"(?<![\w./-])(?:recipes|benchmarks|hf_rm|model_cards|docs|tests)/[\w./*-]*[\w*/]")


def told() -> dict[str, str]:
    """What readers are told, by file: pages, the docstrings of what they launch, and the configurations."""
    pages = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").glob("*.md")]
    texts = {path: path.read_text() for path in [*pages, *(ROOT / "recipes" / "configs").glob("*.yaml")]}
    for folder in ("recipes", "benchmarks"):
        modules = {path: ast.parse(path.read_text()) for path in (ROOT / folder).glob("*.py")}
        texts |= {path: ast.get_docstring(module) or "" for path, module in modules.items()}
    return {relative(path): text for path, text in texts.items()}


def test_every_path_that_readers_are_told_exists() -> None:
    named = {(file, path) for file, text in told().items() for path in NAMED_PATH.findall(text)}
    assert len(named) > 50, "the expression finds hardly any"
    assert {(file, path) for file, path in named if not any(ROOT.glob(path.rstrip("/")))} == set()


def test_the_comparison_is_the_default_with_more_systems_seeds_and_budgets() -> None:
    default, comparison = (
        yaml.safe_load((ROOT / "recipes" / "configs" / f"math-{name}.yaml").read_text())
        for name in ("tiny", "compare")
    )
    own = {"output_dir", "systems", "seeds", "curve_forwards", "training_free", "system_arguments", "other_decodings"}
    assert {name: value for name, value in comparison.items() if name not in own} == {
        name: value for name, value in default.items() if name not in own
    }
    assert set(default["systems"]) < set(comparison["systems"]) and len(comparison["seeds"]) == 3


# Nothing of one machine. The patterns are put together here so that this file does not match itself.

MACHINE_PATHS = "|".join(["work", "root", "farm", "tmp/v", "opt/" + "(wheels|pypi)"])
REGISTRY_HOSTS = "|".join(rf"{name}\.{domain}" for name, domain in [
    ("pypi", "org"), ("pythonhosted", "org"), ("download.pytorch", "org"), ("registry.npmjs", "org"),
    ("deb.debian", "org"), ("proxy.golang", "org"),
])  # fmt: skip


@pytest.mark.parametrize(
    "pattern",
    [rf"(?<![\w.}}-])/({MACHINE_PATHS})/", rf"\b({REGISTRY_HOSTS})\b"],
    ids=["absolute path", "registry host"],
)
def test_no_file_names_a_machine(pattern: str) -> None:
    expression = re.compile(pattern.encode())
    matches = {relative(path): expression.search(path.read_bytes()) for path in project_files()}
    assert {name: match[0].decode() for name, match in matches.items() if match} == {}


# The recipes' guard: recipes/math.py must not shadow the standard library's math

RECIPES = sorted((ROOT / "recipes").glob("*.py"))


def guard(path: Path) -> tuple[list[str], str]:
    """The modules imported up to the statement that cleans `sys.path`, and the code up to there."""
    modules, code = [], []
    body = ast.parse(path.read_text()).body
    for node in body[1:] if ast.get_docstring(ast.Module(body, [])) is not None else body:
        if isinstance(node, ast.ImportFrom) and node.module == "__future__":
            continue
        code.append(ast.unparse(node))
        if isinstance(node, ast.Import):
            modules += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            modules.append(node.module or "")
        elif "sys.path" in code[-1]:
            return modules, "\n".join(code)
    pytest.fail(f"{relative(path)} has no guard: it never cleans sys.path")


@pytest.mark.skipif(not RECIPES, reason="no recipe yet")
def test_every_recipe_starts_with_the_guard() -> None:
    guards = {relative(path): guard(path) for path in RECIPES if not path.name.startswith("_")}
    for name, (modules, _) in guards.items():
        assert set(modules) <= {"os", "sys"}, f"{name} imports {modules} before its guard"
    assert len({code for _, code in guards.values()}) == 1, f"the guards differ: {guards}"


@pytest.mark.skipif(not RECIPES, reason="no recipe yet")
def test_only_math_shares_a_standard_modules_name() -> None:
    assert {path.stem for path in RECIPES} & sys.stdlib_module_names <= {"math"}
