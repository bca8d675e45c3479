"""A program that nobody has read can neither stay, nor grow, nor reach out, and passes at its own last line only."""

import os
import socket
import sys
import time
from pathlib import Path

import pytest

from bs_cluster.data.sandbox import ends_well

linux = pytest.mark.skipif(sys.platform != "linux", reason="what the kernel refuses is Linux's seccomp")


def refused(action: str) -> str:
    """A program that passes exactly if ``action`` is not permitted."""
    return f"import os, socket\ntry:\n    {action}\nexcept PermissionError: pass\nelse: raise SystemExit"


def test_a_program_that_reaches_its_end_has_passed():
    assert ends_well("import math, random, re, collections\nassert math.gcd(12, 18) == 6\nprint('é')")


@pytest.mark.parametrize(
    "program",
    [
        "assert False",
        "def f(:",
        "import sys; sys.exit(0)",
        "import os; os._exit(0)",
        "import numpy",
        "input()",
        "\0",
        "import os; assert os.listdir('.'), 'its folder is empty'",
        "import os; assert os.environ.get('PATH')",
    ],
)
def test_anything_else_has_not(program: str):
    assert not ends_well(program)


@pytest.mark.parametrize(
    "program",
    [
        "while True: pass",
        "while True: print('x' * 100_000)",
        "def again():\n    while True:\n        try: again()\n        except BaseException: pass\nagain()",
        "import signal, time\nsignal.signal(signal.SIGTERM, lambda *_: None)\ntime.sleep(60)",
    ],
    ids=["busy", "loud", "stubborn", "deaf"],
)
def test_what_does_not_end_is_ended(program: str):
    begun = time.monotonic()
    assert not ends_well(program, timeout_s=1)
    assert time.monotonic() - begun < 5


def test_memory_is_bounded():
    assert ends_well("try:\n    bytearray(2 << 30)\nexcept MemoryError:\n    pass\nelse:\n    raise SystemExit")


@linux
@pytest.mark.parametrize(
    "action",
    [
        "socket.socket()",
        "os.fork()",
        "os.posix_spawn('/bin/true', ['true'], {})",
        "os.execv('/bin/true', ['true'])",
        "os.kill(os.getppid(), 0)",
        "os.setsid()",
        "open('new', 'w')",
        "os.mkdir('new')",
    ],
)
def test_nothing_reaches_out(action: str):
    assert ends_well(refused(action))


@linux
def test_limits_stay_and_no_thread_starts():
    assert ends_well(
        "import resource, threading\n"
        "def more(): resource.setrlimit(resource.RLIMIT_AS, (1 << 40, 1 << 40))\n"
        "def thread(): threading.Thread(target=print).start()\n"
        "for action in (more, thread):\n"
        "    try: action()\n"
        "    except (PermissionError, ValueError, RuntimeError): continue\n"
        "    raise SystemExit\n"
    )


@linux
def test_files_of_others_stay_as_they_are(tmp_path: Path):
    file = tmp_path / "precious"
    file.write_text("here")
    for action in (f"os.unlink({str(file)!r})", f"open({str(file)!r}, 'r+')", f"os.rename({str(file)!r}, 'x')"):
        assert ends_well(refused(action))
    assert file.read_text() == "here"


@linux
def test_a_fork_bomb_starts_nothing():
    before = len(os.listdir("/proc"))
    assert not ends_well("import os\nwhile True:\n    try: os.fork()\n    except OSError: pass", timeout_s=1)
    assert len(os.listdir("/proc")) < before + 50


@linux
def test_no_listener_is_reached():
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        assert ends_well(refused(f"socket.create_connection(('127.0.0.1', {port}), 1)"))
