"""What the scripts of tests/hub read off a model, so that publisher and puller can be compared."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

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


def attempt(action: Callable[[], Any]) -> list[str] | None:
    """Kind and text of the error that `action` raises; None when it raises none."""
    try:
        action()
    except (ValueError, OSError, ImportError) as error:
        kinds = (kind for kind in (ValueError, OSError, ImportError) if isinstance(error, kind))
        return [next(kinds).__name__, str(error)]
    return None
