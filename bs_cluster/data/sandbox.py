"""Runs a program that nobody has read, and tells whether it came to its end.

The child holds nothing of ours: the standard library alone (``-I -S``), an empty folder that is removed afterwards, no
environment, no input, output that goes nowhere. It has ``MEMORY_BYTES``, and ``timeout_s`` of processor and of clock;
then it is killed. On Linux (x86-64 and arm64) the kernel also refuses it, by seccomp, what reaches out: networks, other
processes and threads, signals, writing, renaming and deleting files. It may still read what this user may read.
Elsewhere only the limits hold: judge the answers of a model that you do not trust on Linux.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import signal
import subprocess
import sys
import tempfile

TIMEOUT_S = 10.0
MEMORY_BYTES = 1 << 30

# What a child runs before the program. It says that the program came to its end by an exit code that only it knows, so
# that a program which ends itself early has passed nothing.
_CHILD = r"""
import ctypes, os, platform, resource, struct, sys

seconds, memory, passed = int(sys.argv[1]), int(sys.argv[2]), int(sys.stdin.readline())
program = sys.stdin.read()
limits = {"CPU": seconds, "AS": memory, "FSIZE": 0, "NOFILE": 64, "CORE": 0, "NPROC": 0}
for name, limit in limits.items():
    try:
        resource.setrlimit(getattr(resource, "RLIMIT_" + name), (limit, limit))
    except (OSError, ValueError, AttributeError):
        pass

# System calls by their numbers on x86-64 and on arm64, None where there is none; openat2 hides how it opens.
REFUSED = (
    (41, 198), (53, 199), (42, 203), (49, 200), (50, 201),  # socket, socketpair, connect, bind, listen
    (56, 220), (435, 435), (57, None), (58, None), (59, 221), (322, 281),  # clone, fork, vfork, execve
    (62, 129), (200, 130), (234, 131), (129, 138), (297, 240), (424, 424),  # kill, tkill, tgkill, sigqueue, pidfd
    (101, 117), (310, 270), (311, 271), (438, 438), (112, 157), (109, 154),  # ptrace, process_vm, pidfd_getfd, setsid
    (160, 164), (302, 261), (105, 146), (117, 147), (157, 167),  # setrlimit, prlimit64, setuid, setresuid, prctl
    (87, None), (263, 35), (84, None), (82, None), (264, 38), (316, 276),  # unlink, unlinkat, rmdir, rename
    (83, None), (258, 34), (86, None), (265, 37), (88, None), (266, 36),  # mkdir, link, symlink
    (90, None), (91, 52), (268, 53), (452, 452), (92, None), (93, 55), (260, 54), (94, None),  # chmod, chown
    (76, 45), (77, 46), (85, None), (133, None), (259, 33), (437, 437), (188, 5), (235, None), (280, 88),  # truncate …
    (165, 40), (166, 39), (161, 51), (272, 97), (308, 268), (155, 41), (425, 425), (321, 280), (248, 217),  # mount …
    (29, 194), (30, 196), (64, 190), (68, 186), (240, 180), (298, 241), (246, 104), (169, 142),  # shared memory, queues
)
machine = {"x86_64": (0, 0xC000003E), "aarch64": (1, 0xC00000B7)}.get(platform.machine())
if sys.platform == "linux" and machine:
    which, arch = machine
    LOAD, EQUAL, ANY, ABOVE, RETURN = 0x20, 0x15, 0x45, 0x35, 0x06
    REFUSE, ALLOW, KILL = 0x00050001, 0x7FFF0000, 0x80000000  # EPERM
    code = [(LOAD, 0, 0, 4), (EQUAL, 1, 0, arch), (RETURN, 0, 0, KILL), (LOAD, 0, 0, 0)]
    code += [(ABOVE, 0, 1, 0x40000000), (RETURN, 0, 0, KILL)]  # the x32 numbers of x86-64
    for number in (pair[which] for pair in REFUSED if pair[which] is not None):
        code += [(EQUAL, 0, 1, number), (RETURN, 0, 0, REFUSE)]
    # Opening to write or to create: open(path, flags) is x86-64's alone, openat(folder, path, flags) both have.
    for number, flags in (((2, 24), (257, 32)) if which == 0 else ((56, 32),)):
        code += [(EQUAL, 0, 4, number), (LOAD, 0, 0, flags), (ANY, 0, 1, 0o103), (RETURN, 0, 0, REFUSE)]
        code += [(RETURN, 0, 0, ALLOW)]
    code.append((RETURN, 0, 0, ALLOW))
    filters = ctypes.create_string_buffer(b"".join(struct.pack("HBBI", *line) for line in code))
    rules = ctypes.create_string_buffer(struct.pack("HP", len(code), ctypes.addressof(filters)))
    libc = ctypes.CDLL(None, use_errno=True)
    libc.prctl.argtypes = [ctypes.c_int] + [ctypes.c_ulong] * 4
    libc.prctl(38, 1, 0, 0, 0)  # no new privileges, without which a filter is refused
    libc.prctl(22, 2, ctypes.addressof(rules), 0, 0)  # fails on a kernel without filters: then the limits hold alone
try:
    exec(compile(program, "answer", "exec"), {"__name__": "__main__"})
except BaseException:
    os._exit(1)
os._exit(passed)
"""


def ends_well(program: str, timeout_s: float = TIMEOUT_S) -> bool:
    """Whether this Python program runs to its last line without an error, in the time and memory that it has."""
    passed = 64 + secrets.randbelow(64)
    with tempfile.TemporaryDirectory(prefix="answer-") as folder:
        child = subprocess.Popen(
            [sys.executable, "-I", "-S", "-B", "-c", _CHILD, str(int(timeout_s) + 1), str(MEMORY_BYTES)],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            cwd=folder,
            env={"HOME": folder, "LANG": "C.UTF-8"},
            start_new_session=True,  # what it starts, where that is not refused, dies with it
        )
        try:
            with contextlib.suppress(subprocess.TimeoutExpired):
                child.communicate(f"{passed}\n{program}".encode("utf-8", "replace"), timeout=timeout_s)
        finally:
            with contextlib.suppress(ProcessLookupError):  # it and all that it started may be gone
                os.killpg(child.pid, signal.SIGKILL)
            child.wait()
        return child.returncode == passed
