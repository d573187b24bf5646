"""Scripts in interpreters that lack packages."""

import os
import subprocess
import sys
from pathlib import Path

# Runs before the script of a subprocess: the named packages cannot be imported there.
BLOCK = """
import sys
sys.modules.update(dict.fromkeys({blocked!r}))
"""


def run_blocked(script: str, blocked: set[str], folder: Path, path: str = "") -> subprocess.CompletedProcess[str]:
    """A script in an interpreter that cannot import `blocked`, started in `folder`."""
    environment = {**os.environ, "HF_MODULES_CACHE": str(folder / "modules"), "PYTHONPATH": path}
    return subprocess.run(
        [sys.executable, "-c", BLOCK.format(blocked=blocked) + script],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
    )
