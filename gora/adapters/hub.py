"""Adapters on the hub: their folder is the one in the hub's cache."""

from __future__ import annotations

from pathlib import Path

from huggingface_hub import hf_hub_download, snapshot_download

from gora.errors import InputError
from gora.models.hub_names import hub_reason, is_hub_name, split_revision
from gora.runtime.console import output

_CONFIG = "adapter_config.json"
# What an adapter and its tokenizer are read from. Pickled weights and code are not fetched.
_READ = (
    _CONFIG,
    "adapter_model.safetensors",
    "gora.json",
    "manifest.json",
    "README.md",
    "generation_config.json",
    "tokenizer*.json",
    "tokenizer.model",
    "spiece.model",
    "sentencepiece.bpe.model",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.*",
    "merges.txt",
    "chat_template.*",
)


class NoAdapterThere(InputError):
    """A name of the hub under which no adapter is found."""


def may_be_on_hub(name: str) -> bool:
    """Whether a name can be that of an adapter on the hub: `ORG/NAME` or `ORG/NAME@REVISION`."""
    repository, _ = split_revision(name)
    return "/" in repository and is_hub_name(repository)


def fetch_adapter(name: str) -> Path:
    """The folder of an adapter of the hub in the hub's cache, downloaded where it is not there.

    Args:
        name: see `may_be_on_hub`.

    Raises:
        NoAdapterThere: the repository is not known or not reached, or has no `adapter_config.json`.
        InputError: it has one, and the adapter cannot be fetched.
    """
    repository, revision = split_revision(name)
    try:
        config = Path(hf_hub_download(repository, _CONFIG, revision=revision))
    except Exception as error:  # whichever library has asked
        raise NoAdapterThere(
            f"{name} is neither a folder here nor an adapter on the hub. {hub_reason(error)}"
        ) from None
    # Files of one commit lie in one folder, `snapshots/COMMIT`, as the cache is documented.
    try:
        with output.terminal.status(f"fetching {name}"):
            folder = Path(snapshot_download(repository, revision=config.parent.name, allow_patterns=list(_READ)))
    except Exception as error:  # as above
        raise InputError(f"The adapter {name} cannot be fetched. {hub_reason(error)}") from None
    if not (folder / "adapter_model.safetensors").is_file():
        raise InputError(
            f"The adapter {name} has no adapter_model.safetensors; gora reads no pickled weights (adapter_model.bin)."
        )
    return folder
