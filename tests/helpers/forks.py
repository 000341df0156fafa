"""The command line in processes of their own that need not import the libraries.

Importing them takes five to ten seconds of each `gora`. Here one server imports them once for all tests of a process,
does nothing else, and forks what is asked for: a process with its own folder, environment, streams and signals. What a
start from nothing looks like is asked of `python -m gora`.
"""

import multiprocessing
import os
import signal
import subprocess
import sys
import tempfile
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing import forkserver, reduction
from unittest import mock

from tests.conftest import ROOT

_context = multiprocessing.get_context("forkserver")
_context.set_forkserver_preload(["tests.helpers.imported"])


@dataclass(frozen=True)
class Done:
    """How a process ended, and what it wrote."""

    returncode: int
    stdout: str
    stderr: str


def run(*arguments, cwd, env=None):
    """`gora` with these arguments, to its end."""
    return call(_gora, arguments, cwd=cwd, env=env)


def compare(*arguments, cwd, env=None):
    """`gora compare`, whose runs are forks of it."""
    return call(_comparing, ("compare", *arguments), cwd=cwd, env=env)


def call(work, *arguments, cwd=ROOT, env=None):
    """A function in a process of its own, to its end; it is imported there by its name."""
    with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as err:
        process = _started(work, arguments, cwd, env, out, err)
        process.join()
        texts = []
        for stream in (out, err):
            stream.seek(0)
            texts.append(stream.read())
    return Done(process.exitcode, *texts)


@contextmanager
def running(*arguments, cwd, env=None):
    """`gora` while it runs: its process, and a stream of all that it writes."""
    receiving, sending = os.pipe()
    with open(receiving) as said:
        with open(sending, "w") as stream:
            process = _started(_gora, (arguments,), cwd, env, stream, stream)
        try:
            yield process, said
        finally:
            process.kill()
            process.join()


class _Descriptor:
    """An open file, of which a process that is started gets a copy."""

    def __init__(self, file):
        self._file = file

    def __reduce__(self):
        return _detached, (reduction.DupFd(self._file.fileno()),)


def _detached(copy):
    return copy.detach()


def _started(work, arguments, cwd, env, out, err):
    # The server finds this package wherever a test has gone.
    with mock.patch.dict(os.environ, PYTHONPATH=os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])):
        forkserver.ensure_running()
    environment = dict(os.environ if env is None else env)
    begun = (work, arguments, str(cwd), environment, _Descriptor(out), _Descriptor(err))
    process = _context.Process(target=_begin, args=begun)
    process.start()
    return process


def _begin(work, arguments, cwd, environment, out, err):
    _become(environment, out, err)
    os.chdir(cwd)
    work(*arguments)


def _become(environment, out, err):
    os.dup2(out, 1)
    os.dup2(err, 2)
    os.environ.clear()
    os.environ.update(environment)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)


def _gora(arguments):
    from gora.cli import main

    sys.argv = ["gora", *map(str, arguments)]
    main()


def _comparing(arguments):
    subprocess.Popen = _Fork
    _gora(arguments)


class _Fork:
    """What `subprocess.Popen` gives, for a `gora` that this process would start."""

    def __init__(self, line, *, env, stdout, stderr, text):
        assert line[:3] == [sys.executable, "-m", "gora"]
        self.returncode = None
        self._pid = os.fork()
        if self._pid == 0:
            code = 1
            try:
                _become(env, stdout.fileno(), stderr.fileno())
                _gora(line[3:])
            finally:
                os._exit(code)

    def poll(self):
        self._look(os.WNOHANG)
        return self.returncode

    def wait(self):
        self._look(0)
        return self.returncode

    def send_signal(self, number):
        os.kill(self._pid, number)

    def _look(self, how):
        if self.returncode is None:
            found, status = os.waitpid(self._pid, how)
            if found:
                self.returncode = os.waitstatus_to_exitcode(status)
