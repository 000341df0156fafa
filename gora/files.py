"""Files are written and deleted atomically: everything is written aside, flushed to disk and renamed into place."""

import json
import os
import re
import shutil
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from gora.disk import require_room, writing
from gora.errors import InputError

_ASIDE = ".writing-"


@contextmanager
def publish(final: Path | str, needed: int | None = None) -> Iterator[Path]:
    """Yield a path beside `final`; what the block leaves there (a file or a folder) becomes `final` when it ends well.

    A block that raises, Ctrl-C included, leaves `final` as it was and nothing beside it. An existing file is replaced
    in one step. An existing folder is moved aside first and deleted afterwards.

    Args:
        final: what appears.
        needed: bytes that it takes, at least; None is not known.

    Raises:
        FileNotFoundError: the block wrote nothing.
        InputError: a file would replace a folder, or a folder a file or a link, or lies below a file.
        GoraError: there is not enough room on the disk, before or while it is written.
    """
    final = Path(final)
    _make_folder(final)
    sweep(final.parent)
    aside = _beside(final, "new")
    # In a restarted container, a dead process may have had this one's id: the sweep takes its leftovers for ours.
    _remove(aside)
    if needed is not None:
        require_room(final, needed)
    try:
        with writing(final, needed, aside):
            yield aside
            _refuse_other_kind(aside, final)
            _flush(aside)
            _rename(aside, final)
    finally:
        _remove(aside)


def _make_folder(final: Path) -> None:
    """Make the folder that a file or a folder will lie in."""
    try:
        with writing(final):
            final.parent.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError):
        place = next(path for path in final.parents if os.path.lexists(path))
        raise InputError(f"{final} cannot be written: {place} is not a folder. Give another name.") from None


def delete(path: Path | str) -> None:
    """Delete a file, a folder or a link (never what it points to), in one step: renamed aside first, then removed.

    A kill leaves either all of it under its name or nothing; leftovers are swept by the next command. What another
    process deletes at the same time is gone as well.
    """
    path = Path(path)
    if not os.path.lexists(path):
        return
    sweep(path.parent)
    aside = _beside(path, "gone")
    _remove(aside)
    try:
        os.replace(path, aside)
    except FileNotFoundError:
        return
    _flush_folder(path.parent)
    _remove(aside)


def sweep(folder: Path) -> None:
    """Delete what dead processes of this host left aside, and put a folder back that they were about to replace."""
    # Writers of formats may add an ending of their own to the name they are given, such as `.stage`.
    pattern = re.compile(
        rf"{re.escape(_ASIDE)}(new|old|gone)-(.+)-{re.escape(_host())}-([0-9]{{1,9}})(\..+)?", re.DOTALL
    )
    for leftover in list(folder.iterdir()):
        match = pattern.fullmatch(leftover.name)
        if match is None or _is_alive(int(match[3])):
            continue
        if match[1] == "old" and match[4] is None and not os.path.lexists(folder / match[2]):
            os.replace(leftover, folder / match[2])
        else:
            _remove(leftover)


def write_text(final: Path | str, text: str) -> None:
    """Publish a UTF-8 text file."""
    content = text.encode()
    with publish(final, len(content)) as aside:
        aside.write_bytes(content)


def write_json(final: Path | str, content: Any) -> None:
    """Publish a JSON file, indented and ending in a line feed."""
    write_text(final, json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def read_json(path: Path | str) -> Any:
    """What a JSON file holds.

    Raises:
        OSError: it cannot be read.
        ValueError: it is not JSON in UTF-8.
    """
    return parse_json(Path(path).read_bytes())


def parse_json(text: str | bytes) -> Any:
    """What a JSON text says; raises ValueError, also where Python's parser gives up otherwise."""
    try:
        return json.loads(text)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def append_line(path: Path | str, line: str, *, durable: bool = False) -> None:
    """Add one line to a growing file, in a single write where the system takes it whole: a reader meets no half lines.

    Args:
        path: the file; made if there is none.
        line: the text, without its line feed.
        durable: return when the line is on the disk.
    """
    left = memoryview(f"{line}\n".encode())
    with writing(path, len(left)):
        descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
        try:
            while left:
                left = left[os.write(descriptor, left) :]
            if durable:
                os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _refuse_other_kind(aside: Path, final: Path) -> None:
    aside.stat()
    if not os.path.lexists(final):
        return
    if final.is_dir():
        if final.is_symlink():
            raise InputError(f"{final} is a link to a folder; it is not replaced. Give the folder itself.")
        if not aside.is_dir():
            raise InputError(f"{final} is a folder; it is not replaced by a file.")
    elif aside.is_dir():
        raise InputError(f"{final} is a file; it is not replaced by a folder.")


def _rename(aside: Path, final: Path) -> None:
    if not final.is_dir() or final.is_symlink():
        os.replace(aside, final)
        _flush_folder(final.parent)
        return
    old = _beside(final, "old")
    _remove(old)
    os.replace(final, old)
    try:
        os.replace(aside, final)
    except BaseException:
        os.replace(old, final)
        raise
    _flush_folder(final.parent)
    _remove(old)


def _flush(path: Path) -> None:
    files = [path] if path.is_file() else [child for child in sorted(path.rglob("*")) if child.is_file()]
    mode = 0o666 & ~_umask()
    for file in files:
        # Some writers keep their files to the owner alone; published ones are as readable as any other.
        os.chmod(file, mode)
        with open(file, "rb") as stream:
            os.fsync(stream.fileno())
    if path.is_dir():
        _flush_folder(path)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def _flush_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _beside(final: Path, role: str) -> Path:
    return final.parent / f"{_ASIDE}{role}-{final.name}-{_host()}-{os.getpid()}"


def _host() -> str:
    return socket.gethostname().replace("-", "_")


def _is_alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        # What cannot be deleted must not hide the error that led here; a later sweep tries again.
        with suppress(OSError):
            path.unlink()
