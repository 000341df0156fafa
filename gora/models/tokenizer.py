"""Load a tokenizer, and see that it is what it seems: with a vocabulary, of its files' kind, made for its model."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

from tokenizers import AddedToken, Tokenizer
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from gora import assets
from gora.errors import InputError
from gora.files import read_json
from gora.models.checkpoint_files import check_tokenizer_files, has_tokenizer_files
from gora.models.load_errors import explained
from gora.models.source import Source
from gora.recipe.schema import ModelSection
from gora.runtime.console import output

_PROBE = "What is one plus two? def f(x):\n    return x"
_WHOLE = "tokenizer.json, or the files that its class reads (vocab.json and merges.txt, vocab.txt, tokenizer.model)"
# Embeddings are padded to a multiple of 64 to 1024, which leaves a few per cent of a real vocabulary unused; toy models
# with a few dozen words may be padded by more than that.
_LEAST_USED, _LEAST_USED_OF_SMALL, _SMALL = 1 / 2, 1 / 4, 1024


def load_tokenizer(settings: ModelSection, source: Source) -> PreTrainedTokenizerBase:
    """Load the tokenizer the recipe names, else the model's own, with the recipe's new tokens.

    Raises:
        InputError: there is none, a file of it is broken, or it is not the model's.
    """
    name = settings.tokenizer or settings.name
    path = assets.resolve(settings.tokenizer, "models") if settings.tokenizer else source.path
    if (place := Path(path).expanduser()).is_dir():
        path = str(place)
        check_tokenizer_files(place)
    arguments: dict[str, Any] = {"trust_remote_code": source.trust_remote_code}
    if source.revision is not None and not settings.tokenizer:
        arguments["revision"] = source.revision
    try:
        tokenizer = cast(PreTrainedTokenizerBase, AutoTokenizer.from_pretrained(path, **arguments))
        # Some of what its settings say wrongly shows in use only.
        tokenizer("a")
    except Exception as error:  # the tokenizers library raises plain Exceptions
        if place.is_dir() and not has_tokenizer_files(place) and "trust_remote_code" not in str(error):
            raise InputError(
                f"model {name!r}: {place} holds no tokenizer (tokenizer.json, or the files that its class reads). "
                "Download the whole model again, or name a tokenizer with model.tokenizer."
            ) from None
        raise explained(name, path, error) from None
    embeddings = embeddings_of(source.config)
    check_tokenizer(name, path, tokenizer, embeddings)
    settle_padding_token(tokenizer, embeddings)
    add_new_tokens(tokenizer, settings.new_tokens)
    return tokenizer


def check_tokenizer(name: str, path: str, tokenizer: PreTrainedTokenizerBase, embeddings: int | None) -> None:
    """Refuse what transformers makes up where a tokenizer's files are missing or of another kind.

    Args:
        name: what the user calls it.
        path: its folder or hub id.
        tokenizer: as it was loaded.
        embeddings: rows of the model's embeddings; None where that is not known.

    Raises:
        InputError: it has no vocabulary, or not that of its files, or far too small a one for the model.
    """
    folder = Path(path)
    _refuse_without_vocabulary(name, folder, tokenizer)
    if (folder / "tokenizer.json").is_file():
        _refuse_other_kind(name, folder / "tokenizer.json", tokenizer)
    if embeddings is not None:
        _refuse_far_smaller(name, tokenizer, embeddings)


def settle_padding_token(tokenizer: PreTrainedTokenizerBase, embeddings: int | None) -> None:
    """Pad with the end-of-sequence token where the padding token was added to the tokenizer and not to the model.

    Padding is masked, so that any token of the model will do.
    """
    pad, end = tokenizer.pad_token_id, tokenizer.eos_token_id
    if embeddings is None or pad is None or pad < embeddings or end is None or end >= embeddings:
        return
    output.warn(
        f"the padding token {tokenizer.pad_token!r} has the id {pad:,}, but the model has {embeddings:,} embeddings: "
        f"padding with {tokenizer.eos_token!r} instead, which is masked."
    )
    tokenizer.pad_token = tokenizer.eos_token


def add_new_tokens(tokenizer: PreTrainedTokenizerBase, tokens: list[str]) -> None:
    """Add the recipe's new tokens to the tokenizer, those that it lacks.

    Raises:
        InputError: one of them does not become a token.
    """
    lacking = [token for token in tokens if token not in tokenizer.get_vocab()]
    tokenizer.add_tokens([AddedToken(token, normalized=False) for token in lacking])
    vocabulary = tokenizer.get_vocab()
    for token in tokens:
        if vocabulary.get(token) not in tokenizer(token, add_special_tokens=False)["input_ids"]:
            raise InputError(f"model.new_tokens: this tokenizer does not read {token!r} as one token.")


def new_token_ids(tokenizer: PreTrainedTokenizerBase, tokens: list[str]) -> list[int]:
    """The ids of the recipe's new tokens, in the order of the recipe, each once."""
    vocabulary = tokenizer.get_vocab()
    return [vocabulary[token] for token in dict.fromkeys(tokens)]


def _refuse_without_vocabulary(name: str, folder: Path, tokenizer: PreTrainedTokenizerBase) -> None:
    words = tokenizer.get_vocab().keys() - set(tokenizer.all_special_tokens) - tokenizer.get_added_vocab().keys()
    # The word boundary of a SentencePiece tokenizer is all that is left of some.
    if len(words) > 1:
        return
    missing = f"{folder} holds no {_WHOLE}" if folder.is_dir() and not has_tokenizer_files(folder) else "no vocabulary"
    raise InputError(
        f"The tokenizer of {name!r} knows no words: {missing}. Download the whole tokenizer again, or name another "
        "one with model.tokenizer."
    )


def _refuse_other_kind(name: str, file: Path, tokenizer: PreTrainedTokenizerBase) -> None:
    """Transformers takes the class that belongs to the model's type and fills it from a file of another kind."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        return
    written = read_json(file).get("model") or {}
    kind, words = written.get("type"), written.get("vocab")
    loaded = type(backend.model).__name__
    differs = kind is not None and kind != loaded
    short = words is not None and backend.get_vocab_size(with_added_tokens=False) < len(words) / 2
    if differs or short or _loses_text(file, tokenizer):
        raise InputError(
            f"The tokenizer of {name!r} is not what its files say: {file} holds a {kind or 'vocabulary'} of "
            f"{len(words or ()):,} entries, and transformers makes a {type(tokenizer).__name__} ({loaded}, "
            f"{len(tokenizer):,} tokens) of it.",
            [
                "Copy the tokenizer's files into a folder of their own, without config.json, and name that folder with "
                "model.tokenizer; or name the tokenizer that the model was trained with."
            ],
        )


def _loses_text(file: Path, tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether text is lost that the file's own tokenizer keeps, as where byte-level pieces are read as others."""
    ids = tokenizer(_PROBE, add_special_tokens=False)["input_ids"]
    if str(tokenizer.decode(ids, clean_up_tokenization_spaces=False)).strip() == _PROBE:
        return False
    own = Tokenizer.from_file(str(file))
    return bool(own.decode(own.encode(_PROBE, add_special_tokens=False).ids).strip() == _PROBE)


def _refuse_far_smaller(name: str, tokenizer: PreTrainedTokenizerBase, embeddings: int) -> None:
    least = _LEAST_USED if embeddings >= _SMALL else _LEAST_USED_OF_SMALL
    if len(tokenizer) < least * embeddings:
        raise InputError(
            f"The tokenizer of {name!r} has {len(tokenizer):,} tokens, but the model has {embeddings:,} embeddings: it "
            "belongs to another model, or a part of its vocabulary is missing. Download it again, or name the right "
            "one with model.tokenizer."
        )


def embeddings_of(config: Any) -> int | None:
    """How many tokens a model's configuration says that it knows; None where it does not say."""
    size = getattr(config, "vocab_size", None) or getattr(config.get_text_config(), "vocab_size", None)
    return cast(int | None, size)
