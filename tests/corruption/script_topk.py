"""
A small top-k cache as a script, for tests that need processes: to launch two, to kill one.

    python script_topk.py FOLDER [--die-after SHARDS]
"""

import os
import signal
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "helpers"))

from accelerate import PartialState  # noqa: E402
from tiny_training import tiny_model, tiny_rows  # noqa: E402

from hf_rm.corruption import ShardFolder, build_topk_cache  # noqa: E402


def die_after(shards: int) -> None:
    """Kill this process, uncatchably, when the data of the next shard is about to be written."""
    write, written = ShardFolder.write, []

    def killed(self, *args):
        if len(written) == shards:
            (self.folder / ".shard-left.safetensors.1").write_bytes(b"half")  # what a kill inside a write leaves
            os.kill(os.getpid(), signal.SIGKILL)
        written.append(args)
        write(self, *args)

    ShardFolder.write = killed


if __name__ == "__main__":
    if "--die-after" in sys.argv:
        die_after(int(sys.argv[sys.argv.index("--die-after") + 1]))
    build_topk_cache(tiny_model(), tiny_rows(14), sys.argv[1], k=4, batch_size=2, shard_rows=4)
    assert PartialState().num_processes == int(os.environ.get("WORLD_SIZE", 1)), "each took itself for the only one"
