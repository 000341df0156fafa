"""Calls to the Linux kernel that Python has no function for. Each raises OSError with the kernel's reason."""

import ctypes
import os
import struct
import sys

LINUX = sys.platform == "linux"

_libc = ctypes.CDLL(None, use_errno=True)

# From the kernel's headers: sched.h, mount.h, prctl.h, landlock.h. System calls above 424 have one number everywhere.
NEW_USER, NEW_PID, NEW_NET, NEW_MOUNTS, NEW_IPC = 0x10000000, 0x20000000, 0x40000000, 0x00020000, 0x08000000
_READ_ONLY, _NO_SUID, _NO_DEV, _NO_EXEC, _RECURSIVE, _PRIVATE = 1, 2, 4, 8, 0x4000, 0x40000
_SET_SECCOMP, _FILTER = 22, 2
_SET_DEATH_SIGNAL, _SET_DUMPABLE, _DROP_BOUNDING, _SET_SUBREAPER, _NO_NEW_PRIVILEGES = 1, 4, 24, 36, 38
_MOUNT_SETATTR, _LANDLOCK_CREATE, _LANDLOCK_ADD, _LANDLOCK_RESTRICT = 442, 444, 445, 446
_AT_HERE, _AT_RECURSIVE = -100, 0x8000
_CAPABILITY_VERSION_3 = 0x20080522


def _checked(result: int) -> int:
    if result == -1:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    return result


def _system_call(number: int, *arguments: int | bytes | None) -> int:
    return _checked(_libc.syscall(ctypes.c_long(number), *map(_as_word, arguments)))


def _as_word(argument: int | bytes | None) -> object:
    return ctypes.c_long(argument) if isinstance(argument, int) else argument


def _control(option: int, value: int = 0, more: int = 0) -> None:
    zero = ctypes.c_ulong(0)
    _checked(_libc.prctl(option, ctypes.c_ulong(value), ctypes.c_ulong(more), zero, zero))


def unshare(namespaces: int) -> None:
    """Leave the given namespaces for new ones; a new pid namespace begins with the next child."""
    _checked(_libc.unshare(namespaces))


def keep_mounts_private() -> None:
    """What is mounted from now on is seen in this mount namespace only."""
    _checked(_libc.mount(None, b"/", None, ctypes.c_ulong(_RECURSIVE | _PRIVATE), None))


def make_mounts_read_only() -> None:
    """Every file system of this mount namespace; Linux 5.12 and later."""
    attributes = struct.pack("=QQQQ", _READ_ONLY, 0, 0, 0)
    _system_call(_MOUNT_SETATTR, _AT_HERE, b"/", _AT_RECURSIVE, attributes, len(attributes))


def mount_memory(folder: str, size: int) -> None:
    """An empty file system in memory, of at most `size` bytes."""
    options = f"size={size},nr_inodes=4096,mode=700".encode()
    flags = ctypes.c_ulong(_NO_SUID | _NO_DEV)
    _checked(_libc.mount(b"tmpfs", os.fsencode(folder), b"tmpfs", flags, options))


def mount_processes() -> None:
    """A `/proc` that shows the processes of this pid namespace only."""
    flags = ctypes.c_ulong(_NO_SUID | _NO_DEV | _NO_EXEC | _READ_ONLY)
    _checked(_libc.mount(b"proc", b"/proc", b"proc", flags, None))


def adopt_orphans() -> None:
    """Descendants whose parents end become children of this process, wherever they have gone."""
    _control(_SET_SUBREAPER, 1)


def set_readable(readable: bool) -> None:
    """Whether other processes of this user may look into this one, through `/proc` or a debugger."""
    _control(_SET_DUMPABLE, int(readable))


def end_with_parent(number: int) -> None:
    """Have the kernel send this process a signal when its parent ends; a later change of user undoes it."""
    _control(_SET_DEATH_SIGNAL, number)


def refuse_new_privileges() -> None:
    """No program that is started from here on gains privileges, set-user-id ones included."""
    _control(_NO_NEW_PRIVILEGES, 1)


def set_filter(instructions: bytes) -> None:
    """Have a seccomp filter judge every system call of this process; needs `refuse_new_privileges`."""
    text = ctypes.create_string_buffer(instructions, len(instructions))
    program = ctypes.create_string_buffer(struct.pack("@HP", len(instructions) // 8, ctypes.addressof(text)))
    _control(_SET_SECCOMP, _FILTER, ctypes.addressof(program))


def drop_capabilities() -> None:
    """Give up every privilege apart from the user's own."""
    for capability in range(64):
        try:
            _control(_DROP_BOUNDING, capability)
        except OSError:
            break  # past the last one that this kernel knows, or not ours to drop
    _checked(_libc.capset(struct.pack("=Ii", _CAPABILITY_VERSION_3, 0), bytes(24)))


class Landlock:
    """Access to files by allow-list, for this process and all that come from it; Linux 5.13 and later.

    Raises:
        OSError: the kernel has no Landlock, or it is switched off.
    """

    _EXECUTE, _WRITE, _READ, _READ_FOLDER, _TRUNCATE, _DEVICE = 1, 2, 4, 8, 1 << 14, 1 << 15
    _OF_FILES = _EXECUTE | _WRITE | _READ | _TRUNCATE | _DEVICE
    _RIGHTS_BY_VERSION = (13, 14, 15, 15, 16)  # rights on files that versions 1, 2, ... know; more came in none since
    _TCP, _SIGNALS_AND_SOCKETS = 3, 3

    def __init__(self) -> None:
        version = _system_call(_LANDLOCK_CREATE, None, 0, 1)
        self._all = (1 << self._RIGHTS_BY_VERSION[min(version, 5) - 1]) - 1
        # Version 4 can refuse TCP, version 6 signals and abstract sockets to the world outside; nothing is allowed.
        words = [self._all] + [self._TCP] * (version >= 4) + [self._SIGNALS_AND_SOCKETS] * (version >= 6)
        attributes = struct.pack(f"={len(words)}Q", *words)
        self._rules = _system_call(_LANDLOCK_CREATE, attributes, len(attributes), 0)

    def allow_reading(self, path: str) -> None:
        """A file, or a folder with all that is below it; what does not exist is passed over."""
        self._allow(path, self._EXECUTE | self._READ | self._READ_FOLDER)

    def allow_all(self, path: str) -> None:
        """The same, to read and to write."""
        self._allow(path, self._all)

    def enter(self) -> None:
        """From here on nothing but what was allowed; needs `refuse_new_privileges`."""
        _system_call(_LANDLOCK_RESTRICT, self._rules, 0)
        os.close(self._rules)

    def _allow(self, path: str, rights: int) -> None:
        try:
            place = os.open(path, os.O_PATH | os.O_CLOEXEC)
        except OSError:
            return
        rights &= self._all if os.path.isdir(path) else self._OF_FILES
        _system_call(_LANDLOCK_ADD, self._rules, 1, struct.pack("=Qi", rights & self._all, place), 0)
        os.close(place)
