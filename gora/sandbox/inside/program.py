"""The process that becomes the program: it puts up its walls, runs the text and says how that went."""

import json
import os
import signal
import sys
import types
from typing import Any, NoReturn

from gora.sandbox.inside import audit_hook, kernel, seccomp, walls

NAME = "program"
READY = b"ready\n"
_LONGEST_DETAIL = 500
_STREAMS = (sys.stdout, sys.stderr)


def become(request: dict[str, Any], output: int, asks: int, answers: int) -> NoReturn:
    """Run the program of a request; in a forked child, which does not return.

    What it writes to `answers` begins with `READY` once the walls are up. JSON with `outcome` and `detail` follows, or,
    when the program came to its end, whatever `asks` holds: a secret that waits there unread until then, so that
    leaving early cannot be taken for success.

    Args:
        request: `source`, `folder`, `walls` and `limits`.
        output: where standard output and errors of the program go.
        asks: pipe with the secret.
        answers: pipe for the outcome.
    """
    try:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        os.setsid()
        _connect(output)
        os.chdir(request["folder"])
        _confine(request)
        os.write(answers, READY)
    except BaseException as error:
        _answer(answers, "broken", f"{type(error).__name__}: {error}")
    _run(request["source"], asks, answers)


def _connect(output: int) -> None:
    empty = os.open(os.devnull, os.O_RDONLY)
    for source, target in ((empty, 0), (output, 1), (output, 2)):
        os.dup2(source, target)


def _confine(request: dict[str, Any]) -> None:
    folder, up = request["folder"], request["walls"]
    user, apart = walls.stranger(folder), "namespaces" in up
    if apart:
        user = _go_apart(request, user)
    walls.limit(request["limits"], counted_apart=apart or "bwrap" in up or user is not None)
    walls.step_down(folder, user)
    if "landlock" in up:
        walls.lock(folder)
    if "seccomp" in up:
        seccomp.refuse_calls()
    if "guard" in up:
        audit_hook.guard(folder)


def _go_apart(request: dict[str, Any], user: int | None) -> int | None:
    """Return in a child that is alone in its namespaces, with the user to become; the parent ends as the child does."""
    kernel.set_readable(True)  # or the maps of user ids could not be written
    user = walls.enter_namespaces(request["folder"], request["limits"]["disk"], user)
    os.chdir(request["folder"])
    child = os.fork()
    if child == 0:
        walls.show_own_processes_only()
        return user
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    # The exit codes of shells: this process may be unable to die of the same signal.
    os._exit(status if status >= 0 else 128 - status)


def _run(source: str, asks: int, answers: int) -> NoReturn:
    # Bound before the program runs, which may replace what it finds in modules.
    leave, read, write, answer = os._exit, os.read, os.write, _answer
    try:
        try:
            exec(compile(source, f"{NAME}.py", "exec", dont_inherit=True), _module().__dict__)
        except SystemExit:
            answer(answers, "exited", "SystemExit before the tests were done")
        except MemoryError:
            answer(answers, "out of memory", "MemoryError")
        except BaseException as error:
            answer(answers, "failed", _last_line(error))
        write(answers, read(asks, 64))
        _flush()
        leave(0)
    finally:
        leave(1)


def _module() -> types.ModuleType:
    """Not `__main__`: what stands under that name is no part of an answer, and published evaluations skip it too."""
    module = types.ModuleType(NAME)
    sys.modules[NAME] = sys.modules["__main__"] = module
    sys.argv[:] = [f"{NAME}.py"]
    return module


def _last_line(error: BaseException) -> str:
    kind = type(error).__name__
    try:
        text = str(error).strip()
    except BaseException:
        text = ""
    return f"{kind}: {text.splitlines()[0]}" if text else kind


def _flush() -> None:
    for stream in _STREAMS:
        try:
            stream.flush()
        except BaseException:  # closed by the program
            continue


def _answer(
    answers: int, outcome: str, detail: str, *, leave: Any = os._exit, write: Any = os.write, text: Any = json.dumps
) -> NoReturn:
    try:
        write(answers, text({"outcome": outcome, "detail": detail[:_LONGEST_DETAIL]}).encode())
        _flush()
    finally:
        leave(1)
    raise AssertionError
