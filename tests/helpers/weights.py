"""Changing the weights of a model on the disk."""

import json
from contextlib import contextmanager


def flip_last_bit(file, name):
    """Change the last bit of a tensor's last byte in place."""
    content = bytearray(file.read_bytes())
    start = 8 + int.from_bytes(content[:8], "little")
    content[start + json.loads(content[8:start])[name]["data_offsets"][1] - 1] ^= 1
    file.write_bytes(content)


@contextmanager
def one_bit_changed(file, name):
    """The same, for the time of a block."""
    flip_last_bit(file, name)
    try:
        yield
    finally:
        flip_last_bit(file, name)


def rewrite_note(adapter, change):
    """Change what gora noted beside an adapter, and delete the manifest, which would show it."""
    path = adapter / "gora.json"
    note = json.loads(path.read_text())
    change(note)
    path.write_text(json.dumps(note))
    (adapter / "manifest.json").unlink(missing_ok=True)
