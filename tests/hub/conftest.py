"""One Hub on the loopback for the folder; publisher and pullers are processes with caches of their own."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from hub_reading import Run, read_models
from hub_server import HubServer

import hf_rm

HERE = Path(__file__).parent
PACKAGE_PATH = [str(Path(hf_rm.__file__).parents[1])]


def run_script(hub: HubServer, name: str, out: Path, package: bool = True, **environment: str) -> None:
    path = [*(PACKAGE_PATH if package else []), str(HERE.parent / "helpers")]
    environment |= hub.environment(out / f"home-{name}", token="hf_alice") | {"PYTHONPATH": os.pathsep.join(path)}
    command = [sys.executable, str(HERE / f"{name}.py"), str(out)]
    done = subprocess.run(command, cwd=out, env={**os.environ, **environment}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-4000:]


@pytest.fixture(scope="session")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("hub")


@pytest.fixture(scope="session")
def hub() -> Iterator[HubServer]:
    with HubServer({"hf_alice": "alice", "hf_reader": "bert"}) as server:
        yield server


@pytest.fixture(scope="session")
def published(hub: HubServer, out: Path) -> Run:
    run_script(hub, "script_publish", out)
    return Run(read_models(out / "expected.safetensors"), json.loads((out / "refused.json").read_text()))


@pytest.fixture(scope="session")
def pulled(hub: HubServer, out: Path, published: Run) -> Run:
    # The full model's weights stop in the middle once. Those of the adapter's base stop, and then the Hub is down.
    hub.requests.clear()
    base = "alice/tiny-llama/model.safetensors"
    hub.faults = [("alice/rm-full/model.safetensors", 0.5), (base, 0.5), (base, 500)]
    run_script(hub, "script_pull", out)
    assert hub.faults == []
    return Run(read_models(out / "pulled.safetensors"), json.loads((out / "errors.json").read_text()))


@pytest.fixture(scope="session")
def remote(hub: HubServer, out: Path, published: Run) -> Run:
    plant_strange_base(hub)
    run_script(hub, "script_remote", out, package=False, TRAP=str(out / "trap"))
    return Run(read_models(out / "remote.safetensors"), json.loads((out / "remote.json").read_text()))


def plant_strange_base(hub: HubServer) -> None:
    """A base with code of its own, which leaves a trace when it runs, and an adapter's repository that names it."""
    code = (
        "import os, pathlib\nfrom transformers import PreTrainedConfig\npathlib.Path(os.environ['TRAP']).touch()\n"
        "class StrangeConfig(PreTrainedConfig):\n    model_type = 'strange'\n"
    )
    values = {"model_type": "strange", "auto_map": {"AutoConfig": "strange.StrangeConfig"}}
    hub.put("alice/strange-base", {"config.json": json.dumps(values).encode(), "strange.py": code.encode()})
    files = dict(hub.files("alice/rm-lora"))
    config = json.loads(files["config.json"]) | {"backbone_name": "alice/strange-base", "backbone_revision": None}
    hub.put("alice/lora-on-strange", {**files, "config.json": json.dumps(config).encode()})
