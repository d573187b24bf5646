"""What every test shares: no network, one thread, the worked numbers."""

import json
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

# huggingface_hub, datasets and transformers read these once, at import: set them before any of the three is imported.
# A test that needs a Hub starts its own server, and a subprocess with its own environment.
_HF_HOME = tempfile.TemporaryDirectory(prefix="hf-rm-tests-", ignore_cleanup_errors=True)  # removed at exit
os.environ.update(
    HF_HOME=_HF_HOME.name,
    HF_HUB_OFFLINE="1",
    HF_DATASETS_OFFLINE="1",
    TRANSFORMERS_OFFLINE="1",
    HF_HUB_DISABLE_TELEMETRY="1",
    TOKENIZERS_PARALLELISM="false",
    OMP_NUM_THREADS="1",  # subprocesses too
)
for _name in ("HF_ENDPOINT", "HF_TOKEN", "HF_HUB_CACHE", "HF_DATASETS_CACHE", "HF_MODULES_CACHE"):
    os.environ.pop(_name, None)  # a developer's own settings would lead out of HF_HOME

import pytest  # noqa: E402
import torch  # noqa: E402
from hypothesis import settings  # noqa: E402

# One thread: the order of a floating-point sum then does not depend on the machine's cores, so exact comparisons hold
# everywhere; and the test processes do not fight over cores (tiny tensors gain nothing from threads).
torch.set_num_threads(1)

# The same examples in every run: a failure in CI is a failure here.
settings.register_profile("hf_rm", derandomize=True, deadline=None)
settings.load_profile("hf_rm")

VECTORS = Path(__file__).parent / "vectors"


@pytest.fixture(scope="session")
def vectors() -> Callable[[str], Any]:
    """`vectors("history_reference")` is the content of tests/vectors/history_reference.json, read anew each time."""

    def load(name: str) -> Any:
        path = VECTORS / f"{name}.json"
        if not path.is_file():
            raise ValueError(f"no vectors {name!r}; there are {sorted(file.stem for file in VECTORS.glob('*.json'))}")
        return json.loads(path.read_text())

    return load
