"""The fingerprint of all weights in a base model's files, and the cache that spares reading them twice."""

import json
import os
import shutil
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import LlamaConfig, LlamaForCausalLM

from gora.errors import InputError
from gora.models import weight_cache, weight_files
from gora.models.source import find_model
from gora.models.weight_files import hub_commit, read_stored_weights
from gora.recipe.schema import ModelSection
from tests.helpers.weights import flip_last_bit, one_bit_changed


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """An empty cache that keeps files of any age."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(weight_cache, "_TICK_NS", 0)
    return tmp_path / "cache" / "gora" / "weights"


@pytest.fixture
def reads(monkeypatch):
    """Names of the weight files that were read."""
    read, original = [], weight_files._digest_tensors

    def count(path):
        read.append(path.name)
        return original(path)

    monkeypatch.setattr(weight_files, "_digest_tensors", count)
    return read


@pytest.fixture
def base(llama, tmp_path):
    llama.save_pretrained(tmp_path / "base")
    return tmp_path / "base"


def weights(folder):
    return read_stored_weights(find_model(ModelSection(name=str(folder))))


def fingerprint(folder):
    return weights(folder).note.fingerprint


def test_the_fingerprint_does_not_depend_on_how_tensors_are_distributed_over_files(base, llama, tmp_path):
    llama.save_pretrained(tmp_path / "sharded", max_shard_size="20KB")
    assert len(list((tmp_path / "sharded").glob("*.safetensors"))) > 2
    assert weights(tmp_path / "sharded").note == weights(base).note


def test_one_changed_bit_in_any_tensor_changes_the_fingerprint_and_is_named(base, tmp_path):
    before = weights(base)
    names = load_file(base / "model.safetensors").keys()
    assert set(before.digests) == set(names)
    assert {"model.embed_tokens.weight", "model.norm.weight", "lm_head.weight"} < set(names)
    copy = shutil.copytree(base, tmp_path / "copy")
    for name in names:
        with one_bit_changed(copy / "model.safetensors", name):
            assert weights(copy).changes_since(before.note) == f"1 of {len(names)} tensors differ: {name}"
    assert weights(copy).changes_since(before.note) == ""


def test_other_names_shapes_types_and_numbers_of_tensors_are_told(base, tmp_path):
    before = weights(base)
    tensors = load_file(base / "model.safetensors")
    total = len(tensors)
    embedding = tensors["model.embed_tokens.weight"]

    def changed(**other):
        copy = shutil.copytree(base, tmp_path / "copy", dirs_exist_ok=True)
        save_file(tensors | other, copy / "model.safetensors", metadata={"format": "pt"})
        return weights(copy).changes_since(before.note)

    reshaped = changed(**{"model.embed_tokens.weight": embedding.reshape(32, 97)})
    assert reshaped == f"1 of {total} tensors differ: model.embed_tokens.weight"
    assert changed(**{"model.embed_tokens.weight": embedding.view(torch.int32)}) == reshaped
    assert changed(more=torch.ones(3)) == (
        f"{total + 1} tensors instead of {total}; 1 of {total + 1} tensors differ: more"
    )
    assert changed(**{name: value + 1 for name, value in tensors.items()}).endswith(", ...")


def test_tied_weights_are_stored_and_known_once(tmp_path):
    config = LlamaConfig(
        vocab_size=50, hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=2,
        tie_word_embeddings=True,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(tmp_path / "tied")
    digests = weights(tmp_path / "tied").digests
    assert "model.embed_tokens.weight" in digests
    assert "lm_head.weight" not in digests


def test_only_the_files_that_transformers_reads_count(base, llama, tmp_path):
    before = fingerprint(base)
    save_file({"x": torch.ones(2)}, base / "consolidated.safetensors")
    (base / "model.safetensors.index.json").write_text("{")
    assert fingerprint(base) == before


def test_a_missing_index_a_missing_shard_and_a_damaged_file_are_refused(llama, tmp_path):
    llama.save_pretrained(tmp_path / "base", max_shard_size="20KB")
    index = tmp_path / "base" / "model.safetensors.index.json"
    shard = next((tmp_path / "base").glob("*.safetensors"))
    content = shard.read_bytes()
    shard.write_bytes(content[:-1])
    with pytest.raises(InputError, match="not a whole safetensors file"):
        weights(tmp_path / "base")
    shard.unlink()
    with pytest.raises(InputError, match=r"1 of .* files are missing") as refused:
        weights(tmp_path / "base")
    assert shard.name in refused.value.problems
    index.write_text('{"weight_map": []}')
    with pytest.raises(InputError, match=r"index\.json: not an index"):
        weights(tmp_path / "base")
    index.unlink()
    with pytest.raises(InputError, match="holds neither"):
        weights(tmp_path / "base")


def test_a_model_of_the_hub_is_read_from_its_cache_at_its_revision(base, llama, tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    hub = tmp_path / "hub" / "models--some--model"
    for name, size in (("1" * 40, "9GB"), ("2" * 40, "20KB")):
        llama.save_pretrained(hub / "snapshots" / name, max_shard_size=size)
    third = shutil.copytree(base, hub / "snapshots" / ("3" * 40))
    flip_last_bit(third / "model.safetensors", "model.norm.weight")
    (hub / "refs").mkdir()
    (hub / "refs" / "main").write_text("1" * 40)
    (hub / "refs" / "new").write_text("3" * 40)

    def at(revision):
        return read_stored_weights(find_model(ModelSection(name="some/model", revision=revision))).note.fingerprint

    assert at(None) == at("2" * 40) == fingerprint(base)
    assert at("new") == fingerprint(third) != fingerprint(base)
    commits = [hub_commit(find_model(ModelSection(name="some/model", revision=name))) for name in (None, "new")]
    assert commits == ["1" * 40, "3" * 40]
    (hub / "refs" / "main").write_text("3" * 40)
    assert at(None) == at("new")
    (third / "model.safetensors").unlink()
    with pytest.raises(InputError, match="the hub's cache holds neither"):
        at("new")


# --- the cache --------------------------------------------------------------------------------------------------------


def test_files_are_read_once(base, reads):
    assert fingerprint(base) == fingerprint(base)
    assert reads == ["model.safetensors"]


def test_a_link_is_the_file_that_it_leads_to(base, reads, tmp_path):
    linked = tmp_path / "linked"
    linked.mkdir()
    for path in base.iterdir():
        (linked / path.name).symlink_to(path)
    assert fingerprint(base) == fingerprint(linked)
    assert len(reads) == 1


def test_a_file_of_another_time_or_size_is_read_again(base, reads):
    file = base / "model.safetensors"
    before = fingerprint(base)
    os.utime(file, ns=(1, 1))
    assert fingerprint(base) == before
    assert len(reads) == 2
    save_file(load_file(file), file, metadata={"format": "pt", "more": "text"})
    os.utime(file, ns=(1, 1))
    assert fingerprint(base) == before
    assert len(reads) == 3


def test_a_change_is_seen_when_size_and_time_are_set_back(base):
    file = base / "model.safetensors"
    before, times = fingerprint(base), file.stat()
    flip_last_bit(file, "model.norm.weight")
    os.utime(file, ns=(times.st_atime_ns, times.st_mtime_ns))
    assert file.stat().st_mtime_ns == times.st_mtime_ns
    assert fingerprint(base) != before


def test_a_file_that_was_just_written_is_not_kept_since_its_time_may_not_tell_it_from_the_next(
    base, reads, cache, monkeypatch
):
    monkeypatch.setattr(weight_cache, "_TICK_NS", 10**15)
    fingerprint(base)
    fingerprint(base)
    assert len(reads) == 2
    assert not cache.exists()


def test_an_entry_that_is_damaged_is_computed_again_and_replaced(base, reads, cache):
    before = fingerprint(base)
    (entry,) = cache.iterdir()
    whole = entry.read_text()
    digest = next(iter(json.loads(whole)["digests"].values()))
    other = digest.replace(digest[0], "f" if digest[0] != "f" else "0")
    garbage = ["", "{", "[]", "null", "[" * 99_999, "\x00", whole[:-9], whole.replace(digest, other), '{"path": 3}']
    for number, text in enumerate(garbage):
        entry.write_text(text)
        assert fingerprint(base) == before
        assert len(reads) == number + 2
        assert json.loads(entry.read_text()) == json.loads(whole)
    entry.write_bytes(b"\xff\xfe")
    assert fingerprint(base) == before
    entry.unlink()
    entry.mkdir()
    assert fingerprint(base) == before


@pytest.mark.parametrize("there", ["a file", "read-only"])
def test_a_cache_that_cannot_be_written_is_done_without(base, reads, cache, there):
    cache.parent.parent.mkdir(parents=True)
    if there == "a file":
        cache.parent.write_text("")
    else:
        cache.parent.parent.chmod(0o500)
    assert fingerprint(base) == fingerprint(base)
    if os.getuid() or there == "a file":
        assert len(reads) == 2


def test_a_user_without_a_home_has_no_cache(base, reads, monkeypatch):
    def homeless():
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setattr(weight_cache.Path, "home", homeless)
    assert fingerprint(base) == fingerprint(base)
    assert len(reads) == 2


def test_entries_of_files_that_are_gone_are_deleted(base, cache, tmp_path):
    moved = shutil.copytree(base, tmp_path / "moved")
    fingerprint(moved)
    shutil.rmtree(moved)
    (cache / "stray.json").write_text("garbage")
    fingerprint(base)
    (entry,) = cache.iterdir()
    assert json.loads(entry.read_text())["path"] == str(base / "model.safetensors")


WRITER = """
import sys
from pathlib import Path
from gora.models import weight_cache
weight_cache._TICK_NS = 0
path = Path(sys.argv[1])
for _ in range(50):
    weight_cache._entry(path).unlink(missing_ok=True)
    weight_cache.cached(path, lambda path: {str(number): "0" * 64 for number in range(999)})
"""


def test_several_processes_leave_a_whole_entry_and_nothing_else(base, cache):
    command = [sys.executable, "-c", WRITER, str(base / "model.safetensors")]
    processes = [subprocess.Popen(command, stderr=subprocess.PIPE, text=True) for _ in range(3)]
    for process in processes:
        assert process.communicate()[1] == ""
        assert process.returncode == 0
    (entry,) = cache.iterdir()
    assert len(json.loads(entry.read_text())["digests"]) == 999


MEMORY = """
import resource, sys
from pathlib import Path
from gora.models.weight_files import _digest_tensors
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
print(len(_digest_tensors(Path(sys.argv[1]))))
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""


def test_a_large_file_is_read_in_a_few_megabytes_of_memory(tmp_path):
    file, size, count = tmp_path / "large.safetensors", 100 << 20, 3
    header = {
        f"t{number}": {"dtype": "U8", "shape": [size], "data_offsets": [number * size, (number + 1) * size]}
        for number in range(count)
    }
    text = json.dumps(header).encode()
    with open(file, "wb") as stream:
        stream.write(len(text).to_bytes(8, "little") + text)
        # Holes take no space on the disk, and read as zeros.
        stream.truncate(8 + len(text) + count * size)
    command = [sys.executable, "-c", MEMORY, str(file)]
    printed = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()
    assert int(printed[0]) == count
    unit = 1 if sys.platform == "darwin" else 1024
    assert int(printed[1]) * unit < 80 << 20
