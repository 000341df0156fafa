"""What tokenised rows depend on, as one key: rows of the same key are the same."""

from __future__ import annotations

import hashlib
import json
import tempfile
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from xxhash import xxh3_128

from gora.data.sources import Source
from gora.data.templates import named_template
from gora.recipe.schema import DataSection, Head, SourceSection

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_LIBRARIES = ("transformers", "tokenizers", "jinja2")
_NOT_OF_ROWS = {"train", "eval", "holdout", "bad_rows", "cache", "packing", "streaming", "shuffle_buffer"}
"""Settings that choose between rows, or say what becomes of those that are not kept."""
_OF_IMAGES = {"format", "image", "label", "choices", "ignore"}
_OF_PLACE = ("name_or_path", "is_local", "local_files_only")


def settings_key(
    data: DataSection, tokenizer: PreTrainedTokenizerBase, *, head: Head, encoder_decoder: bool
) -> dict[str, Any]:
    """What makes a row what it becomes, apart from the row: JSON.

    Args:
        data: the recipe's section.
        tokenizer: the tokenizer.
        head: what the model has on top.
        encoder_decoder: whether the model has an encoder.

    Raises:
        InputError: a chat has no template.
    """
    chat = data.format == "chat" and head == "language"
    return {
        "code": _code(),
        "libraries": {name: version(name) for name in _LIBRARIES},
        "data": data.model_dump(mode="json", exclude=_NOT_OF_ROWS),
        "chat_template": named_template(data.chat_template, tokenizer)[0] if chat else None,
        "tokenizer": tokenizer_digest(tokenizer),
        "head": head,
        "encoder_decoder": encoder_decoder,
    }


def image_settings_key(data: DataSection) -> dict[str, Any]:
    """The same for images, of which bytes and class are kept: pixels are made of them when they are trained on."""
    return {
        "code": _code(),
        "libraries": {"pillow": version("pillow")},
        "data": data.model_dump(mode="json", include=_OF_IMAGES),
        "head": "image",
    }


def row_key(settings: dict[str, Any], section: SourceSection, source: Source) -> str:
    """The key of a source's rows, 32 hexadecimal digits; reads all its files.

    Args:
        settings: see `settings_key`.
        section: what the recipe says of the source.
        source: the source.

    Raises:
        InputError: a file cannot be read.
    """
    named = section.model_dump(mode="json", include={"separator", "max_rows"})
    content = {**settings, "source": named, "name": source.name, "files": source.digests()}
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:32]


def tokenizer_digest(tokenizer: PreTrainedTokenizerBase) -> str:
    """A digest of all that is saved with a tokenizer, in hexadecimal."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is not None:
        # Left there by the last call; every call sets its own.
        backend.no_truncation()
        backend.no_padding()
    digest = xxh3_128(f"{tokenizer.split_special_tokens} {tokenizer.truncation_side}".encode())
    with tempfile.TemporaryDirectory() as folder:
        tokenizer.save_pretrained(folder)
        for file in sorted(Path(folder).rglob("*")):
            if file.is_file():
                digest.update(f"{file.relative_to(folder)}\n".encode())
                digest.update(_without_place(file) if file.name == "tokenizer_config.json" else file.read_bytes())
    return digest.hexdigest()


def _without_place(config: Path) -> bytes:
    values = json.loads(config.read_text(encoding="utf-8"))
    return json.dumps({name: value for name, value in values.items() if name not in _OF_PLACE}).encode()


@cache
def _code() -> str:
    """A digest of the code that makes examples of rows, so that other code makes other entries."""
    digest = xxh3_128()
    for file in sorted(Path(__file__).parent.glob("*.py")):
        digest.update(file.read_bytes())
    return digest.hexdigest()
