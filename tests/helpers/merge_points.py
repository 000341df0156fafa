"""Merges that are killed at chosen file operations, or that find the disk full.

The libraries are imported once; every merge is a fork of this process, which therefore wants OMP_NUM_THREADS=1. An
unbroken merge counts its writes, flushes and renames; then WANTED of them, spread evenly, are tried: a new merge ends
itself with SIGKILL just before the operation. Then one may write no file of more than 20 kB. One JSON object is printed
per try: what is in the folder afterwards, and the files of the next merge with their SHA-256.
"""

import json
import os
import resource
import shutil
import signal
import sys
import threading

from gora import manifest
from gora.errors import GoraError
from gora.stages.merge import merge
from tests.helpers.kill_points import spread

_OPERATIONS = ("pwrite", "fsync", "replace", "chmod")
_COUNTED = threading.Lock()


def attempt(adapter, place, kill_at=None, count_to=None, limit=None):
    """How a merge in a fork of this process has ended; see `os.waitstatus_to_exitcode`."""
    child = os.fork()
    if child:
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    done = []

    def watched(name, operation):
        def call(*arguments, **named):
            with _COUNTED:
                done.append(name)
                if kill_at is not None and len(done) - 1 == kill_at:
                    os.kill(os.getpid(), signal.SIGKILL)
            return operation(*arguments, **named)

        return call

    for name in _OPERATIONS:
        setattr(os, name, watched(name, getattr(os, name)))
    code = 1
    try:
        if limit is not None:
            signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
        merge(adapter, place / "merged")
        if count_to:
            count_to.write_text(json.dumps(done))
        code = 0
    except GoraError as error:
        print(error, file=sys.stderr, flush=True)
    finally:
        os._exit(code)


def main(adapter, folder, wanted):
    """Print a line per try."""
    whole = folder / "whole"
    whole.mkdir()
    assert attempt(adapter, whole, count_to=folder / "operations") == 0
    operations = json.loads((folder / "operations").read_text())
    tries = [{"kill_at": point} for point in spread(len(operations), wanted)] + [{"limit": 20_000}]
    for number, how in enumerate(tries):
        place = folder / f"try-{number}"
        place.mkdir()
        ended = attempt(adapter, place, **how)
        left = sorted(path.name for path in place.iterdir())
        complete = (place / "merged").exists() and manifest.damage(place / "merged") is None
        again = 0 if complete else attempt(adapter, place)
        report = {
            "operation": operations[how["kill_at"]] if "kill_at" in how else "full",
            "ended": ended,
            "left": left,
            "complete": complete,
            "again": again,
            "same": files(place / "merged") == files(whole / "merged"),
            "names": sorted(path.name for path in place.iterdir()),
        }
        print(json.dumps(report), flush=True)
        shutil.rmtree(place)


def files(folder):
    return {path.name: manifest.sha256_of(path) for path in folder.iterdir()}
