"""End to end through the real client: publish, pull by every door, and what is refused on the way."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from hub_reading import Run, read
from hub_server import HubServer
from safetensors.torch import load
from transformers import AutoModel

from hf_rm import RMForMaskedDiffusion
from hf_rm.hub import CODE_FILES
from hf_rm.hub.layout import PICKLES

pytestmark = pytest.mark.slow

ADAPTER = {"adapter/adapter_config.json", "adapter/adapter_model.safetensors"}


def assert_same(there: dict[str, Any], here: dict[str, Any]) -> None:
    assert torch.equal(there["logits"], here["logits"])
    assert torch.equal(there["states"], here["states"]) and len(here["states"]) > 2
    assert there["history"] == here["history"] and there["generation"] == here["generation"]


# What is published


@pytest.mark.parametrize(
    "name", ["alice/rm-lora", "alice/lora-on-full", "alice/bert-lora", "alice/trained", "alice/reinforced"]
)
def test_an_adapters_repository_is_laid_out_as_designed(hub: HubServer, published: Run, name: str) -> None:
    files = hub.files(name)
    assert {"README.md", "config.json", "generation_config.json", *ADAPTER, *CODE_FILES} <= set(files)
    # At the root, transformers would follow it to the base. And the base's weights stay where they are.
    assert "adapter_config.json" not in files and "model.safetensors" not in files
    config, adapter = json.loads(files["config.json"]), json.loads(files["adapter/adapter_config.json"])
    base = {"alice/lora-on-full": "alice/rm-full", "alice/bert-lora": "alice/tiny-bert"}.get(name, "alice/tiny-llama")
    commit = hub.repositories[base].refs["main"]
    assert (config["backbone_name"], config["backbone_revision"]) == (base, commit)
    assert (adapter["base_model_name_or_path"], adapter["revision"]) == (base, commit)
    assert config["auto_map"]["AutoModel"] == "modeling_rm.RMForMaskedDiffusion"
    assert all(key.startswith("base_model.model.") for key in load(files["adapter/adapter_model.safetensors"]))


def test_the_full_model_has_code_and_card(hub: HubServer, published: Run) -> None:
    files = hub.files("alice/rm-full")
    assert {"README.md", "config.json", "generation_config.json", "model.safetensors", *CODE_FILES} <= set(files)
    assert hub.repositories["alice/rm-full"].private and not hub.repositories["alice/rm-lora"].private
    assert "demo" in files["README.md"].decode()


def test_a_push_is_one_commit(hub: HubServer, published: Run) -> None:
    assert [commit.message for commit in hub.history("alice/rm-full")] == ["initial commit", "The first"]
    assert len(hub.history("alice/lora-on-full")) == 2
    first, second = hub.files("alice/rm-lora"), hub.files("alice/rm-lora", "second")
    weights = "adapter/adapter_model.safetensors"
    assert first[weights] != second[weights] == hub.files("alice/rm-lora", "refs/pr/1")[weights]


def test_no_repository_holds_a_pickle_or_a_path_of_this_machine(hub: HubServer, published: Run, out: Path) -> None:
    for name, repository in hub.repositories.items():
        for path, data in hub.files(name).items():
            assert not path.endswith(PICKLES), f"{name}: {path}"
            assert str(out).encode() not in data, f"{name}: {path}"
        assert len(repository.commits) > 1


def test_a_full_model_takes_an_adapters_place(hub: HubServer, published: Run) -> None:
    before, *_, after = hub.history("alice/changes")[1:]
    assert set(before.files) >= ADAPTER
    assert not ADAPTER & set(after.files) and "model.safetensors" in after.files


def test_a_card_that_somebody_wrote_stays(hub: HubServer, published: Run) -> None:
    _, adapter, mine, again = hub.history("alice/changes")
    assert b"Mine." not in adapter.files["README.md"] and b"Mine." in mine.files["README.md"]
    assert again.files["README.md"] == mine.files["README.md"] and "README.md" not in again.changed


@pytest.mark.parametrize(
    ("name", "said"), [("alice/trained", "* `law`: attempts"), ("alice/reinforced", "* `num_generations`: 4")]
)
def test_the_trainer_publishes_while_it_trains_and_at_the_end(
    hub: HubServer, published: Run, name: str, said: str
) -> None:
    messages = [commit.message for commit in hub.history(name)]
    assert messages == [
        "initial commit",
        "Training in progress, step 1",
        "Training in progress, step 2",
        "End of training",
    ]
    states = [load(commit.files["adapter/adapter_model.safetensors"]) for commit in hub.history(name)[1:]]
    assert any(not torch.equal(states[0][key], states[1][key]) for key in states[0])
    assert all(torch.equal(states[1][key], states[2][key]) for key in states[1])
    assert said in hub.files(name)["README.md"].decode()


REFUSED = {
    "local base": ("ValueError", "path of this machine", "Push the base first"),
    "local base, trainer": ("ValueError", "path of this machine", "Push the base first"),
    "base not on the Hub": ("ValueError", "'alice/nowhere' is not on the Hub", "base_model="),
    "position groups": ("ValueError", "position groups", "save the full model"),
    "bare backbone": ("ValueError", "LlamaForCausalLM", "from_backbone"),
    "no adapter": ("ValueError", "no adapter", "save_for_hub"),
    "wrong token": ("OSError", "refused access to 'alice/secret' (401)", "token="),
    "another's repository": ("OSError", "refused access to 'bob/his' (403)", "token="),
    "pickle": ("ValueError", "training_args.bin", "safetensors"),
    "pickled states": ("ValueError", "hub_strategy", "every_save"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_push_that_would_help_nobody_is_refused(hub: HubServer, published: Run, case: str) -> None:
    assert_refused(published, case, REFUSED)


def test_a_refused_push_leaves_nothing_behind(hub: HubServer, published: Run) -> None:
    assert not {"alice/homeless", "alice/secret", "bob/his", "alice/pickled", "alice/x"} & set(hub.repositories)


def assert_refused(run: Run, case: str, expected: dict[str, tuple[str, ...]]) -> None:
    error = run.errors[case]
    assert error is not None, f"{case}: nothing was raised"
    kind, *texts = expected[case]
    assert error[0] == kind
    assert all(text in error[1] for text in texts), error[1]


# What is pulled, in a fresh process

PULLED = {
    "alice/rm-full": "alice/rm-full",
    "auto alice/rm-full": "alice/rm-full",
    "alice/changes": "alice/rm-full",
    "alice/as-a-folder": "alice/rm-full",
    "alice/rm-lora": "alice/rm-lora",
    "auto alice/rm-lora": "alice/rm-lora",
    "auto masked alice/rm-lora": "alice/rm-lora",
    "cache_dir": "alice/rm-lora",
    "copied base": "alice/rm-lora",
    "again": "alice/rm-lora",
    "alice/rm-lora@second": "alice/rm-lora@second",
    "auto alice/rm-lora@second": "alice/rm-lora@second",
    "alice/rm-lora@refs/pr/1": "alice/rm-lora@second",
    "alice/lora-on-full": "alice/lora-on-full",
    "auto alice/lora-on-full": "alice/lora-on-full",
    "alice/bert-lora": "alice/bert-lora",
    "alice/llada-lora": "alice/llada-lora",
    "alice/trained": "alice/trained",
    "alice/reinforced": "alice/reinforced",
}


@pytest.mark.parametrize("name", PULLED)
def test_what_is_pulled_is_what_was_pushed(published: Run, pulled: Run, name: str) -> None:
    assert_same(pulled.models[name], published.models[PULLED[name]])
    assert pulled.models[name]["module"] == "hf_rm"


def test_the_published_models_differ(published: Run) -> None:
    """So that the test above means something."""
    models = published.models
    assert not torch.equal(models["alice/rm-lora"]["logits"], models["alice/rm-lora@second"]["logits"])
    assert models["alice/rm-full"]["history"] != models["alice/lora-on-full"]["history"]
    assert models["alice/rm-full"]["generation"] != models["alice/lora-on-full"]["generation"]
    assert not torch.equal(models["alice/rm-full"]["logits"], models["alice/lora-on-full"]["logits"])


def test_an_adapter_goes_into_a_wrapper_that_is_there(published: Run, pulled: Run) -> None:
    assert torch.equal(pulled.models["into a wrapper"]["logits"], published.models["alice/rm-lora@second"]["logits"])


def test_a_pulled_adapter_is_pushed_with_its_own_base(hub: HubServer, pulled: Run) -> None:
    for name, base in {"alice/again": "alice/tiny-llama", "alice/again-on-full": "alice/rm-full"}.items():
        config = json.loads(hub.files(name)["config.json"])
        assert config["backbone_name"] == base
        assert config["backbone_revision"] == hub.repositories[base].refs["main"]


def test_a_local_base_is_fine_on_this_machine(published: Run) -> None:
    assert_same(published.models["local-adapter, again"], published.models["local-adapter"])


def test_a_cut_download_continues_where_it_stopped(hub: HubServer, pulled: Run) -> None:
    size = len(hub.files("alice/rm-full")["model.safetensors"])
    path = f"/alice/rm-full/resolve/{hub.repositories['alice/rm-full'].refs['main']}/model.safetensors"
    ranges = [r for method, asked, r in hub.requests if method == "GET" and asked == path]
    assert ranges[0] is None and 0 < int(ranges[1].removeprefix("bytes=").rstrip("-")) <= size // 2
    # The base of the adapter: cut, then refused; the error names it, and the next call fetches it.
    assert pulled.errors["cut"] is not None and "alice/tiny-llama" in pulled.errors["cut"][1]


def test_what_was_pulled_loads_offline(published: Run, pulled: Run, out: Path) -> None:
    cache = out / "home-script_pull" / "hub"  # this process has no Hub: tests/conftest.py
    assert_same(
        read(RMForMaskedDiffusion.from_pretrained("alice/rm-full", cache_dir=cache)), published.models["alice/rm-full"]
    )
    assert_same(read(AutoModel.from_pretrained("alice/rm-lora", cache_dir=cache)), published.models["alice/rm-lora"])


ERRORS = {
    "no such repository": ("OSError", "alice/nothing", "not a valid model identifier"),
    "no such revision": ("OSError", "third", "not a valid git identifier"),
    "wrong token": ("OSError", "refused the token for 'alice/rm-lora' (401)", "token="),
    "wrong token, full": ("OSError", "refused the token for 'alice/rm-full' (401)", "token="),
    "private": ("OSError", "alice/rm-full", "token"),
    "bare backbone": ("ValueError", "LlamaForCausalLM, a bare backbone", "from_pretrained('alice/rm-lora')"),
    "another base by name": ("ValueError", "made for 'alice/tiny-llama'", "'alice/rm-full'", "check_base=False"),
    "other shapes": ("ValueError", "model_type is bert there, llama was adapted", "base_model="),
    "other full base": ("ValueError", "adapter's repository itself", "base_model="),
    "other width": ("ValueError", "does not fit", "mismatched_keys", "[4, 16]", "[4, 32]"),
    "other modules": ("ValueError", "'alice/rm-lora' does not fit", "q_proj"),
    "missing keys": ("ValueError", "missing_keys", "trainable_tokens_delta"),
    "left over keys": ("ValueError", "unexpected_keys", "model.extra"),
    "pickled adapter": ("OSError", "no adapter_model.safetensors", "pickled"),
    "adapter without the wrapper's config": ("ValueError", "history settings are unknown", "from_backbone"),
    "no adapter": ("OSError", "'alice/tiny-llama' holds no adapter"),
}


@pytest.mark.parametrize("case", ERRORS)
def test_what_cannot_be_pulled_says_why(pulled: Run, case: str) -> None:
    assert_refused(pulled, case, ERRORS)


# Without hf_rm


@pytest.mark.parametrize(
    "name", ["alice/rm-full", "alice/rm-lora", "alice/rm-lora@second", "alice/lora-on-full", "alice/llada-lora"]
)
def test_the_repositories_code_is_enough(published: Run, remote: Run, name: str) -> None:
    assert_same(remote.models[name], published.models[name])
    assert remote.models[name]["module"] == "transformers_modules"


def test_trust_in_an_adapter_is_not_trust_in_its_base(remote: Run) -> None:
    expected = {
        "untrusted": ("ValueError", "trust_remote_code"),
        "strange base": ("ValueError", "'alice/strange-base'", "base_trust_remote_code=True"),
        "push": ("ImportError", "install hf_rm"),
    }
    for case in expected:
        assert_refused(remote, case, expected)
    assert remote.errors["trap before"] == ["False"]  # the base's code has not run,
    assert remote.errors["trap after"] == ["True"]  # and does when it is trusted by name
    assert "StrangeConfig" in str(remote.errors["trusted base"])


def test_a_model_of_remote_code_is_pushed_with_that_code(hub: HubServer, remote: Run) -> None:
    needed = set(CODE_FILES) - {"remedi_rm.py"}  # transformers takes along what the model's own code imports
    assert {"config.json", "model.safetensors", *needed} <= set(hub.files("alice/from-remote-code"))
