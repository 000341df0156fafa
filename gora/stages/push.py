"""Putting what a run has trained on the hub, with its model card."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from huggingface_hub import CommitOperationAdd, HfApi, get_token, is_offline_mode
from huggingface_hub.errors import HfHubHTTPError, RepositoryNotFoundError
from rich import box
from rich.table import Table

from gora import manifest
from gora.disk import size_text
from gora.errors import GoraError, InputError
from gora.files import read_json, write_json
from gora.models.hub_names import is_hub_name
from gora.recipe import load_recipe
from gora.report.card import on_hub
from gora.runs.card import CARD, make_card, public_name
from gora.runs.folder import RunFolder
from gora.runs.state import RunState, find_progress
from gora.runtime.console import output
from gora.runtime.scratch import Scratch

_CONFIG = "adapter_config.json"
_TOKEN = re.compile(rb"\bhf_[A-Za-z0-9]{20,}")
_VOCABULARIES = ("tokenizer.json", "vocab.json", "merges.txt", "vocab.txt")
"""Text of which every short word may be a part."""


@dataclass(frozen=True)
class Pushed:
    """What the stage has put on the hub, or would put there.

    Attributes:
        repository: its name.
        files: size of each file in bytes, by its name there.
        url: its page; None for a dry run.
    """

    repository: str
    files: dict[str, int]
    url: str | None


def push(run: Path, repository: str, *, base: str | None = None, public: bool = False, dry_run: bool = False) -> Pushed:
    """Put the adapter (or the model) of a finished run on the hub, in one commit.

    Args:
        run: the run folder.
        repository: `ORG/NAME`; it is made where there is none.
        base: what the hub calls the base model, where the run names a folder.
        public: let everybody see it; a repository is private otherwise.
        dry_run: say what would be uploaded, and contact nobody.

    Raises:
        InputError: the run is not finished, the name cannot be used, others cannot load the base, nobody is logged in,
            or the repository is public and `public` was not said.
        GoraError: the hub refuses, or does not answer; it then holds what it held before.
    """
    if "/" not in repository or not on_hub(repository):
        raise InputError(f"{repository!r} is not a name on the hub such as ORG/NAME.")
    if not dry_run:
        _refuse_no_login()
    folder = _finished(run)
    name = _base_of(folder, base)
    scratch = Scratch("adapter")
    files = _stage(folder, repository, name, Path(scratch.path))
    _refuse_secrets(files, folder)
    sizes = {name: path.stat().st_size for name, path in files.items()}
    table = Table("file", "size", box=box.SIMPLE_HEAD, show_edge=False)
    for file, size in sizes.items():
        table.add_row(file, size_text(size))
    output.say(table)
    told = f"({'public' if public else 'private'}): {len(files)} files, {size_text(sum(sizes.values()))}"
    if dry_run:
        output.say(f"dry run   {repository} {told}; nothing is uploaded")
        return Pushed(repository, sizes, None)
    with output.terminal.status(f"uploading to {repository}"):
        url = _upload(files, repository, public)
    output.say(f"pushed    {url} {told}")
    output.say(f"next      gora chat {repository}")
    return Pushed(repository, sizes, url)


def _finished(run: Path) -> RunFolder:
    folder = RunFolder(run.expanduser())
    if not folder.recipe.exists() and folder.path == (of_its_run := RunFolder(folder.path.parent)).trained:
        # Other commands end by naming the adapter's own folder.
        folder = of_its_run
    if not folder.recipe.is_file():
        raise InputError(f"{run} is not a run folder: it holds no recipe.yaml.")
    progress = find_progress(folder)
    if progress.state < RunState.FINISHED:
        raise InputError(
            f"{run} is not finished ({progress.state.name.lower()}). Finish it with `gora run --resume`.",
            progress.damage,
        )
    return folder


def _base_of(folder: RunFolder, named: str | None) -> str | None:
    """What others call the base model; None for that of a whole model, where it is a folder of this machine."""
    if named is not None:
        if not is_hub_name(named):
            raise InputError(f"--base {named}: not a name on the hub such as ORG/NAME.")
        return named
    own = load_recipe(str(folder.recipe)).recipe.model.name
    public = public_name(own)
    if folder.trained == folder.model:
        return public
    if public is None:
        raise InputError(
            f"The base model {own} is a folder of this machine: name it on the hub, for others to load, with --base "
            "ORG/NAME."
        )
    if not on_hub(public):
        output.warn(
            f"the base model {public} ships with gora and is not on the hub: others load the adapter with gora, or "
            "onto that folder. --base ORG/NAME names a copy on the hub."
        )
    return public


def _stage(folder: RunFolder, repository: str, base: str | None, place: Path) -> dict[str, Path]:
    """Files to upload by their names there: gora's, with the base by its name on the hub, and the card."""
    trained = folder.trained
    assert trained is not None
    for name in sorted(manifest.listed(trained) - {manifest.NAME, CARD}):
        (place / name).parent.mkdir(parents=True, exist_ok=True)
        if name == _CONFIG:
            config: dict[str, Any] = read_json(trained / name)
            write_json(place / name, {**config, "base_model_name_or_path": base})
        else:
            (place / name).symlink_to((trained / name).resolve())
    (place / CARD).write_text(make_card(folder, place=repository, base=base), encoding="utf-8")
    manifest.seal(place, unlisted=[CARD])
    return {path.relative_to(place).as_posix(): path for path in sorted(place.rglob("*")) if path.is_file()}


def _refuse_secrets(files: Mapping[str, Path], folder: RunFolder) -> None:
    """Nothing leaves this machine that says where it lay here, or with which token.

    Raises:
        InputError: with every file and what it holds.
    """
    token = get_token()
    places = {str(path) for path in (Path.home(), Path.cwd(), folder.path.resolve().parent) if len(path.parts) > 1}
    problems = []
    for name, file in files.items():
        if name.endswith(".safetensors"):
            continue
        content = file.read_bytes()
        if _TOKEN.search(content) or (token and token.encode() in content):
            problems.append(f"{name} holds a token of the hub.")
        if name not in _VOCABULARIES:
            found = [place for place in sorted(places) if _mentions(content, place)]
            problems += [f"{name} holds a path of this machine, {place}." for place in found[:1]]
    if problems:
        raise InputError("This would be uploaded, and is for nobody else to see.", problems)


def _mentions(content: bytes, place: str) -> bool:
    return re.search(re.escape(json.dumps(place)[1:-1].encode()) + rb"(?![\w.-])", content) is not None


def _refuse_no_login() -> None:
    if is_offline_mode():
        raise InputError("HF_HUB_OFFLINE is set, so nothing can be uploaded. Unset it, or add --dry-run.")
    if get_token() is None:
        raise InputError("Nobody is logged in to the hub: `hf auth login`, set HF_TOKEN, or add --dry-run.")


def _upload(files: Mapping[str, Path], repository: str, public: bool) -> str:
    api = HfApi()
    try:
        try:
            private = api.repo_info(repository).private
        except RepositoryNotFoundError:
            api.create_repo(repository, private=not public)
        else:
            _refuse_other_visibility(repository, bool(private), public)
        api.create_commit(
            repository,
            [CommitOperationAdd(name, str(path.resolve())) for name, path in files.items()],
            commit_message="Upload with gora",
        )
    except GoraError:
        raise
    except Exception as error:  # of huggingface_hub, or of what it asks the network with
        raise _refused(error, repository) from None
    return f"{api.endpoint}/{repository}"


def _refuse_other_visibility(repository: str, private: bool, public: bool) -> None:
    if not private and not public:
        raise InputError(f"{repository} is public. Add --public to upload to it, or give another name.")
    if private and public:
        raise InputError(f"{repository} is private. Leave out --public, or change that on its page first.")


def _refused(error: Exception, repository: str) -> GoraError:
    status = error.response.status_code if isinstance(error, HfHubHTTPError) and error.response is not None else None
    if status in (401, 403):
        return InputError(
            f"The hub does not let this login write to {repository} ({status}). Check the name, and that the token of "
            "`hf auth login` may write."
        )
    line = (str(error).strip() or type(error).__name__).splitlines()[0]
    return GoraError(f"{repository} was not uploaded: {line}")
