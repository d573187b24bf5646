"""
recipes/math.py, once as a whole, and once killed in every stage and started again: each time in a process of its own.

The processes are forks, so that importing counts once. A killed one sends itself SIGKILL at a point that is known: it
leaves what it has written, as if the machine had failed there.
"""

import importlib.util
import os
import signal
import sys
from functools import partial, wraps
from pathlib import Path

from hf_rm.tasks import post_training
from hf_rm.tasks.math.tasks import WordProblems
from hf_rm.tasks.math.tiny import build_math_tokenizer, build_tiny_math_model

POINTS = ("probe", "harvest", "training", "evaluation")
SETTINGS = """
    --systems rm-harvested --seeds 0 --sft_steps 2 --max_steps 3 --made_train 12 --made_test 6 --completion_length 40
    --harvest_samples 12 --top_k 5 --probe masked --probe_batch_size 4 --eval_batch_size 2 --recall_samples 0
    --replay_samples 0 --per_device_train_batch_size 4 --horizon 8 --pool_fraction 0.5 --learning_rate 0.01
    --save_steps 1 --use_cpu true --report_to none --disable_tqdm true
""".split()
DECODING = ["--sft_decoding", '{"preset": "llada", "steps": 4}']
DECODING += ["--rm_decoding", '{"reveal": "confidence", "steps": 3, "revise": "reflective", "max_steps": 4}']


def killing(function, calls: int):
    """`function`, at whose given call this process ends."""
    count = 0

    @wraps(function)  # a grader's name is part of an evaluation's fingerprint
    def counted(*args, **kwargs):
        nonlocal count
        count += 1
        if count == calls:
            os.kill(os.getpid(), signal.SIGKILL)
        return function(*args, **kwargs)

    return counted


def recipe(folder: Path, config: Path, point: str | None) -> None:
    """The recipe, killed in the middle of a stage."""
    shard = {"shard_rows": 4}  # three shards of twelve rows
    for name in ("build_topk_cache", "harvest"):
        setattr(post_training, name, partial(getattr(post_training, name), **shard))
    if point in ("probe", "harvest"):
        name = {"probe": "build_topk_cache", "harvest": "harvest"}[point]
        setattr(post_training, name, partial(_killed_at_a_shard, getattr(post_training, name)))
    elif point == "training":
        post_training.RMTrainer.training_step = killing(post_training.RMTrainer.training_step, 2)
    elif point == "evaluation":
        WordProblems.grade = killing(WordProblems.grade, 4)
    path = Path(__file__).parents[2] / "recipes" / "math.py"
    specification = importlib.util.spec_from_file_location("math_recipe", path)
    module = importlib.util.module_from_spec(specification)
    sys.modules["math_recipe"] = module  # dataclasses look their module up
    specification.loader.exec_module(module)
    base = str(folder.parent / "base")
    sys.argv = ["math.py", "--config", str(config), "--base", base, "--output_dir", str(folder), *SETTINGS, *DECODING]
    module.main()


def _killed_at_a_shard(compute, *args, on_shard, **kwargs):
    return compute(*args, on_shard=killing(on_shard, 2), **kwargs)


def forked(folder: Path, config: Path, point: str | None = None) -> int:
    """The exit code of a process that runs the recipe; negative for a signal."""
    child = os.fork()
    if not child:
        recipe(folder, config, point)
        sys.stdout.flush()
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def main(root: Path) -> None:
    build_tiny_math_model(0, hidden_size=16, intermediate_size=32, num_layers=1, num_heads=2).save_pretrained(
        root / "base"
    )
    build_math_tokenizer().save_pretrained(root / "base")
    config = root / "empty.yaml"  # one of its own keeps the recipe from its default
    config.write_text("task: word-problems\n")
    codes = {"whole": forked(root / "whole", config)}
    codes |= {point: forked(root / "killed", config, point) for point in POINTS}
    codes["again"] = forked(root / "killed", config)
    print(", ".join(f"{name} {code}" for name, code in codes.items()))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
