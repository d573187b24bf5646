"""A checkpoint that is not whole: refused by name before anything of it is read, never resumed to other weights."""

import json
import shutil
from collections.abc import Callable
from hashlib import blake2b
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_training import tiny_model, tiny_rows

from hf_rm import RMTrainer, RMTrainingArguments
from hf_rm.training import default_lora_config
from hf_rm.training.checkpoints import MANIFEST, check_checkpoint, list_files

FILES = {
    "model.safetensors",
    "config.json",
    "generation_config.json",
    "optimizer.pt",
    "scheduler.pt",
    "rng_state.pth",
    "extra_state_0.safetensors",
    "trainer_state.json",
    "training_args.json",
}


def make(folder: Path, lora: bool = False, **settings) -> RMTrainer:
    defaults = {"max_steps": 4, "save_steps": 2, "pool_fraction": 0.5, "per_device_train_batch_size": 4}
    quiet = {"report_to": "none", "use_cpu": True, "disable_tqdm": True, "learning_rate": 0.01}
    model = tiny_model()
    args = RMTrainingArguments(str(folder), **{**defaults, **quiet, **settings})
    peft_config = default_lora_config(model, r=2) if lora else None
    return RMTrainer(model, args, train_dataset=tiny_rows(), peft_config=peft_config)


@pytest.fixture(scope="module", params=[False, True], ids=["all weights", "adapter"])
def run(request, tmp_path_factory) -> tuple[bool, Path]:
    """A finished run; its checkpoint-2 is what the tests spoil a copy of."""
    folder = tmp_path_factory.mktemp("run")
    make(folder, request.param).train()
    return request.param, folder


def spoil(run: tuple[bool, Path], tmp_path: Path, name: str, change: Callable[[Path], object]) -> str:
    folder = tmp_path / "checkpoint-2"
    shutil.copytree(run[1] / "checkpoint-2", folder)
    change(folder / name)
    return str(folder)


def truncate(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-5])


def drop_a_tensor(file: Path) -> None:
    weights = load_file(file)
    del weights[min(weights)]
    save_file(weights, file)


def refused(run: tuple[bool, Path], tmp_path: Path, checkpoint: str, message: str) -> None:
    trainer = make(tmp_path / "out", run[0])
    before = {name: value.clone() for name, value in trainer.model.state_dict().items()}
    with pytest.raises(OSError, match=f"{message}.*resume from the checkpoint before it"):
        trainer.train(resume_from_checkpoint=checkpoint)
    assert trainer.state.global_step == 0
    assert all(torch.equal(value, before[name]) for name, value in trainer.model.state_dict().items())


def names(run: tuple[bool, Path]) -> set[str]:
    return {path.name for path in (run[1] / "checkpoint-2").iterdir()}


def test_the_list_names_every_file_and_a_whole_checkpoint_resumes(run, tmp_path):
    folder = run[1] / "checkpoint-2"
    entries = json.loads((folder / MANIFEST).read_text())
    assert entries == {
        path.name: {"size": path.stat().st_size, "digest": blake2b(path.read_bytes(), digest_size=16).hexdigest()}
        for path in folder.iterdir()
        if path.name != MANIFEST
    }
    if not run[0]:
        assert entries.keys() == FILES
    resumed = make(tmp_path, run[0])
    resumed.train(resume_from_checkpoint=str(folder))
    weights = "adapter_model.safetensors" if run[0] else "model.safetensors"
    ours, whole = (load_file(place / "checkpoint-4" / weights) for place in (tmp_path, run[1]))
    assert all(torch.equal(value, ours[name]) for name, value in whole.items())


def test_a_file_that_is_missing_is_named(run, tmp_path):
    for number, name in enumerate(sorted(names(run) - {MANIFEST})):
        checkpoint = spoil(run, tmp_path / str(number), name, Path.unlink)
        refused(run, tmp_path, checkpoint, f"^{name} of the checkpoint .*checkpoint-2 is missing")


def test_a_file_that_is_truncated_is_named(run, tmp_path):
    for number, name in enumerate(sorted(names(run) - {MANIFEST})):
        checkpoint = spoil(run, tmp_path / str(number), name, truncate)
        refused(run, tmp_path, checkpoint, f"^{name} of the checkpoint .* has \\d+ bytes of \\d+")
    refused(run, tmp_path, spoil(run, tmp_path, MANIFEST, truncate), f"^{MANIFEST} of .* cannot be read")


def flip_a_bit(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[-9] ^= 1  # near the end: a digit of the JSON files, a weight, or what a look at a zip's ends passes over
    file.write_bytes(content)


def test_a_file_with_one_bit_flipped_is_named(run, tmp_path):
    for number, name in enumerate(sorted(names(run) - {MANIFEST})):
        checkpoint = spoil(run, tmp_path / str(number), name, flip_a_bit)
        refused(run, tmp_path, checkpoint, f"^{name} of the checkpoint .* (has other bytes|cannot be read)")


def test_another_step_in_the_state_is_named(run, tmp_path):
    """As many bytes, and JSON as before."""
    step = lambda file: file.write_text(file.read_text().replace('"global_step": 2', '"global_step": 3'))  # noqa: E731
    checkpoint = spoil(run, tmp_path, "trainer_state.json", step)
    refused(run, tmp_path, checkpoint, "^trainer_state.json of the checkpoint .* has other bytes than it was written")


@pytest.fixture
def listed(tmp_path) -> Path:
    (tmp_path / "adapter").mkdir()
    (tmp_path / "adapter" / "weights.bin").write_bytes(bytes(300_000))
    (tmp_path / "trainer_state.json").write_text('{"global_step": 2}')
    list_files(tmp_path)
    check_checkpoint(tmp_path)
    return tmp_path


@pytest.mark.parametrize("place", [0, 150_000, 299_999])
def test_every_byte_of_every_folder_counts(listed, place):
    content = bytearray(300_000)
    content[place] = 128
    (listed / "adapter" / "weights.bin").write_bytes(content)
    with pytest.raises(OSError, match="^adapter/weights.bin of .* has other bytes .*delete files.json.: resume"):
        check_checkpoint(listed)


def test_a_list_from_before_the_digests_is_read(listed):
    entries = json.loads((listed / MANIFEST).read_text())
    (listed / MANIFEST).write_text(json.dumps({name: entry["size"] for name, entry in entries.items()}))
    (listed / "trainer_state.json").write_text('{"global_step": 3}')
    check_checkpoint(listed)
    (listed / "trainer_state.json").write_text('{"global_step": 30}')
    with pytest.raises(OSError, match="^trainer_state.json of .* has 19 bytes of 18 "):
        check_checkpoint(listed)


@pytest.mark.parametrize("content", ["[1]", '{"a": {"size": 1}}', '{"a": null}', '{"a": 1', "7"])
def test_a_list_that_is_none_is_named(listed, content):
    (listed / MANIFEST).write_text(content)
    with pytest.raises(OSError, match=f"^{MANIFEST} of the checkpoint .* cannot be read: resume"):
        check_checkpoint(listed)


def test_weights_with_a_tensor_missing_are_named(run, tmp_path):
    name = "adapter_model.safetensors" if run[0] else "model.safetensors"
    refused(run, tmp_path, spoil(run, tmp_path, name, drop_a_tensor), f"^{name} of .* has")


@pytest.mark.parametrize("name", ["trainer_state.json", "optimizer.pt", "scheduler.pt", "rng_state.pth"])
@pytest.mark.parametrize("run", [False], indirect=True)
def test_without_a_list_what_every_run_needs_is_looked_for(run, tmp_path, name):
    for number, change in enumerate((Path.unlink, truncate)):
        checkpoint = spoil(run, tmp_path / str(number), name, change)
        (Path(checkpoint) / MANIFEST).unlink()
        pattern = name.replace("_state.pth", r"_state\*?\.pth")  # a run of several processes has one for each
        refused(run, tmp_path, checkpoint, f"^{pattern} of the checkpoint .* (is missing|cannot be read)")


@pytest.mark.parametrize("run", [False], indirect=True)
def test_without_a_list_a_missing_tensor_is_still_named(run, tmp_path):
    checkpoint = spoil(run, tmp_path, "model.safetensors", drop_a_tensor)
    (Path(checkpoint) / MANIFEST).unlink()
    with pytest.raises(OSError, match=r"missing keys for RMForMaskedDiffusion: model\."):
        make(tmp_path / "out").train(resume_from_checkpoint=checkpoint)


@pytest.mark.parametrize(
    "settings",
    [
        {"per_device_train_batch_size": 8},
        {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 2},
        {"pool_fraction": 0.25},
    ],
)
@pytest.mark.parametrize("run", [False], indirect=True)
def test_the_pool_of_another_launch_is_refused(run, tmp_path, settings):
    with pytest.raises(ValueError, match="resume with the .*`pool_fraction` of its training"):
        make(tmp_path, **settings).train(resume_from_checkpoint=str(run[1] / "checkpoint-2"))
