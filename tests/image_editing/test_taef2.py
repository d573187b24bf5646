"""TAEF2's two networks, on random weights in the layout of the published files."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from hf_rm.tasks.image_editing.taef2 import load_taef2

# The published state dicts, layer by layer: a convolution's (outputs, inputs, bias), "block", "pooled" block, or what
# has no weights.
ENCODER = [
    (64, 3, True), "block",
    "down", "block", "block", "block",
    "down", "block", "block", "block",
    "down", "pooled", "pooled", "pooled",
    (32, 64, True),
]  # fmt: skip
DECODER = [
    "clamp", (64, 32, True), "relu",
    "pooled", "pooled", "pooled", "up", (64, 64, False),
    "block", "block", "block", "up", (64, 64, False),
    "block", "block", "block", "up", (64, 64, False),
    "block", (3, 64, True),
]  # fmt: skip
State = dict[str, Tensor]


def random_state(layers: list) -> State:
    """Half precision, as published."""
    state: State = {}

    def convolution(name: str, outputs: int, inputs: int, bias: bool, side: int = 3) -> None:
        state[f"{name}.weight"] = torch.randn(outputs, inputs, side, side) / (inputs * side * side) ** 0.5
        if bias:
            state[f"{name}.bias"] = torch.randn(outputs) / 10

    for number, layer in enumerate(layers):
        if isinstance(layer, tuple):
            convolution(f"{number}", *layer)
        elif layer == "down":
            convolution(f"{number}", 64, 64, False)
        elif layer in ("block", "pooled"):
            for place in (0, 2, 4):
                convolution(f"{number}.conv.{place}", 64, 64, True)
            if layer == "pooled":
                convolution(f"{number}.pool.0", 256, 64, False, side=1)
                state[f"{number}.pool.1.weight"] = 1 + torch.randn(256) / 10
                state[f"{number}.pool.1.bias"] = torch.randn(256) / 10
                convolution(f"{number}.pool.3", 64, 256, False, side=1)
    return {name: value.half() for name, value in state.items()}


def slow(layers: list, state: State, x: Tensor) -> Tensor:
    """What the layers do, one after another."""
    s = {name: value.float() for name, value in state.items()}

    def convolved(name: str, x: Tensor, stride: int = 1) -> Tensor:
        weight = s[f"{name}.weight"]
        return F.conv2d(x, weight, s.get(f"{name}.bias"), stride=stride, padding=weight.shape[-1] // 2)

    for number, layer in enumerate(layers):
        if isinstance(layer, tuple):
            x = convolved(f"{number}", x)
        elif layer == "down":
            x = convolved(f"{number}", x, stride=2)
        elif layer == "up":
            x = x.repeat_interleave(2, -1).repeat_interleave(2, -2)
        elif layer == "clamp":
            x = 3 * torch.tanh(x / 3)
        elif layer == "relu":
            x = x.relu()
        else:
            if layer == "pooled":
                wide = convolved(f"{number}.pool.0", x)
                groups = wide.reshape(len(x), 4, -1)
                spread = (groups.var(-1, unbiased=False, keepdim=True) + 1e-5).sqrt()
                normal = ((groups - groups.mean(-1, keepdim=True)) / spread).reshape(wide.shape)
                scale, shift = (s[f"{number}.pool.1.{name}"][:, None, None] for name in ("weight", "bias"))
                x = x + convolved(f"{number}.pool.3", (normal * scale + shift).relu())
            inner = convolved(f"{number}.conv.0", x).relu()
            inner = convolved(f"{number}.conv.2", inner).relu()
            x = (convolved(f"{number}.conv.4", inner) + x).relu()
    return x


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    torch.manual_seed(0)
    place = tmp_path_factory.mktemp("taef2")
    for name, layers in (("encoder", ENCODER), ("decoder", DECODER)):
        torch.save(random_state(layers), place / f"taef2_{name}.pth")
    return place


def test_the_published_layout_loads_and_does_what_its_layers_say(folder: Path) -> None:
    states = [torch.load(folder / f"taef2_{name}.pth", weights_only=True) for name in ("encoder", "decoder")]
    assert [len(state) for state in states] == [79, 79]
    encoder, decoder = load_taef2(folder)
    images = torch.rand(2, 3, 32, 24)
    with torch.no_grad():
        latents = encoder(images)
        pictures = decoder(latents)
        assert latents.shape == (2, 32, 4, 3) and pictures.shape == images.shape
        assert torch.allclose(latents, slow(ENCODER, states[0], images), atol=1e-3, rtol=1e-3)
        assert torch.allclose(pictures, slow(DECODER, states[1], latents), atol=1e-3, rtol=1e-3)
        far = 1e4 * latents
        assert torch.allclose(decoder(far), slow(DECODER, states[1], far), atol=1e-3, rtol=1e-3)
    assert not any(parameter.requires_grad for parameter in [*encoder.parameters(), *decoder.parameters()])


def test_a_cell_changes_every_pixel(folder: Path) -> None:
    _, decoder = load_taef2(folder)
    latents = torch.randn(1, 32, 8, 8)
    other = latents.clone()
    other[0, :, 0, 0] += 1
    with torch.no_grad():
        assert (decoder(latents) != decoder(other)).any(1).float().mean() > 0.9


def test_missing_and_damaged_files_are_named(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(OSError, match="no taef2_encoder.pth"):
        load_taef2(tmp_path)
    for name in ("encoder", "decoder"):
        (tmp_path / f"taef2_{name}.pth").write_bytes((folder / f"taef2_{name}.pth").read_bytes())
    torch.save({"0.weight": torch.zeros(1)}, tmp_path / "taef2_decoder.pth")
    with pytest.raises(OSError, match="taef2_decoder.pth is not a state dict"):
        load_taef2(tmp_path)
    torch.save(np.array([object()]), tmp_path / "taef2_encoder.pth")  # what only a pickle could hold
    with pytest.raises(OSError, match="taef2_encoder.pth is not a state dict"):
        load_taef2(tmp_path)
