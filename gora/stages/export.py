"""Writing an adapter in the form that a runtime reads, and comparing the two before the result appears."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from shlex import quote
from typing import Any

from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from gora import manifest
from gora.adapters.base import base_named, find_base, other_base
from gora.adapters.destination import EXPORT_NOTE, EXPORTED, check_destination
from gora.adapters.forms import LoraTensors, compact, read_lora, served_rank, uniform, write_lora
from gora.adapters.gguf import FILE as GGUF_FILE
from gora.adapters.gguf import family_known, require_gguf, write_gguf
from gora.adapters.kinds import layers_of_kinds, same_names_elsewhere
from gora.adapters.load import WEIGHTS, find_adapter, head_of, load_adapter, read_base_note, tensor_names
from gora.adapters.mlx import refuse_for_mlx, write_mlx
from gora.adapters.reading import form_refusals, misreadings
from gora.adapters.runtimes import Runtime, find_runtime
from gora.adapters.save import BaseNote
from gora.data import padding_id
from gora.disk import size_text
from gora.errors import GoraError, InputError
from gora.files import publish, write_json, write_text
from gora.models.device import default_device
from gora.models.head import settle_padding
from gora.models.load import empty_model, load_model
from gora.models.new_tokens import embedding_rows
from gora.models.probe import TOLERANCES, probe_logits
from gora.models.source import Source
from gora.models.tokenizer import load_tokenizer
from gora.models.weight_files import read_stored_weights
from gora.recipe.image_rules import reads_images
from gora.recipe.schema import ModelSection
from gora.runtime.console import output
from gora.runtime.quiet import quiet_libraries
from gora.runtime.scratch import Scratch

_OWN_FILES = {WEIGHTS, "adapter_config.json", "README.md", manifest.NAME, EXPORT_NOTE}


@dataclass(frozen=True, kw_only=True)
class Exported:
    """What the stage made.

    Attributes:
        path: the folder.
        form: `native`, `compact` or `uniform`.
        command: how a server is started with it, or how the last step is done; None where there is none.
        largest_difference: of a logit between the adapter and the exported one, through PEFT.
        largest_logit: the largest absolute logit.
    """

    path: Path
    form: str
    command: str | None
    largest_difference: float
    largest_logit: float


def export(
    adapter: Path,
    runtime: str,
    destination: Path,
    *,
    base: str | None = None,
    overwrite: bool = False,
    trust_remote_code: bool = False,
) -> Exported:
    """Write an adapter in the form that a runtime and its version read.

    Args:
        adapter: an adapter of PEFT (a folder, or `ORG/NAME[@REVISION]` on the hub), or a run folder that holds one.
        runtime: see `find_runtime`.
        destination: the new folder.
        base: the base model; None is the one that the adapter names.
        overwrite: replace an adapter that was exported before; anything else is never replaced.
        trust_remote_code: let the model run Python code of its own.

    Raises:
        InputError: the runtime cannot read the adapter in any form, with every reason, or something that the user named
            cannot be used.
        GoraError: the exported adapter does not compute what the adapter computes.
    """
    quiet_libraries()
    job = _ExportJob.of(find_adapter(adapter), find_runtime(runtime), base, trust_remote_code)
    check_destination(destination, job.adapter, job.settings.name, overwrite, EXPORTED)
    with output.terminal.status("exporting and comparing"):
        made = job.convert()
        with publish(destination, made.bytes) as aside:
            difference, largest = job.compare(made)
            job.write(made, aside, destination)
            manifest.seal(aside)
    result = Exported(
        path=destination,
        form=job.runtime.form,
        command=job.command(made, destination),
        largest_difference=difference,
        largest_logit=largest,
    )
    job.tell(made, result)
    return result


@dataclass(frozen=True, kw_only=True)
class _ExportJob:
    """All that is known before the base model is loaded."""

    adapter: Path
    runtime: Runtime
    lora: LoraTensors
    settings: ModelSection
    source: Source
    layers: Mapping[str, tuple[int, int]]
    """All layers of the adapted kinds, for the uniform form."""
    elsewhere: list[str]
    """Modules of the same names outside of the language model."""

    @classmethod
    def of(cls, adapter: Path, runtime: Runtime, base: str | None, trust_remote_code: bool) -> _ExportJob:
        tensor_names(adapter)
        try:
            lora = read_lora(adapter)
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise InputError(f"{adapter / 'adapter_config.json'} cannot be read: {error}") from None
        if lora.config.peft_type != "LORA":
            raise InputError(f"{adapter} is a {lora.config.peft_type} adapter; only LoRA adapters are exported.")
        if reads_images(head_of(lora.config)):
            raise InputError(
                f"{adapter} is of a vision model, which {runtime.name} does not serve. PEFT loads it as it is; "
                "`gora merge` writes an ordinary model."
            )
        lora.config.base_model_name_or_path, lora.config.revision = base_named(lora.config, base)
        problems = form_refusals(lora, runtime) + (refuse_for_mlx(lora) if runtime.file == "mlx" else [])
        if problems:
            raise InputError(f"{adapter} cannot be exported for {runtime.name}.", problems)
        origin = read_base_note(adapter)
        values: dict[str, Any] = {
            "name": lora.config.base_model_name_or_path,
            "revision": lora.config.revision,
            "head": head_of(lora.config),
        }
        if origin:
            quantization = origin.quantization if origin.quantization in ("nf4", "int8") else None
            values |= {"dtype": origin.dtype, "quantization": quantization}
        settings = ModelSection(**values)
        labels = origin.labels if origin else None
        source = find_base(
            settings, adapter, given=base is not None, labels=labels, trust_remote_code=trust_remote_code
        )
        _check_base(origin, source, settings.name, adapter)
        if runtime.file in ("gguf", "ollama") and family_known(source.config):
            require_gguf()
        empty = empty_model(source) if runtime.form == "uniform" else None
        layers = layers_of_kinds(empty, lora.pairs) if empty else {}
        return cls(
            adapter=adapter,
            runtime=runtime,
            lora=lora,
            settings=settings,
            source=source,
            layers=layers,
            elsewhere=same_names_elsewhere(empty, layers) if empty else [],
        )

    def convert(self) -> LoraTensors:
        """The adapter in the runtime's form, of which every rule of the runtime holds."""
        if self.runtime.form == "uniform":
            made = uniform(self.lora, self.layers)
            made.config.exclude_modules = self.elsewhere or None
        else:
            made = compact(self.lora) if self.runtime.form == "compact" else self.lora
        made.config.inference_mode = True
        if problems := misreadings(made, self.runtime, self.layers or None):
            raise InputError(f"{self.adapter} cannot be exported for {self.runtime.name}.", problems)
        return made

    def compare(self, made: LoraTensors) -> tuple[float, float]:
        """The largest difference of a logit between both adapters, and the largest logit.

        Raises:
            GoraError: rounding cannot explain the difference.
        """
        scratch = Scratch("adapter")
        folder = Path(scratch.path) / "adapter"
        write_lora(made, folder)
        model = load_model(self.settings, self.source, default_device())
        tokenizer = self._tokenizer()
        settle_padding(model, padding_id(tokenizer, embedding_rows(model)))
        expected, model = _logits(model, self.adapter, tokenizer)
        found, _ = _logits(model, folder, tokenizer)
        difference, largest = (found - expected).abs().max().item(), expected.abs().max().item()
        tolerance = TOLERANCES[str(next(model.parameters()).dtype).removeprefix("torch.")]
        if not difference <= tolerance * largest:
            raise GoraError(
                f"The exported adapter differs from the adapter by {difference:.3g} in a logit (largest logit "
                f"{largest:.3g}): it was not kept."
            )
        return difference, largest

    def write(self, made: LoraTensors, aside: Path, destination: Path) -> None:
        """Fill the folder: the adapter in the runtime's format, tokenizer and notes beside it."""
        aside.mkdir()
        for path in self.adapter.iterdir():
            if path.is_file() and path.name not in _OWN_FILES:
                shutil.copyfile(path, aside / path.name)
        if self.runtime.file == "mlx":
            write_mlx(made, aside)
        else:
            write_lora(made, aside)
        if self._writes_gguf:
            write_gguf(made, self.source.config, aside / GGUF_FILE)
        if self.runtime.file == "ollama":
            write_text(aside / "Modelfile", f"FROM {self.source.path}\nADAPTER ./{GGUF_FILE}\n")
        note: dict[str, Any] = {
            "runtime": self.runtime.name,
            "form": self.runtime.form,
            "why": self.runtime.why,
            "max_rank": made.greatest_rank,
            "command": self.command(made, destination),
        }
        write_json(aside / EXPORT_NOTE, note)

    def command(self, made: LoraTensors, destination: Path) -> str | None:
        """How a server is started with the adapter; how it is converted, where gora cannot do that itself."""
        place, base = quote(str(destination)), quote(self.settings.name)
        if self.runtime.file in ("gguf", "ollama") and not self._writes_gguf:
            return f"python convert_lora_to_gguf.py {place} --base {base} --outfile {place}/{GGUF_FILE}"
        rank = served_rank(made) if made.greatest_rank <= 512 and "{rank}" in self.runtime.command else 0
        return self.runtime.command.format(base=base, adapter=place, rank=rank) or None

    def tell(self, made: LoraTensors, result: Exported) -> None:
        """Say what was chosen, why, how exact it is and what to do next."""
        size = sum(path.stat().st_size for path in result.path.iterdir())
        output.say(f"form      {result.form}: {self.runtime.why}")
        output.say(
            f"exported  {result.path}: ranks up to {self.lora.greatest_rank}, {len(made.pairs)} layers, "
            f"{size_text(size)}; largest difference of a logit {result.largest_difference:.2g} (largest logit "
            f"{result.largest_logit:.3g})"
        )
        if result.command:
            output.say(f"next      {result.command}")

    @property
    def _writes_gguf(self) -> bool:
        return self.runtime.file in ("gguf", "ollama") and family_known(self.source.config)

    def _tokenizer(self) -> PreTrainedTokenizerBase:
        own = str(self.adapter) if (self.adapter / "tokenizer_config.json").is_file() else None
        return load_tokenizer(self.settings.model_copy(update={"tokenizer": own}), self.source)


def _logits(
    model: PreTrainedModel, adapter: Path, tokenizer: PreTrainedTokenizerBase
) -> tuple[Tensor, PreTrainedModel]:
    """Logits of a model with an adapter, and the model without it."""
    wrapped = load_adapter(model, adapter)
    logits = probe_logits(wrapped, tokenizer)
    return logits, wrapped.unload()  # type: ignore[operator]


def _check_base(origin: BaseNote | None, source: Source, name: str, adapter: Path) -> None:
    if origin is None or origin.weights is None or origin.quantized_files:
        return
    if changed := read_stored_weights(source).changes_since(origin.weights):
        raise other_base(name, adapter, changed, "Give that one with --base.")
