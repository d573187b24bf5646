"""
Run by tests/hub/conftest.py where hf_rm cannot be imported: the repositories' own code has to do.

    script_remote.py OUT   # OUT/remote.safetensors: what the models say; OUT/remote.json: the errors on the way
"""

import sys

sys.modules["hf_rm"] = None  # type: ignore[assignment]

import json  # noqa: E402
import os  # noqa: E402
from pathlib import Path  # noqa: E402

from hub_reading import attempt, read, write_models  # noqa: E402
from transformers import AutoModel  # noqa: E402

OUT = Path(sys.argv[1])
TRAP = Path(os.environ["TRAP"])  # appears when the code of alice/strange-base runs

pulled = {
    name: read(AutoModel.from_pretrained(name, trust_remote_code=True))
    for name in ("alice/rm-full", "alice/rm-lora", "alice/lora-on-full", "alice/llada-lora")
}
second = AutoModel.from_pretrained("alice/rm-lora", trust_remote_code=True, revision="second")
pulled["alice/rm-lora@second"] = read(second)

errors = {"untrusted": attempt(lambda: AutoModel.from_pretrained("alice/rm-lora", trust_remote_code=False))}
strange = "alice/lora-on-strange"
errors["strange base"] = attempt(lambda: AutoModel.from_pretrained(strange, trust_remote_code=True))
errors["trap before"] = [str(TRAP.exists())]
trust = {"trust_remote_code": True, "base_trust_remote_code": True}
errors["trusted base"] = attempt(lambda: AutoModel.from_pretrained(strange, **trust))
errors["trap after"] = [str(TRAP.exists())]
errors["push"] = attempt(lambda: second.push_to_hub("alice/from-remote-code"))
AutoModel.from_pretrained("alice/rm-full", trust_remote_code=True).push_to_hub("alice/from-remote-code")

write_models(pulled, OUT / "remote.safetensors")
(OUT / "remote.json").write_text(json.dumps(errors))
