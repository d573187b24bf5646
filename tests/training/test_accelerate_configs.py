"""recipes/accelerate: what accelerate's launcher makes of every file, and two processes where a CPU can run them."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from accelerate import FullyShardedDataParallelPlugin
from accelerate.commands.config.config_args import ClusterConfig, load_config_from_file
from accelerate.commands.launch import _validate_launch_command, launch_command_parser
from accelerate.utils.launch import prepare_deepspeed_cmd_env, prepare_multi_gpu_env
from launching import free_port
from safetensors.torch import load_file
from tiny_training import tiny_model, tiny_rows

from hf_rm import RMTrainer, RMTrainingArguments
from hf_rm.training import default_lora_config

FOLDER = Path(__file__).parents[2] / "recipes" / "accelerate"
FILES = sorted(FOLDER.glob("*.yaml"))
SCRIPT = Path(__file__).with_name("script.py")
DISTRIBUTED = {
    "cpu_2proc": "MULTI_GPU",
    "ddp_2gpu": "MULTI_GPU",
    "two_machines": "MULTI_GPU",
    "fsdp2": "FSDP",
    "deepspeed_zero2": "DEEPSPEED",
    "deepspeed_zero3": "DEEPSPEED",
}


def launched(name: str, *flags: str):
    """The launcher's arguments once it has read the file."""
    line = ["--config_file", str(FOLDER / f"{name}.yaml"), *flags, "script.py"]
    return _validate_launch_command(launch_command_parser().parse_args(line))[0]


def test_these_are_the_files():
    assert {file.stem for file in FILES} == DISTRIBUTED.keys()


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_accelerate_reads_it(file):
    config = load_config_from_file(str(file))  # raises for a key that accelerate does not know
    assert type(config) is ClusterConfig
    assert config.distributed_type.value == DISTRIBUTED[file.stem]
    assert config.num_machines == (2 if file.stem == "two_machines" else 1)
    assert config.num_processes >= 2 and config.num_processes % config.num_machines == 0
    assert config.machine_rank == 0
    assert config.mixed_precision == ("no" if file.stem == "cpu_2proc" else "bf16")


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_it_says_how_to_launch_it_and_what_was_run(file):
    comment = "".join(line for line in file.read_text().splitlines(True) if line.startswith("#"))
    assert "accelerate launch --config_file" in comment and file.name in comment
    assert "# Run here: " in comment
    if DISTRIBUTED[file.stem] != "MULTI_GPU":
        assert "# Run here: no." in comment
    assert f"`{file.name}`" in (FOLDER / "README.md").read_text()


def test_data_parallel_processes_are_counted_per_machine():
    arguments = launched("two_machines", "--machine_rank", "1", "--main_process_ip", "10.0.0.1")
    prepare_multi_gpu_env(arguments)
    assert (arguments.nnodes, arguments.nproc_per_node, str(arguments.node_rank)) == ("2", "8", "1")
    assert arguments.rdzv_endpoint == "10.0.0.1:29500"


def test_fsdp_wraps_the_backbones_layers(monkeypatch):
    environment = prepare_multi_gpu_env(launched("fsdp2"))
    assert environment["FSDP_VERSION"] == "2"
    for name, value in environment.items():
        if name.startswith("FSDP_") or name == "ACCELERATE_USE_FSDP":
            monkeypatch.setenv(name, value)
    plugin = FullyShardedDataParallelPlugin()  # as every process builds it
    assert plugin.fsdp_version == 2 and plugin.reshard_after_forward is True
    assert plugin.state_dict_type.name == "FULL_STATE_DICT"
    assert not plugin.cpu_ram_efficient_loading
    model = tiny_model()
    plugin.set_auto_wrap_policy(model)
    wrap = plugin.auto_wrap_policy.keywords["transformer_layer_cls"]
    assert {layer.__name__ for layer in wrap} == {"LlamaDecoderLayer"}


@pytest.mark.parametrize("stage", [2, 3])
def test_zero_stages_reach_the_processes(stage):
    arguments = launched(f"deepspeed_zero{stage}")
    assert arguments.use_deepspeed
    arguments.deepspeed_fields_from_accelerate_config = ""
    _, environment = prepare_deepspeed_cmd_env(arguments)
    assert environment["ACCELERATE_DEEPSPEED_ZERO_STAGE"] == str(stage)
    assert environment["ACCELERATE_DEEPSPEED_ZERO3_INIT"] == "false"
    assert environment["ACCELERATE_MIXED_PRECISION"] == "bf16"
    if stage == 3:
        assert environment["ACCELERATE_DEEPSPEED_ZERO3_SAVE_16BIT_MODEL"] == "true"


SETTINGS = '{"max_steps": 3, "per_device_train_batch_size": 4}'


def start(name: str, output: Path, *flags: str) -> subprocess.Popen:
    command = [sys.executable, "-m", "accelerate.commands.launch", "--config_file", str(FOLDER / f"{name}.yaml")]
    return subprocess.Popen(
        [*command, *flags, str(SCRIPT), str(output), SETTINGS, "--lora"],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "1"},
    )


def finish(*processes: subprocess.Popen) -> None:
    try:
        for process in processes:
            _, error = process.communicate(timeout=240)
            assert process.returncode == 0, error[-3000:]
    finally:
        for process in processes:
            process.kill()


@pytest.fixture(scope="module")
def one_process(tmp_path_factory):
    """The adapter that one process trains with the doubled batch."""
    model = tiny_model()
    args = RMTrainingArguments(
        str(tmp_path_factory.mktemp("one")),
        per_device_train_batch_size=8,
        max_steps=3,
        learning_rate=0.01,
        max_corruption_rate=0.9,
        report_to="none",
        use_cpu=True,
        save_strategy="no",
        disable_tqdm=True,
    )
    trainer = RMTrainer(model, args, train_dataset=tiny_rows(), peft_config=default_lora_config(model, r=2))
    trainer.train()
    trainer.save_model()
    return load_file(Path(args.output_dir) / "adapter_model.safetensors")


def assert_same_adapter(folder: Path, expected: dict) -> None:
    ours = load_file(folder / "final" / "adapter_model.safetensors")
    assert ours.keys() == expected.keys()
    for name, value in expected.items():
        assert (ours[name] - value).abs().max() < 1e-5, name
    assert any("lora_B" in name and value.abs().max() > 1e-3 for name, value in ours.items())


@pytest.mark.slow
def test_two_processes_on_a_cpu_train_the_adapter_of_one(tmp_path, one_process):
    finish(start("cpu_2proc", tmp_path, "--main_process_port", str(free_port())))
    assert_same_adapter(tmp_path, one_process)


@pytest.mark.slow
def test_two_launchers_meet_as_two_machines_would(tmp_path, one_process):
    """One host stands for both: the rendezvous and the ranks are the file's, the network between them is not."""
    flags = ["--num_processes", "2", "--mixed_precision", "no", "--main_process_port", str(free_port())]
    machines = [start("two_machines", tmp_path, *flags, "--machine_rank", rank) for rank in ("0", "1")]
    finish(*machines)
    assert_same_adapter(tmp_path, one_process)
