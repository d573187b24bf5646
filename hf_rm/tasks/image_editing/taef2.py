# Copyright 2026 The hf_rm authors. Licensed under the Apache License, Version 2.0.
"""
TAEF2, a tiny pretrained image autoencoder, from its published state dicts: 8 px to a cell of 32 numbers.

It is here to be weighed against the patch codebook (`recipes/image_codebook.py --taef2 FOLDER`). Its innermost blocks
normalise over the whole picture, so that a cell changes every pixel: its receptive field is the picture.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

_WIDTH, _LATENT, _GROUPS = 64, 32, 4


class _Block(nn.Module):
    """Three convolutions and a shortcut; `pooled` ones first add what a normalisation over the picture gives."""

    def __init__(self, pooled: bool) -> None:
        super().__init__()
        self.conv = nn.Sequential(_conv(), nn.ReLU(), _conv(), nn.ReLU(), _conv())
        wide = _WIDTH * _GROUPS
        self.pool = (
            nn.Sequential(
                nn.Conv2d(_WIDTH, wide, 1, bias=False),
                nn.GroupNorm(_GROUPS, wide),
                nn.ReLU(),
                nn.Conv2d(wide, _WIDTH, 1, bias=False),
            )
            if pooled
            else None
        )

    def forward(self, hidden: Tensor) -> Tensor:
        if self.pool is not None:
            hidden = hidden + self.pool(hidden)
        return F.relu(self.conv(hidden) + hidden)


class _Clamp(nn.Module):
    def forward(self, latents: Tensor) -> Tensor:
        return 3 * torch.tanh(latents / 3)


def build_encoder() -> nn.Sequential:
    """(B, 3, H, W) colours from 0 to 1 to (B, 32, H / 8, W / 8)."""
    layers: list[nn.Module] = [_conv(3), _Block(False)]
    for level in range(3):
        layers += [_conv(stride=2, bias=False), *(_Block(pooled=level == 2) for _ in range(3))]
    return nn.Sequential(*layers, _conv(outputs=_LATENT))


def build_decoder() -> nn.Sequential:
    """(B, 32, H / 8, W / 8) to (B, 3, H, W)."""
    layers: list[nn.Module] = [_Clamp(), _conv(_LATENT), nn.ReLU()]
    for level in range(3):
        layers += [_Block(pooled=level == 0) for _ in range(3)]
        layers += [nn.Upsample(scale_factor=2), _conv(bias=False)]
    return nn.Sequential(*layers, _Block(False), _conv(outputs=3))


def load_taef2(folder: str | Path) -> tuple[nn.Sequential, nn.Sequential]:
    """
    Encoder and decoder from `taef2_encoder.pth` and `taef2_decoder.pth`, as they are published. These are pickles, of
    which `weights_only=True` takes tensors alone and runs no code.

    Raises:
        OSError: for a missing or damaged file.
    """
    modules = []
    for name, build in (("encoder", build_encoder), ("decoder", build_decoder)):
        path, module = Path(folder) / f"taef2_{name}.pth", build()
        try:
            module.load_state_dict(torch.load(path, map_location="cpu", weights_only=True))
        except FileNotFoundError as error:
            raise OSError(f"`folder` {folder} has no {path.name}: pass the folder that holds both files.") from error
        except Exception as error:
            raise OSError(f"{path} is not a state dict of this network: fetch it again.") from error
        modules.append(module.float().eval().requires_grad_(False))
    return modules[0], modules[1]


def _conv(inputs: int = _WIDTH, outputs: int = _WIDTH, stride: int = 1, bias: bool = True) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, 3, stride=stride, padding=1, bias=bias)
