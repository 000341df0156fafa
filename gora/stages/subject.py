"""What the user names for an evaluation - a run, an adapter or a model - becomes a subject that answers."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, cast

from peft import PeftConfig, PeftModel
from pydantic import ValidationError
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from gora.data.prompting import Prompting, read_form
from gora.errors import InputError
from gora.evaluation.generate import Generator
from gora.evaluation.subject import LocalSubject
from gora.evaluation.vllm import Vllm, check_vllm
from gora.models.load import Source, default_device, find_model, load_model, load_tokenizer
from gora.recipe import load_recipe
from gora.recipe.schema import DataSection, ModelSection
from gora.runtime.folder import RunFolder
from gora.stages.merge_inputs import read_config, read_origin
from gora.training.adapter import NOTE

BackendName = Literal["hf", "vllm"]


@dataclass(frozen=True)
class Named:
    """Where the parts of a subject lie.

    Attributes:
        name: what results call it.
        model: the base model, or the model itself.
        adapter: PEFT's folder, or None.
        base: the model without what was trained: the same as `model` where there is an adapter.
        form: how rows became text in training; None is the tokenizer's own way.
        run: the run that made it, if the user named one.
    """

    name: str
    model: ModelSection
    adapter: Path | None
    base: ModelSection | None
    form: DataSection | None
    run: RunFolder | None = None

    @property
    def folder(self) -> RunFolder:
        """Where results go unless the user says otherwise."""
        return self.run or RunFolder(Path("runs") / f"eval-{Path(self.name).name}")


def find_subject(reference: str) -> Named:
    """Look at what the user named.

    Args:
        reference: a run folder, an adapter folder, or a model: a folder, a hub id or `builtin:NAME`.

    Raises:
        InputError: it is a run that has not finished, or its files are damaged.
    """
    path = Path(reference).expanduser()
    if (path / "recipe.yaml").is_file():
        return _run(RunFolder(path))
    if (path / "adapter_config.json").is_file():
        return _adapter(path)
    if path.is_dir() and not (path / "config.json").is_file():
        raise InputError(
            f"{reference} is neither a run (recipe.yaml), nor an adapter (adapter_config.json), nor a model "
            "(config.json)."
        )
    form = _form(path / NOTE) if path.is_dir() else None
    return Named(reference, ModelSection(name=reference), None, None, form)


def _run(folder: RunFolder) -> Named:
    recipe = load_recipe(str(folder.recipe)).recipe
    name = str(folder.path)
    if folder.adapter.is_dir():
        found = _adapter(folder.adapter)
        # The adapter says what its base was; the recipe, how attention and kernels were chosen.
        model = recipe.model.model_copy(update={"dtype": found.model.dtype})
        return Named(name, model, folder.adapter, model, recipe.data, folder)
    if folder.model.is_dir():
        model = recipe.model.model_copy(update={"name": str(folder.model), "revision": None, "tokenizer": None})
        return Named(name, model, None, recipe.model, recipe.data, folder)
    raise InputError(f"{folder.path} is a run without an adapter or a model: finish it with `gora run --resume`.")


def _adapter(path: Path) -> Named:
    try:
        config = PeftConfig.from_pretrained(str(path))
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise InputError(f"{path / 'adapter_config.json'} cannot be read: {error}") from None
    if not config.base_model_name_or_path:
        raise InputError(f"{path} does not name its base model (base_model_name_or_path).")
    origin = read_origin(path)
    settings: dict[str, Any] = {"name": config.base_model_name_or_path, "revision": config.revision}
    if origin:
        settings |= {"dtype": origin.dtype, "quantization": origin.quantization}
    model = ModelSection(**settings)
    return Named(str(path), model, path, model, _form(path / NOTE))


def _form(note: Path) -> DataSection | None:
    if not note.is_file():
        return None
    try:
        form = json.loads(note.read_text(encoding="utf-8")).get("form")
        return read_form(form) if form else None
    except (ValueError, ValidationError) as error:
        raise InputError(f"{note} cannot be read: {error}") from None


def load_subject(
    named: Named, *, backend: BackendName = "hf", batch_size: int = 64, trust_remote_code: bool = False
) -> LocalSubject:
    """Load the model and put the adapter round it, unmerged.

    Raises:
        InputError: one of them cannot be loaded, or they do not belong together.
    """
    source = find_model(named.model, trust_remote_code=trust_remote_code)
    tokenizer = find_tokenizer(named, source)
    prompting = Prompting(named.form, tokenizer, encoder_decoder=source.encoder_decoder)
    if backend == "vllm":
        check_vllm(named.model)
        if named.adapter is not None:
            read_config(named.adapter)
        return LocalSubject(prompting, Vllm(named.model, source, named.adapter), _fingerprint(named, source))
    model: PreTrainedModel | PeftModel = load_model(named.model, source, default_device())
    if named.adapter is not None:
        model = _wrapped(cast(PreTrainedModel, model), named.adapter)
    return LocalSubject(prompting, Generator(model.eval(), tokenizer, batch_size), _fingerprint(named, source))


def _fingerprint(named: Named, source: Source) -> str | None:
    """Text that no other weights and no other form share; None where the weights cannot be told apart."""
    folder = Path(source.path)
    weights = sorted(folder.glob("*.safetensors")) if folder.is_dir() else []
    # Base weights may be many gigabytes: whoever changes them changes their time as well. A commit of the hub is final.
    versions = [(path.name, path.stat().st_size, path.stat().st_mtime_ns) for path in weights]
    commit = getattr(source.config, "_commit_hash", None)
    if not versions and commit is None:
        return None
    digest = hashlib.sha256(repr((named.model, named.form, versions, commit)).encode())
    if named.adapter is not None:
        digest.update((named.adapter / "adapter_config.json").read_bytes())
        digest.update((named.adapter / "adapter_model.safetensors").read_bytes())
    return digest.hexdigest()


def find_tokenizer(named: Named, source: Source) -> PreTrainedTokenizerBase:
    """The tokenizer that was saved with the adapter, which has the chat template that was trained, else the model's."""
    settings = named.model
    if named.adapter is not None and (named.adapter / "tokenizer_config.json").is_file():
        settings = settings.model_copy(update={"tokenizer": str(named.adapter)})
    return load_tokenizer(settings, source)


def _wrapped(model: PreTrainedModel, adapter: Path) -> PeftModel:
    try:
        return PeftModel.from_pretrained(model, str(adapter))
    except (RuntimeError, ValueError) as error:
        raise InputError(f"{adapter} does not fit the base model: {str(error).splitlines()[0]}") from None
