"""The walls around a program, put up from inside by the process that is about to run it."""

import os
import resource
import signal
import sys
from contextlib import suppress
from typing import Any

from gora.sandbox.inside import kernel
from gora.sandbox.inside.processes import tasks_of_user

_FIRST_STRANGER = 1_900_000_000
_NOBODY = 65534
# Of `/etc` only what the loader of libraries, the clock and the names of users need.
SYSTEM = ("/usr", "/lib", "/lib32", "/lib64", "/bin", "/etc/ld.so.cache", "/etc/localtime", "/etc/passwd")
_DEVICES = ("/proc", "/dev/urandom", "/dev/random")
_WRITABLE = ("/dev/null", "/dev/zero")


def stranger(folder: str) -> int | None:
    """A user id for this run alone; None where this is not root, or where a stranger could not use Python or `folder`.

    A process of root has its other groups taken away on this occasion.
    """
    if os.getuid() != 0:
        return None
    with suppress(OSError):
        os.setgroups([])
    # User ids of a container may end at 65535; its last resort is shared with whatever else runs as nobody.
    for user in (_FIRST_STRANGER + os.getpid(), _NOBODY):
        try:
            os.setegid(user)
            os.seteuid(user)
            return user if _can_use_python(folder) else None
        except OSError:
            continue
        finally:
            os.seteuid(0)
            os.setegid(0)
    return None


def python() -> list[str]:
    """Folders of the Python that is running, its packages included; those of packages elsewhere are not among them."""
    return sorted({sys.prefix, sys.base_prefix, sys.exec_prefix, sys.base_exec_prefix})


def enter_namespaces(folder: str, size: int, user: int | None) -> int | None:
    """Leave the host's network, processes, mounts and shared memory; only `folder`, now in memory, can be written.

    Children are in the new pid namespace, this process is not.

    Args:
        folder: an empty folder.
        size: what it may hold, in bytes.
        user: whom to become in the end (`stranger`), or None.

    Returns:
        Whom to become in the end: None where only the present user exists in the new namespaces.

    Raises:
        OSError: the system does not allow it.
    """
    apart = kernel.NEW_PID | kernel.NEW_NET | kernel.NEW_MOUNTS | kernel.NEW_IPC
    if user is None or not _unshared(apart):
        me, group, user = os.getuid(), os.getgid(), None
        kernel.unshare(apart | kernel.NEW_USER)
        _write("/proc/self/setgroups", "deny")
        _write("/proc/self/uid_map", f"{me} {me} 1")
        _write("/proc/self/gid_map", f"{group} {group} 1")
    kernel.keep_mounts_private()
    kernel.make_mounts_read_only()
    kernel.mount_memory(folder, size)
    return user


def show_own_processes_only() -> None:
    """In the first process of a pid namespace: a `/proc` to match. Containers may refuse it; then the old one stays."""
    with suppress(OSError):
        kernel.mount_processes()


def lock(folder: str) -> None:
    """Only what an interpreter needs can be read, and only `folder` be written; raises OSError."""
    kernel.refuse_new_privileges()
    rules = kernel.Landlock()
    for path in (*python(), *SYSTEM, *_DEVICES):
        rules.allow_reading(path)
    # A package that is installed from a checkout is found there, and the checkout is nobody's to read.
    sys.path[:] = [path for path in sys.path if os.path.realpath(path).startswith(tuple(map(_inside, python())))]
    for path in (*_WRITABLE, folder):
        rules.allow_all(path)
    rules.enter()


def step_down(folder: str, user: int | None) -> None:
    """Give up all privileges, and become another user (`stranger`) if there is one, who then owns `folder`."""
    if user is not None:
        os.chown(folder, user, user)
        os.setresgid(user, user, user)
        os.setresuid(user, user, user)
    if kernel.LINUX:
        kernel.drop_capabilities()
        kernel.refuse_new_privileges()
        kernel.end_with_parent(signal.SIGKILL)


def limit(limits: dict[str, Any], *, counted_apart: bool) -> None:
    """Bound what a process can take; see `sandbox.Limits`.

    Args:
        limits: the fields of `sandbox.Limits`.
        counted_apart: whether threads are counted from zero; otherwise all of the user's count. Root's never count.
    """
    # The first limit on seconds is a signal that a program may ignore, the second is not.
    bounds = {
        "RLIMIT_CPU": (limits["cpu_seconds"], limits["cpu_seconds"] + 1),
        "RLIMIT_AS": (limits["memory"],) * 2,
        "RLIMIT_FSIZE": (limits["file_size"],) * 2,
        "RLIMIT_NOFILE": (128, 128),
        "RLIMIT_CORE": (0, 0),
        "RLIMIT_MEMLOCK": (0, 0),
        "RLIMIT_MSGQUEUE": (0, 0),
        "RLIMIT_NPROC": (limits["threads"] + (0 if counted_apart else tasks_of_user(os.getuid())),) * 2,
    }
    for name, (soft, hard) in bounds.items():
        number = getattr(resource, name, None)
        if number is not None:
            highest = resource.getrlimit(number)[1]
            within = [value if highest == resource.RLIM_INFINITY else min(value, highest) for value in (soft, hard)]
            with suppress(OSError, ValueError):  # not every system has every limit
                resource.setrlimit(number, (within[0], within[1]))


def _inside(folder: str) -> str:
    return os.path.realpath(folder).rstrip(os.sep) + os.sep


def _unshared(namespaces: int) -> bool:
    try:
        kernel.unshare(namespaces)
    except OSError:
        return False
    return True


def _can_use_python(folder: str) -> bool:
    try:
        os.stat(folder)
        for path in python():
            os.listdir(path)
        with open(os.__file__, "rb"):
            return True
    except OSError:
        return False


def _write(path: str, text: str) -> None:
    with open(path, "w") as stream:
        stream.write(text)
