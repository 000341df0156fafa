"""What lies in a checkpoint's folder, looked at before anything is loaded: half a download is named, file by file."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path, PurePosixPath
from typing import Any

from gora.errors import InputError
from gora.files import parse_json, read_json

_POINTER = b"version https://git-lfs.github.com/spec/"
_WEIGHTS = "model.safetensors"
_INDEX = "model.safetensors.index.json"
_PICKLES = ("pytorch_model.bin", "pytorch_model.bin.index.json", "consolidated.00.pth")
_VOCABULARIES = (
    "tokenizer.json",
    "vocab.json",
    "merges.txt",
    "vocab.txt",
    "tokenizer.model",
    "spiece.model",
    "sentencepiece.bpe.model",
    "tekken.json",
)
_OTHER_VOCABULARIES = (".model", ".tiktoken", ".vocab", ".bpe")
_TOKENIZER_SETTINGS = ("tokenizer_config.json", "special_tokens_map.json", "added_tokens.json")
_IMPLEMENTATIONS = ("_implementation", "_implementation_internal")
_KERNEL_SWITCHES = ("use_kernels", "kernel_config", "allow_all_kernels")
# A header of more names than any checkpoint has; what a broken file says may be anything.
_LARGEST_HEADER = 100_000_000


def refuse_what_is_no_checkpoint(name: str, path: Path) -> None:
    """Refuse a file, and a folder that holds something else than a model.

    Args:
        name: what the user calls it.
        path: a file or a folder that exists.

    Raises:
        InputError: with what it is, and what gora takes instead.
    """
    if path.is_file():
        what = "a GGUF file" if _is_gguf(path) else "a file"
        raise InputError(f"model {name!r} is {what}. gora takes the folder of a model in safetensors format.")
    if (path / "config.json").exists():
        return
    if found := sorted(path.glob("*.gguf")):
        raise InputError(
            f"model {name!r}: the folder holds GGUF files ({found[0].name}) and no config.json. gora takes a model in "
            "safetensors format, from which those were made."
        )
    if (path / "adapter_config.json").exists():
        raise InputError(
            f"model {name!r} is the folder of an adapter, not of a model. Merge it first: "
            f"gora merge {path} --output FOLDER."
        )
    if not any(path.glob("*.safetensors*")) and not has_tokenizer_files(path):
        raise InputError(
            f"model {name!r}: {path} is not the folder of a model: it holds no config.json, weights or tokenizer."
        )
    raise InputError(f"model {name!r}: {path / 'config.json'} is missing. Download the whole model again.")


def check_config(path: Path) -> None:
    """Refuse a folder whose configuration cannot be read, or names tokens otherwise than by their ids.

    Raises:
        InputError: naming the file.
    """
    for name in ("config.json", "generation_config.json"):
        if name == "config.json" or (path / name).exists():
            _refuse_tokens_without_ids(path / name, _read_json(path / name))


def _refuse_tokens_without_ids(file: Path, document: Mapping[str, Any]) -> None:
    for key in ("bos_token_id", "eos_token_id", "pad_token_id"):
        value = document.get(key)
        ids = value if isinstance(value, list) else [] if value is None else [value]
        if not all(isinstance(each, int) and not isinstance(each, bool) for each in ids):
            raise InputError(f"{file}: {key} must be the number of a token, a list of numbers or null, not {value!r}.")


def refuse_code_of_others(name: str, config: Mapping[str, Any]) -> None:
    """Refuse a configuration that would have transformers fetch kernels from the hub, or read files elsewhere.

    Args:
        name: what the user calls the model.
        config: the content of config.json.

    Raises:
        InputError: naming the settings.
    """
    if found := sorted(_kernels_in(config)):
        raise InputError(
            f"model {name!r}: config.json names kernels of the hub, which are code that gora does not run unless told "
            "to. Take them out of config.json; or read that code, then add --trust-remote-code to the command.",
            found,
        )


def refuse_files_elsewhere(name: str, config: Mapping[str, Any]) -> None:
    """Refuse a configuration whose weights would lie outside the model's folder; raises InputError."""
    weights = config.get("transformers_weights")
    if weights is not None and not (isinstance(weights, str) and _lies_inside(weights)):
        raise InputError(f"model {name!r}: transformers_weights: {weights!r} is not a file inside the model's folder.")


def _kernels_in(config: Mapping[str, Any]) -> Iterator[str]:
    """Settings of the configuration, and of those inside it, in which a kernel has a name such as `owner/kernel`."""
    ahead = list(config.items())
    while ahead:
        key, value = ahead.pop()
        if key in _KERNEL_SWITCHES and value:
            yield f"{key}: {str(value)[:60]}"
        elif key.endswith(_IMPLEMENTATIONS):
            texts = value.values() if isinstance(value, Mapping) else [value]
            yield from (f"{key}: {text[:60]}" for text in texts if isinstance(text, str) and "/" in text)
        elif isinstance(value, Mapping):
            ahead += value.items()


def check_weights(name: str, path: Path) -> None:
    """Refuse a folder whose weights are not all there, without reading them.

    Args:
        name: what the user calls the model.
        path: its folder.

    Raises:
        InputError: a file is missing, cut off, a pointer of Git LFS or a pickle, with its name.
    """
    try:
        _check_weights(path)
    except InputError as broken:
        raise InputError(f"model {name!r}: the folder cannot be loaded: {broken.headline}", broken.problems) from None


def _check_weights(path: Path) -> None:
    if (path / _WEIGHTS).exists():
        _check_safetensors(path / _WEIGHTS)
    elif (path / _INDEX).exists():
        for shard in _shards(path / _INDEX):
            _check_safetensors(path / shard)
    elif pickles := [file for file in _PICKLES if (path / file).exists()]:
        raise InputError(
            f"{path / pickles[0]} is a pickle, which can run code when it is read. gora reads safetensors only.",
            [
                "Take a revision of the model with safetensors, or convert a model that you trust: "
                "AutoModelForCausalLM.from_pretrained(FOLDER).save_pretrained(NEW)."
            ],
        )
    else:
        raise InputError(f"{path} holds neither {_WEIGHTS} nor {_INDEX}. Download the whole model again.")


def check_tokenizer_files(path: Path) -> None:
    """Refuse a folder in which a tokenizer's file is empty, broken or a pointer; raises InputError with its name."""
    for file in (path / name for name in _VOCABULARIES + _TOKENIZER_SETTINGS):
        if file.exists():
            _read_json(file) if file.suffix == ".json" else _refuse_pointer(file)


def has_tokenizer_files(path: Path) -> bool:
    """Whether a folder holds any file that a vocabulary could come from."""
    return any(file.name in _VOCABULARIES or file.suffix in _OTHER_VOCABULARIES for file in path.iterdir())


def _is_gguf(path: Path) -> bool:
    with open(path, "rb") as file:
        return file.read(4) == b"GGUF" or path.suffix.lower() == ".gguf"


def _refuse_pointer(path: Path) -> None:
    with open(path, "rb") as file:
        start = file.read(len(_POINTER))
    if not start:
        raise InputError(f"{path} is empty. Download it again.")
    if start == _POINTER:
        raise InputError(f"{path} is a pointer of Git LFS and not its content. Run `git lfs pull` in that folder.")


def _read_json(path: Path) -> dict[str, Any]:
    try:
        _refuse_pointer(path)
        content = read_json(path)
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror or error}.") from None
    except ValueError as error:
        raise InputError(f"{path} is not valid JSON ({error}). Download it again.") from None
    if not isinstance(content, dict):
        raise InputError(f"{path} does not hold a JSON object. Download it again.")
    return content


def _shards(index: Path) -> list[str]:
    weight_map = _read_json(index).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise InputError(f"{index}: not an index of safetensors files: it has no weight_map. Download it again.")
    shards = sorted({str(shard) for shard in weight_map.values()})
    for shard in shards:
        if not (_lies_inside(shard) and shard.endswith(".safetensors")):
            raise InputError(f"{index} names {shard!r}, which is not a safetensors file inside the folder.")
    if missing := [shard for shard in shards if not (index.parent / shard).exists()]:
        raise InputError(
            f"{index}: {len(missing)} of {len(shards)} files are missing. Download them again.",
            missing[:3] + ([f"and {len(missing) - 3} more"] if missing[3:] else []),
        )
    return shards


def _lies_inside(name: str) -> bool:
    path = PurePosixPath(name.replace("\\", "/"))
    return not (path.is_absolute() or ".." in path.parts or "\0" in name)


def _check_safetensors(path: Path) -> None:
    """The header says where the last weight ends, so a file that is cut off shows without being read."""
    _refuse_pointer(path)
    size = path.stat().st_size
    with open(path, "rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if size < 8 or length > min(size - 8, _LARGEST_HEADER):
            raise InputError(f"{path} is not a whole safetensors file. Download it again.")
        try:
            header = parse_json(file.read(length))
            tensors = [value for name, value in header.items() if name != "__metadata__"]
            end = max((value["data_offsets"][1] for value in tensors), default=0)
        except (ValueError, AttributeError, KeyError, TypeError, IndexError):
            raise InputError(f"{path} is not a safetensors file: its header cannot be read.") from None
    if size != 8 + length + end:
        raise InputError(
            f"{path} is not a whole safetensors file: it has {size:,} bytes instead of {8 + length + end:,}. "
            "Download it again."
        )
