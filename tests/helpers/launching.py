"""Starting several processes on this machine."""

import socket
import sys


def free_port() -> int:
    """A port that nobody listens on now: runs of the suite side by side must not meet."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def torchrun(processes: int = 2) -> tuple[str, ...]:
    """The words before a script's name."""
    port = str(free_port())
    return sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", str(processes), "--master_port", port
