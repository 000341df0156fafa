"""Which system calls a program may not make: a seccomp filter, which binds root like anyone else.

Above all a program may start no process. What is never started need not be found again, and a program that forks
without end would otherwise fill the system faster than anybody can clear it.
"""

import errno
import os
import platform
import struct
import sys

from gora.sandbox.inside import kernel

# x86-64 and ARM (64 bits) number their calls differently: linux/audit.h, asm/unistd.h. 0: there is no such call.
_ARCHITECTURES = {"x86_64": (0, 0xC000003E), "aarch64": (1, 0xC00000B7)}
_REFUSED = {
    "fork": (57, 0),
    "vfork": (58, 0),
    "execve": (59, 221),
    "execveat": (322, 281),
    "socket": (41, 198),
    "io_uring_setup": (425, 425),
    "ptrace": (101, 117),
    "process_vm_readv": (310, 270),
    "process_vm_writev": (311, 271),
    "tkill": (200, 130),
    "rt_sigqueueinfo": (129, 138),
    "rt_tgsigqueueinfo": (297, 240),
    "pidfd_send_signal": (424, 424),
    "unshare": (272, 97),
    "setns": (308, 268),
    "mount": (165, 40),
    "shmget": (29, 194),
    "msgget": (68, 186),
    "semget": (64, 190),
    "mq_open": (240, 180),
    "add_key": (248, 217),
    "request_key": (249, 218),
    "keyctl": (250, 219),
    "bpf": (321, 280),
    "perf_event_open": (298, 241),
    "userfaultfd": (323, 282),
}
_TO_ITSELF = {"kill": (62, 129), "tgkill": (234, 131)}
_CLONE, _CLONE_3 = (56, 220), (435, 435)
_OF_OTHER_INTERFACE = 0x40000000  # x32, whose calls have numbers of their own
_THREAD = 0x00010000

# Instructions of the filter's machine (linux/bpf_common.h), and what it may answer (linux/seccomp.h).
_LOAD, _IF_EQUAL, _IF_AT_LEAST, _IF_ANY_BIT, _RETURN = 0x20, 0x15, 0x35, 0x45, 0x06
_ALLOW, _KILL, _ERROR = 0x7FFF0000, 0x80000000, 0x00050000
_NUMBER, _ARCHITECTURE, _FIRST_ARGUMENT = 0, 4, 16


def known() -> bool:
    """Whether the calls of this machine are known here."""
    return sys.platform == "linux" and platform.machine() in _ARCHITECTURES and sys.maxsize > 2**32


def refuse_calls() -> None:
    """From here on this process starts none, opens no sockets and sends signals to nobody else; threads it may start.

    Raises:
        OSError: the kernel takes no filters, or the machine is not known.
    """
    if not known():
        raise OSError(errno.ENOSYS, f"no filter for {platform.machine()}")
    kernel.refuse_new_privileges()
    kernel.set_filter(b"".join(_instructions(*_ARCHITECTURES[platform.machine()])))


def _instructions(column: int, architecture: int) -> list[bytes]:
    program = [
        _step(_LOAD, _ARCHITECTURE),
        _step(_IF_EQUAL, architecture, 1, 0),
        _step(_RETURN, _KILL),
        _step(_LOAD, _NUMBER),
        _step(_IF_AT_LEAST, _OF_OTHER_INTERFACE, 0, 1),
        _step(_RETURN, _ERROR | errno.EPERM),
    ]
    for call in _REFUSED.values():
        if call[column]:
            program += [_step(_IF_EQUAL, call[column], 0, 1), _step(_RETURN, _ERROR | errno.EPERM)]
    # Its flags cannot be seen by a filter; without it the C library takes the older call.
    program += [_step(_IF_EQUAL, _CLONE_3[column], 0, 1), _step(_RETURN, _ERROR | errno.ENOSYS)]
    program += _only_with(_CLONE[column], _IF_ANY_BIT, _THREAD)
    for call in _TO_ITSELF.values():
        program += _only_with(call[column], _IF_EQUAL, os.getpid())
    return [*program, _step(_RETURN, _ALLOW)]


def _only_with(call: int, test: int, value: int) -> list[bytes]:
    """Allow a call if its first argument passes a test."""
    return [
        _step(_IF_EQUAL, call, 0, 4),
        _step(_LOAD, _FIRST_ARGUMENT),
        _step(test, value, 0, 1),
        _step(_RETURN, _ALLOW),
        _step(_RETURN, _ERROR | errno.EPERM),
    ]


def _step(code: int, value: int, if_true: int = 0, if_false: int = 0) -> bytes:
    return struct.pack("=HBBI", code, if_true, if_false, value)
