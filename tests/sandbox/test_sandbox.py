"""Programs that misbehave: each is ended, judged and cleared away, behind every kind of wall that the system allows."""

import ctypes
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import textwrap
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from gora.errors import GoraError
from gora.sandbox import run as sandbox
from gora.sandbox.inside.supervisor import remove
from gora.sandbox.run import Limits, Verdict, isolation, run_program, run_programs
from tests.conftest import ROOT

LIMITS = Limits(seconds=10, cpu_seconds=5, memory=512 << 20, file_size=1 << 20, disk=4 << 20, threads=8)
SHORT = Limits(seconds=1, cpu_seconds=5, memory=512 << 20, threads=8)
WALLS = [("namespaces", "landlock", "seccomp"), ("landlock", "seccomp", "guard"), ("guard",)]


def system_allows(wall):
    """Asked of the system itself, so that a wall that gora cannot put up any more is no reason to pass it over."""
    if wall == "namespaces":
        command = "unshare --user --map-root-user --pid --net --ipc --mount --fork true"
        return shutil.which("unshare") and subprocess.run(command.split(), capture_output=True).returncode == 0
    if wall == "landlock":
        ask_for_version, create_ruleset = 1, 444
        return ctypes.CDLL(None).syscall(create_ruleset, None, 0, ask_for_version) > 0
    if wall == "seccomp":
        return "\nSeccomp_filters:" in Path("/proc/self/status").read_text()
    return True


def allowed(names):
    walls = frozenset(names)
    verdict = sandbox._run_alone("import math", Limits(), walls)
    if not verdict.passed and not all(system_allows(wall) for wall in walls):
        pytest.skip(verdict.detail)
    assert verdict.passed, verdict
    return walls


@pytest.fixture(scope="module", params=WALLS, ids="+".join)
def walls(request):
    """One set of walls after the other; those that this system does not allow are passed over."""
    return allowed(request.param)


@pytest.fixture
def place(monkeypatch, tmp_path):
    """Where programs get their folders; afterwards no folder is left there, and no process that had one."""
    place = tempfile.mkdtemp(prefix="gora-test-")
    os.chmod(place, 0o755)
    monkeypatch.setattr(tempfile, "tempdir", place)
    yield Path(place)
    left = None
    for _ in range(100):
        left = processes_in(place), os.listdir(place)
        if not any(left):
            break
        time.sleep(0.1)
    shutil.rmtree(place, ignore_errors=True)
    assert left == ([], [])


def processes_in(place):
    """Processes of the sandbox with a folder there; one whose environment is closed to this user may be one of them."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            command = (process / "cmdline").read_bytes()
            if b"gora.sandbox.inside" not in command:
                continue
            if place.encode() in (process / "environ").read_bytes():
                found.append(process.name)
        except PermissionError:
            found.append(process.name)
        except OSError:
            continue
    return found


PASSING = {
    "nothing": "",
    "imports": "import math, json, collections, dataclasses\nassert math.isqrt(9) == 3",
    "classes of its own": "import dataclasses\n@dataclasses.dataclass\nclass A:\n    x: int\nassert A(1) == A(1)",
    "files of its own": "open('a', 'w').write('x')\nassert open('a').read() == 'x'",
    "much output": "for _ in range(200): print('x' * 100_000)",
    "output that is closed": "import sys\nsys.stdout.close()\nsys.stderr.close()",
    "a thread that goes on": "import threading, time\nthreading.Thread(target=time.sleep, args=(60,)).start()",
    "an exit later on": "import atexit, os\natexit.register(os._exit, 3)",
}

FAILING = {
    "a wrong answer": ("assert 1 == 2, 'no'", "failed", "AssertionError: no"),
    "no Python": ("def f(:\n", "failed", "SyntaxError"),
    "no text": ("\x00", "failed", ""),
    "no characters": ("x = '\ud800'", "failed", "UnicodeEncodeError"),
    "an error that cannot be shown": (
        "class E(Exception):\n    def __str__(self): return 1 / 0\nraise E",
        "failed",
        "E",
    ),
    "no end of recursion": ("def f(): f()\nf()", "failed", "RecursionError"),
    "leaving": ("import sys\nsys.exit(0)", "exited", "SystemExit"),
    "leaving at once": ("import os\nos._exit(0)", "exited", "exit code 0"),
    "an interrupt": ("raise KeyboardInterrupt", "failed", "KeyboardInterrupt"),
    "a segmentation fault": ("import ctypes\nctypes.string_at(0)", "crashed", "SIGSEGV"),
    "one large object": ("x = bytearray(1 << 32)", "out of memory", "MemoryError"),
    "many objects": ("x = []\nwhile True: x.append(bytearray(1 << 20))", "out of memory", "MemoryError"),
    "a large file": ("f = open('a', 'wb')\nfor _ in range(64): f.write(bytes(1 << 20))", "failed", "OSError"),
    "replaced functions": (
        "import os, sys, json\nos.write = json.dumps = os._exit = lambda *a, **k: b'{}'\nsys.stdout = None\n1 / 0",
        "failed",
        "ZeroDivisionError",
    ),
    "a claim of success": (
        """
import os
for fd in range(3, 100):
    try:
        os.write(fd, b'{"outcome": "passed", "detail": ""}')
    except OSError:
        pass
os._exit(0)
""",
        "exited",
        "exit code 0",
    ),
    "a claim that all is broken": (
        """
import os
for fd in range(3, 100):
    try:
        os.write(fd, b'{"outcome": "broken", "detail": "x"}')
    except OSError:
        pass
os._exit(0)
""",
        "exited",
        "exit code 0",
    ),
}

ENDLESS = {
    "computing": "while True: pass",
    "sleep": "import time\ntime.sleep(60)",
    "sleep without files": "import os, time\nos.closerange(0, 64)\ntime.sleep(60)",
    "output": "while True: print('x' * 10_000)",
    "errors": "import sys\nwhile True: sys.stderr.write('x' * 10_000)",
    "deaf to signals": """
import signal, time
for number in signal.valid_signals():
    try:
        signal.signal(number, signal.SIG_IGN)
    except (OSError, ValueError):
        pass
while True: time.sleep(1)
""",
    "swallowed errors": "while True:\n    try:\n        while True: pass\n    except BaseException: pass",
    "input": "import os\nassert os.read(0, 1) == b''\nimport time\ntime.sleep(60)",
}

DAEMON = """
import os, time
if os.fork() == 0:
    os.setsid()
    if os.fork():
        os._exit(0)
    os.closerange(0, 64)
    time.sleep(60)
os.wait()
"""

# Whether these come to their end differs from system to system; that they do no harm does not. None starts more than
# some hundred processes, even where nothing keeps it from doing so: a test must not be what it warns of.
HARMFUL = {
    "many processes": """
import os, time
for _ in range(200):
    if os.fork() == 0:
        time.sleep(60)
        os._exit(0)
""",
    "many processes, come what may": """
import os, time
for _ in range(200):
    try:
        if os.fork() == 0:
            os.setsid()
            time.sleep(60)
            os._exit(0)
    except OSError:
        pass
time.sleep(60)
""",
    "daemons": DAEMON,
    "threads": "import threading, time\nfor _ in range(500): threading.Thread(target=time.sleep, args=(60,)).start()",
    "signals to all": "import os, signal\nos.kill(-1, signal.SIGKILL)\nwhile True: pass",
    "signals to the parent": "import os, signal\nos.kill(os.getppid(), signal.SIGKILL)\nwhile True: pass",
    "another program": "import subprocess\nsubprocess.run(['sleep', '60'])",
    "another program instead": "import os\nos.execv('/bin/sleep', ['sleep', '60'])",
    "a shell": "import os, sys\nsys.exit(os.system('sleep 60'))",
    "many files": "for n in range(400): open(str(n), 'wb').write(bytes(1 << 18))\nimport time\ntime.sleep(60)",
    "a folder that cannot be opened": "import os\nos.makedirs('a/b')\nopen('a/b/c', 'w')\nos.chmod('a', 0)\n1 / 0",
    "an abort": "import os\nos.abort()",
}


def run_all(sources, limits, walls):
    """The verdicts by name; several programs at a time."""
    with ThreadPoolExecutor(4) as pool:
        verdicts = pool.map(lambda source: run_program(source, limits, walls), sources.values())
        return dict(zip(sources, verdicts, strict=True))


def test_programs_that_come_to_their_end_pass(walls, place):
    verdicts = run_all(PASSING, LIMITS, walls)
    assert {name: verdict.detail for name, verdict in verdicts.items() if not verdict.passed} == {}
    assert all(len(verdict.output) <= LIMITS.output for verdict in verdicts.values())


def test_programs_that_fail_say_why(walls, place):
    verdicts = run_all({name: source for name, (source, _, _) in FAILING.items()}, LIMITS, walls)
    for name, (_, outcome, detail) in FAILING.items():
        assert (verdicts[name].outcome, detail in verdicts[name].detail) == (outcome, True), (name, verdicts[name])


def test_programs_without_end_are_ended(walls, place):
    for name, verdict in run_all(ENDLESS, SHORT, walls).items():
        assert verdict.outcome == "timed out", (name, verdict)
        assert SHORT.seconds <= verdict.seconds < 9
        assert len(verdict.output) <= SHORT.output


def test_a_program_that_computes_too_much_is_ended(walls, place):
    verdict = run_program("while True: pass", Limits(seconds=30, cpu_seconds=1), walls)
    assert (verdict.outcome, "of computing" in verdict.detail) == ("timed out", True)


def test_programs_that_do_harm_are_ended(walls, place):
    verdicts = run_all(HARMFUL, Limits(**{**vars(LIMITS), "seconds": 2}), walls)
    assert [name for name, verdict in verdicts.items() if verdict.passed] == []
    assert run_program("", LIMITS, walls).passed


@pytest.mark.parametrize("name", ["many processes", "daemons", "another program", "another program instead"])
def test_a_program_starts_no_process(walls, place, name):
    verdict = run_program(HARMFUL[name], LIMITS, walls)
    assert (verdict.outcome, verdict.detail.partition(":")[0]) == ("failed", "PermissionError")


@pytest.mark.parametrize("names", [("namespaces",), ("landlock",), ()], ids=str)
def test_a_process_that_was_started_all_the_same_does_not_outlive_its_program(place, names):
    walls = allowed(names)
    assert run_program(DAEMON, LIMITS, walls).passed
    assert run_program(DAEMON + "time.sleep(60)", SHORT, walls).outcome == "timed out"


def test_the_beginning_of_what_is_printed_is_kept(walls, place):
    verdict = run_program("import sys\nprint('one')\nprint('two', file=sys.stderr)\n1 / 0", LIMITS, walls)
    assert sorted(verdict.output.split()) == ["one", "two"]


def test_nothing_of_the_environment_is_seen(walls, place, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "a-very-secret-token")
    child = subprocess.Popen(["sleep", "60"])  # its environment is as open as that of any process of this user
    source = f"""
import glob, os
assert not [name for name in os.environ if "TOKEN" in name]
assert os.environ["HOME"] == os.getcwd()
for path in ["/proc/self/environ", "/proc/{os.getpid()}/environ", *glob.glob("/proc/[0-9]*/environ")]:
    try:
        seen = open(path, "rb").read()
    except OSError:
        continue
    assert b"a-very-secret" not in seen, path
"""
    try:
        verdict = run_program(source, LIMITS, walls)
    finally:
        child.kill()
        child.wait()
    assert verdict.passed, verdict


@pytest.mark.parametrize(
    "attempt",
    [
        "open({path!r}, 'w')",
        "open({path!r}, 'a')",
        "import os\nos.open({path!r}, os.O_WRONLY | os.O_CREAT)",
        "import os\nos.symlink({folder!r}, 'link')\nopen('link/' + os.path.basename({path!r}), 'w')",
        "import os\nos.remove({kept!r})",
        "import os\nos.rename({kept!r}, {path!r})",
        "import os\nos.truncate({kept!r}, 0)",
        "import os\nos.chmod({kept!r}, 0)",
        "import os\nos.mkdir({path!r})",
        "import shutil\nshutil.rmtree({folder!r})",
    ],
)
def test_nothing_is_written_elsewhere(walls, place, tmp_path, attempt):
    kept, path = tmp_path / "kept", tmp_path / "new"
    kept.write_text("kept")
    before = kept.stat()
    verdict = run_program(attempt.format(folder=str(tmp_path), path=str(path), kept=str(kept)), LIMITS, walls)
    assert verdict.outcome == "failed"
    assert os.listdir(tmp_path) == ["kept"]
    assert kept.read_text() == "kept"
    assert kept.stat().st_mode == before.st_mode


def test_what_a_link_leads_to_is_left_alone(walls, place, tmp_path):
    (tmp_path / "folder").mkdir(mode=0o755)
    run_program(f"import os\nos.symlink({str(tmp_path / 'folder')!r}, 'link')", LIMITS, walls)
    remains = place / "remains"
    remains.mkdir()
    (remains / "link").symlink_to(tmp_path / "folder")
    remove(str(remains))
    assert os.stat(tmp_path / "folder").st_mode & 0o777 == 0o755


def test_the_network_cannot_be_used(walls, place):
    with (
        socket.create_server(("127.0.0.1", 0)) as server,
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as datagrams,
    ):
        datagrams.bind(("127.0.0.1", 0))
        server.settimeout(0.2)
        datagrams.settimeout(0.2)
        for source in (
            f"import socket\nsocket.create_connection({server.getsockname()!r}, timeout=2)",
            f"import socket\ns = socket.socket(2, socket.SOCK_DGRAM)\ns.sendto(b'x', {datagrams.getsockname()!r})",
            f"import urllib.request\nurllib.request.urlopen('http://127.0.0.1:{server.getsockname()[1]}', timeout=2)",
        ):
            assert run_program(source, LIMITS, walls).outcome == "failed"
        for listening in (server.accept, lambda: datagrams.recv(1)):
            with pytest.raises(TimeoutError):
                listening()


def test_programs_see_no_others_behind_namespaces(walls, place):
    if "namespaces" not in walls:
        pytest.skip("for namespaces")
    assert run_program("import os\nassert os.getpid() == 1", LIMITS, walls).passed


def test_what_is_not_allowed_cannot_be_read_behind_landlock(walls, place, tmp_path):
    if "landlock" not in walls:
        pytest.skip("for Landlock")
    (tmp_path / "secret").write_text("secret")
    assert "PermissionError" in run_program(f"open({str(tmp_path / 'secret')!r})", LIMITS, walls).detail


READABLE = ["/etc/ld.so.cache", "/etc/localtime", "/etc/passwd", os.__file__]
CLOSED = ["/etc/hostname", "/etc/hosts", "/etc/shadow", "/etc/fstab", str(Path.home() / ".bashrc"), __file__]
CLOSED += [str(ROOT / "README.md"), str(ROOT / "gora" / "errors.py")]


def test_of_the_system_and_the_checkout_only_what_python_needs_can_be_read_behind_landlock(walls, place):
    if "landlock" not in walls:
        pytest.skip("for Landlock")
    tried = {path: f"open({path!r}, 'rb').read()" for path in (*READABLE, *CLOSED) if os.path.exists(path)}
    assert tried.keys() & {__file__, "/etc/hosts"}
    verdicts = run_all(tried, LIMITS, walls)
    assert {path for path, verdict in verdicts.items() if verdict.passed} == tried.keys() & set(READABLE)
    assert all("PermissionError" in verdict.detail for verdict in verdicts.values() if not verdict.passed)


def test_what_a_program_needs_of_python_is_there(walls, place):
    source = "import numpy, time, zoneinfo, pwd, sysconfig\ntime.localtime()\nassert numpy.ones(3).sum() == 3"
    assert run_program(source, LIMITS, walls).passed


BWRAP = """#!{python}
import json, os, sys
given, command = sys.argv[1 : sys.argv.index("--")], sys.argv[sys.argv.index("--") + 1 :]
open({record!r}, "w").write(json.dumps(given))
os.execv(command[0], [part.replace("/run/gora", {root!r}) for part in command])
"""


def test_bubblewrap_is_taken_first_where_it_is_and_shows_only_what_python_needs(place, tmp_path, monkeypatch):
    """A stand-in notes what it is told to show and runs the program, since Bubblewrap is not everywhere."""
    record, program = tmp_path / "told.json", tmp_path / "bin" / "bwrap"
    program.parent.mkdir()
    program.write_text(BWRAP.format(python=sys.executable, record=str(record), root=str(ROOT)))
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{program.parent}:{os.environ['PATH']}")
    verdict = run_program("print('it runs')", LIMITS, frozenset({"bwrap", "guard"}))
    assert (verdict.passed, verdict.output) == (True, "it runs\n")
    told = json.loads(record.read_text())
    assert {"--unshare-all", "--die-with-parent", "--new-session"} <= set(told)
    shown = {told[place + 1] for place, word in enumerate(told) if word.startswith("--ro-bind")}
    assert {"/usr", sys.prefix, sys.base_prefix, "/etc/ld.so.cache"} <= shown
    assert not {"/", "/etc", str(Path.home()), str(ROOT), str(ROOT / "gora")} & shown
    of_gora = {path for path in shown if Path(path).is_relative_to(ROOT / "gora")}
    assert of_gora and all(path.endswith((".py", "sandbox")) for path in of_gora)
    assert "bwrap" in isolation.__wrapped__().walls


@pytest.mark.parametrize(
    ("found", "missing"),
    [
        (sandbox.Isolation(frozenset({"namespaces", "landlock", "seccomp"})), ""),
        (sandbox.Isolation(frozenset({"bwrap", "seccomp"})), ""),
        (sandbox.Isolation(frozenset({"namespaces", "landlock", "seccomp"}), as_root=True), "remain root"),
        (sandbox.Isolation(frozenset({"namespaces", "seccomp"})), "no Landlock"),
        (sandbox.Isolation(frozenset({"landlock", "seccomp", "guard"})), "no namespaces"),
    ],
    ids=["whole", "bubblewrap", "root", "no Landlock", "no namespaces"],
)
def test_what_the_sandbox_lacks_is_said(found, missing):
    assert found.complete == (not missing)
    assert missing in found.words()[-1]


def test_many_run_at_a_time_and_keep_their_order(place):
    done = []
    sources = [f"assert {number} % 3" for number in range(12)]
    verdicts = run_programs(sources, LIMITS, lambda: done.append(1))
    assert [verdict.passed for verdict in verdicts] == [number % 3 > 0 for number in range(12)]
    assert len(done) == 12


def test_an_exception_ends_those_that_run(place):
    def stop():
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_programs(["", *["import time\ntime.sleep(60)"] * 8], Limits(), stop)


STOPPED = """
import sys, tempfile
from gora.sandbox import run as sandbox
from gora.sandbox.inside.supervisor import remove
from gora.runtime.interrupt import StopSignal, stopping_at_once
tempfile.tempdir = sys.argv[1]
walls = frozenset(sys.argv[2].split("+"))
sandbox.isolation = lambda: sandbox.Isolation(walls)
try:
    with stopping_at_once():
        sandbox.run_programs(["import time\\nopen('x', 'w')\\ntime.sleep(60)"] * 6, sandbox.Limits(), lambda: None)
except StopSignal:
    sys.exit(3)
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_a_run_that_is_stopped_leaves_nothing_behind(walls, place, number):
    root = str(Path(sandbox.__file__).parents[2])
    script = [sys.executable, "-c", STOPPED, str(place), "+".join(sorted(walls))]
    running = subprocess.Popen(script, env={**os.environ, "PYTHONPATH": root})
    end = time.monotonic() + 30
    while not os.listdir(place) or len(processes_in(str(place))) < 3:
        assert time.monotonic() < end
        assert running.poll() is None
        time.sleep(0.05)
    running.send_signal(number)
    assert running.wait(timeout=30) == (-number if number == signal.SIGKILL else 3)


def test_whoever_is_killed_before_it_has_said_what_to_run_leaves_no_folder(place):
    before_the_request = textwrap.dedent("""
        import os, signal, subprocess, sys, tempfile
        from gora.sandbox import run as sandbox
        tempfile.tempdir = sys.argv[1]
        subprocess.Popen.communicate = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
        sandbox._run_alone("pass", sandbox.Limits(), frozenset(["guard"]))
    """)
    script = [sys.executable, "-c", before_the_request, str(place)]
    root = str(Path(sandbox.__file__).parents[2])
    assert subprocess.run(script, env={**os.environ, "PYTHONPATH": root}).returncode == -signal.SIGKILL


def test_a_folder_that_cannot_be_made_is_no_fault_of_the_program(place, monkeypatch):
    monkeypatch.setattr(sandbox, "new_path", lambda kind: str(place / "taken"))
    (place / "taken" / "by another").mkdir(parents=True)
    verdict = sandbox._run_alone("pass", Limits(), frozenset(["guard"]))
    assert verdict.outcome == "broken"
    assert "no folder" in verdict.detail
    assert not (place / "taken.new").exists()


def test_the_strongest_walls_are_taken_and_named(monkeypatch):
    refused: list[frozenset[str]] = []

    def run(source, limits, walls):
        return Verdict(outcome="broken" if walls & set(refused) else "passed", detail="refused", seconds=0.0, output="")

    monkeypatch.setattr(sandbox, "_run_alone", run)
    monkeypatch.setattr(shutil, "which", lambda name: None)
    find = isolation.__wrapped__
    assert find().complete
    assert "no network" in " ".join(find().words())
    assert "guard" not in find().walls
    refused[:] = ["namespaces"]
    assert find().walls == {"landlock", "seccomp", "guard"}
    assert not find().complete
    assert "may get past" in find().words()[-1]
    refused[:] = ["landlock"]
    assert not find().complete
    assert "no Landlock" in find().words()[-1]
    refused[:] = ["seccomp"]
    assert find().walls == {"namespaces", "landlock", "guard"}
    refused[:] = ["namespaces", "landlock", "seccomp"]
    assert find().walls == {"guard"}
    refused[:] = ["namespaces", "landlock", "seccomp", "guard"]
    with pytest.raises(GoraError, match="refused"):
        find()


def test_what_cannot_be_run_apart_is_not_run(place, monkeypatch):
    monkeypatch.setattr(
        sandbox, "_run", lambda *arguments: Verdict(outcome="broken", detail="no such wall", seconds=0.0, output="")
    )
    with pytest.raises(GoraError, match="no such wall"):
        run_program("", LIMITS, frozenset({"guard"}))
    with pytest.raises(GoraError, match="no such wall"):
        run_programs([""], LIMITS, lambda: None)


def test_a_watcher_that_ends_is_a_failure(place, monkeypatch):
    monkeypatch.setattr(sys, "executable", shutil.which("false"))
    verdict = run_program("", LIMITS, frozenset({"guard"}))
    assert (verdict.outcome, verdict.detail) == ("crashed", "the process that watched it has ended: exit code 1")
