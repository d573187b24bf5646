"""What the scripts of tests/hub read off a model, so that publisher and puller can be compared."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file

IDS = torch.randint(1, 11, (2, 9), generator=torch.Generator().manual_seed(0))


@dataclass
class Run:
    """What a script left behind: the models by name, and kind and text of the errors."""

    models: dict[str, dict[str, Any]]
    errors: dict[str, list[str] | None]


def read(model: Any) -> dict[str, Any]:
    """Logits with a history, a whole trajectory, and every setting, of a wrapper or the `PeftModel` around it."""
    wrapper = model.get_base_model() if hasattr(model, "get_base_model") else model
    wrapper.eval()
    with torch.no_grad():
        first = wrapper(IDS)
        logits = wrapper(IDS.flip(0), history=first.history).logits
    generation = wrapper.generation_config.to_diff_dict()
    generation.pop("transformers_version")
    return {
        "logits": logits,
        "states": wrapper.generate_reflective(IDS).trajectory.states,
        "history": {key: value for key, value in wrapper.config.to_dict().items() if key.startswith("history")},
        "generation": generation,
        "module": type(wrapper).__module__.split(".")[0],
    }


def write_models(models: dict[str, dict[str, Any]], path: Path) -> None:
    """What [`read`] says of each model: tensors, and the rest as JSON beside them."""
    named = {(name, key): value for name, said in models.items() for key, value in said.items()}
    tensors = {json.dumps(key): value for key, value in named.items() if isinstance(value, torch.Tensor)}
    rest = {json.dumps(key): json.dumps(value) for key, value in named.items() if not isinstance(value, torch.Tensor)}
    save_file({key: value.contiguous() for key, value in tensors.items()}, path, metadata=rest)


def read_models(path: Path) -> dict[str, dict[str, Any]]:
    """What [`write_models`] wrote."""
    models: dict[str, dict[str, Any]] = {}
    with safe_open(path, framework="pt") as file:
        said = {key: json.loads(value) for key, value in file.metadata().items()}
        said |= {key: file.get_tensor(key) for key in file.keys()}
    for key, value in said.items():
        name, what = json.loads(key)
        models.setdefault(name, {})[what] = value
    return models


def attempt(action: Callable[[], Any]) -> list[str] | None:
    """Kind and text of the error that `action` raises; None when it raises none."""
    try:
        action()
    except (ValueError, OSError, ImportError) as error:
        kinds = (kind for kind in (ValueError, OSError, ImportError) if isinstance(error, kind))
        return [next(kinds).__name__, str(error)]
    return None
