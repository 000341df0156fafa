"""A run, an adapter or a model becomes a subject that answers."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Literal

from peft import PeftModel
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from gora.adapters.base import check_base
from gora.adapters.load import load_adapter, read_config
from gora.data import Examples, padding_id
from gora.data.prompting import Prompting, read_prompt_format
from gora.data.sources import find_source
from gora.errors import InputError
from gora.evaluation.models.classifier import Classifier
from gora.evaluation.models.generate import Generator, without_adapter
from gora.evaluation.models.locate import Named
from gora.evaluation.models.seeing import OfImages, Seeing, recognise
from gora.evaluation.models.subject import LocalSubject
from gora.evaluation.models.vllm import Vllm, check_vllm
from gora.evaluation.task import Options, Recognised
from gora.models.device import default_device
from gora.models.head import settle_padding
from gora.models.image_processor import load_image_reader
from gora.models.load import load_model
from gora.models.source import Source, find_model
from gora.models.tokenizer import load_tokenizer
from gora.models.weight_files import hub_commit
from gora.recipe.image_rules import reads_images
from gora.recipe.schema import DataSection, Recipe, SourceSection
from gora.recipe.sources import asked_as
from gora.runs.context import RunContext
from gora.runs.inputs import fit_images
from gora.runs.loss import evaluate_loss
from gora.runtime.world import join

BackendName = Literal["hf", "vllm"]


def load_subject(
    named: Named, *, backend: BackendName = "hf", batch_size: int = 64, trust_remote_code: bool = False
) -> LocalSubject:
    """Load the model and put the adapter round it, unmerged; all processes have to ask together.

    Raises:
        InputError: one of them cannot be loaded, or the adapter was trained on another base.
    """
    labels = named.prompt_format.choices if named.prompt_format else None
    source = find_model(named.model, labels=labels, trust_remote_code=trust_remote_code)
    if reads_images(source.head):
        return _seeing(named, source, backend, batch_size, trust_remote_code)
    tokenizer = find_tokenizer(named, source)
    prompting = Prompting(named.prompt_format, tokenizer, head=source.head, encoder_decoder=source.encoder_decoder)
    if named.adapter is not None:
        check_base(named.adapter, source, join())
    fingerprint = _fingerprint(named, source)
    if backend == "vllm":
        check_vllm(named.model, source)
        if named.adapter is not None:
            read_config(named.adapter)
        engine = Vllm(named.model, source, named.adapter)
        return LocalSubject(prompting=prompting, backend=engine, fingerprint=fingerprint, close=engine.close)
    model = _model(named, source, tokenizer)
    measure = _measuring(named, model, batch_size, trust_remote_code)
    if source.head == "language":
        return LocalSubject(
            prompting=prompting,
            backend=Generator(model, tokenizer, batch_size),
            fingerprint=fingerprint,
            measure=measure,
        )
    classifier = Classifier(
        model, tokenizer, batch_size, named.prompt_format.max_length if named.prompt_format else None
    )
    return LocalSubject(
        prompting=prompting,
        backend=classifier,
        fingerprint=fingerprint,
        measure=measure,
        classify=lambda rows, base: classifier.label(rows, base=base),
    )


def _seeing(
    named: Named, source: Source, backend: BackendName, batch_size: int, trust_remote_code: bool
) -> LocalSubject:
    """A subject that sees images; its classes are those of training, of its configuration, or of the rows."""
    if backend == "vllm":
        raise InputError("--backend vllm generates text, which a model with an image head does not write.")
    if named.adapter is not None:
        check_base(named.adapter, source, join())
    reader = load_image_reader(named.model, source, named.adapter)
    model = load_model(named.model, source, default_device())
    wrapped = load_adapter(model, named.adapter).eval() if named.adapter is not None else model
    if (noted := named.prompt_format) is None:
        names = list((source.config.id2label or {}).values()) if source.draws_head else None
        noted = read_prompt_format({"format": "image", "choices": names})
        named = replace(named, prompt_format=noted)

    def rows_of(options: Options) -> tuple[RunContext, Examples]:
        context, rows = _rows(named, options, batch_size, trust_remote_code)
        fit_images(model, reader, rows.choices, context.recipe.data.class_prompts)
        return context, rows

    def measure(options: Options, base: bool) -> tuple[float, int]:
        context, rows = rows_of(options)
        with without_adapter(wrapped, base):
            return evaluate_loss(wrapped, context, rows), len(rows)

    def see(options: Options, base: bool) -> Recognised:
        context, rows = rows_of(options)
        with without_adapter(wrapped, base):
            return recognise(wrapped, context, rows)

    prompts = noted.class_prompts if source.head == "image-zero-shot" else []
    title = ", ".join(["format image", *map(repr, prompts)])
    fingerprint = _fingerprint(named, source)
    return LocalSubject(
        prompting=OfImages(title), backend=Seeing(batch_size), fingerprint=fingerprint, measure=measure, see=see
    )


def _model(named: Named, source: Source, tokenizer: PreTrainedTokenizerBase) -> PreTrainedModel | PeftModel:
    model = load_model(named.model, source, default_device())
    if source.head == "classification":
        settle_padding(model, padding_id(tokenizer))
    return load_adapter(model, named.adapter).eval() if named.adapter is not None else model.eval()


def find_tokenizer(named: Named, source: Source) -> PreTrainedTokenizerBase:
    """The tokenizer that was saved with the adapter, which has the chat template that was trained, else the model's."""
    settings = named.model
    if named.adapter is not None and (named.adapter / "tokenizer_config.json").is_file():
        settings = settings.model_copy(update={"tokenizer": str(named.adapter)})
    return load_tokenizer(settings, source)


def _measuring(
    named: Named, model: PreTrainedModel | PeftModel, batch_size: int, trust_remote_code: bool
) -> Callable[[Options, bool], tuple[float, int]]:
    """The mean loss on rows, and how many they are: those of the options, else those that the run evaluated on."""

    def measure(options: Options, base: bool) -> tuple[float, int]:
        context, rows = _rows(named, options, batch_size, trust_remote_code)
        with without_adapter(model, base):
            return evaluate_loss(model, context, rows), len(rows)

    return measure


def _rows(named: Named, options: Options, batch_size: int, trust_remote_code: bool) -> tuple[RunContext, Examples]:
    """The rows that the options name, else those that the run evaluated on."""
    recipe = _rows_of(named, options, batch_size)
    context = RunContext.alone(recipe, trust_remote_code=trust_remote_code)
    rows = context.data.train if options.data else context.data.eval
    if rows is None:
        raise InputError(f"The recipe of {named.name} names no rows to evaluate on: give some with --data.")
    return context, rows.subset(range(min(len(rows), options.limit or len(rows))))


def _rows_of(named: Named, options: Options, batch_size: int) -> Recipe:
    """A recipe whose rows are to be measured: training rows where the user names them."""
    prompt_format = _prompt_format_of(named)
    if options.data:
        source = SourceSection(path=options.data, max_rows=options.limit)
        if prompt_format.format == "image":
            source = _held_back(source)
        own = {"train": source, "eval": None, "holdout": 0, "streaming": False}
        prompt_format = asked_as(prompt_format).model_copy(update=own)
    elif named.run is None:
        raise InputError(f"{named.name} does not say which rows it is to be measured on: give some with --data.")
    recipe = Recipe(model=named.model, data=prompt_format) if named.recipe is None else named.recipe
    evaluation = recipe.evaluation.model_copy(update={"micro_batch_size": batch_size})
    return recipe.model_copy(update={"data": prompt_format, "evaluation": evaluation, "distributed": "ddp"})


def _held_back(source: SourceSection) -> SourceSection:
    """The split of a set of images that is not trained on, where it has one."""
    for split in ("test", "validation"):
        with suppress(InputError):
            found = source.model_copy(update={"split": split})
            find_source(found, (), images=True)
            return found
    return source


def _prompt_format_of(named: Named) -> DataSection:
    if named.prompt_format is None:
        raise InputError(f"Nothing says how rows become text for {named.name}: name a run or an adapter of gora's.")
    return named.prompt_format


def _fingerprint(named: Named, source: Source) -> str | None:
    """Text that no other weights and no other form share; None where the weights cannot be told apart."""
    folder = Path(source.path)
    weights = sorted(folder.glob("*.safetensors")) if folder.is_dir() else []
    # Base weights may be many gigabytes: whoever changes them changes their time as well. A commit of the hub is final.
    versions = [(path.name, path.stat().st_size, path.stat().st_mtime_ns) for path in weights]
    commit = hub_commit(source)
    if not versions and commit is None:
        return None
    digest = hashlib.sha256(repr((named.model, named.prompt_format, versions, commit)).encode())
    if named.adapter is not None:
        digest.update((named.adapter / "adapter_config.json").read_bytes())
        digest.update((named.adapter / "adapter_model.safetensors").read_bytes())
    return digest.hexdigest()
