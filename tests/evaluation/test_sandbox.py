"""Model-written code is contained, and cannot write its own verdict."""

import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import venv
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from isolation import REQUIRED, is_required, isolated, skip_reason

from hf_rm.evaluation import sandbox
from hf_rm.evaluation.sandbox import (
    SandboxResult,
    SandboxSupport,
    SandboxUnavailableError,
    run_code,
    sandbox_available,
)

TEST = "assert double(4) == 8"
RIGHT = "def double(x): return 2 * x\n"
AS_ROOT = os.geteuid() == 0


@pytest.fixture(scope="module")
def marked() -> Iterator[Path]:
    """A folder with the sandbox's own script and a Python, by whose name every process of a run is known."""
    with tempfile.TemporaryDirectory(prefix="hf-rm-marked-") as name:
        folder = Path(name)
        folder.chmod(0o755)  # the program runs as nobody that owns it
        (folder / "python").symlink_to(os.path.realpath(sys.executable))
        shutil.copyfile(sandbox.BOX, folder / "box.py")
        yield folder


@pytest.fixture
def attack(marked: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., SandboxResult]]:
    """`run_code`; afterwards a good program still passes, and no process, mount or folder is left."""
    monkeypatch.setattr(sandbox, "BOX", marked / "box.py")
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    (tmp_path / "temporary").mkdir()
    mounts = Path("/proc/self/mountinfo").read_text()

    def run(code: str, *arguments: object, **settings: object) -> SandboxResult:
        return run_code(code, *arguments, python=str(marked / "python"), **settings)  # type: ignore[arg-type]

    yield run
    after = run(RIGHT, TEST)
    assert after.passed, after
    assert marked_processes(marked) == []
    assert Path("/proc/self/mountinfo").read_text() == mounts
    assert list((tmp_path / "temporary").iterdir()) == []


def marked_processes(folder: Path) -> list[str]:
    """Command lines of the processes that name the folder."""
    return [line for line in command_lines() if str(folder) in line]


def command_lines() -> list[str]:
    lines = []
    for name in filter(str.isdigit, os.listdir("/proc")):
        try:
            lines.append(Path(f"/proc/{name}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace"))
        except OSError:
            continue
    return lines


def outside(code: str, **settings: object) -> subprocess.CompletedProcess[str]:
    """The same program as any other of this user's: what an attack does where nothing holds it."""
    command = [sys.executable, "-c", code]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, **settings)  # type: ignore[call-overload]


def test_the_checks_for_what_is_left_find_it(marked: Path) -> None:
    command = [marked / "python", "-c", "print(flush=True); input()"]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    ) as program:
        assert program.stdout is not None and program.stdout.readline()  # its command line is there once it runs
        assert len(marked_processes(marked)) == 1
    assert marked_processes(marked) == []


# What the machine gives


def test_ci_does_not_skip_what_runs_in_the_sandbox() -> None:
    without, there = SandboxSupport(False, "a user namespace", (), False), SandboxSupport(True, "", (), True)
    assert "a user namespace" in skip_reason(without, {}) and REQUIRED in skip_reason(without, {REQUIRED: "0"})
    assert skip_reason(without, {REQUIRED: "1"}) == skip_reason(there, {}) == ""
    script = Path(__file__).parents[2] / ".ci" / "run"
    assert f"export {REQUIRED}=1" in script.read_text().splitlines()


@pytest.mark.skipif(not is_required(os.environ), reason=f"{REQUIRED} is not set")
def test_where_it_is_required_there_is_isolation() -> None:
    assert sandbox_available().available, sandbox_available().missing


# What a program may do


@isolated
def test_a_program_sees_its_standard_input_and_unicode() -> None:
    result = run_code("print('größer', input()[::-1], end='')", stdin="日本\n")
    assert (result.passed, result.stdout) == (True, "größer 本日")


# The verdict


@isolated
@pytest.mark.parametrize(
    "code",
    [
        "def double(x): return 9",
        "import os; os._exit(0)",
        "raise SystemExit(0)",
        "def double(x):\n import os; os._exit(0)",
        "def double(x): raise SystemExit(0)",
        "def double(x): print('passed', 'OK', '{\"passed\": true}')",
        "class Any(int):\n def __eq__(self, other): return True\ndef double(x): return Any(3)",
        "class Any:\n def __eq__(self, other): return True\n def __sub__(self, other): return 0\n"
        "def double(x): return Any()",
        "import builtins\nbuiltins.AssertionError = type('E', (), {})\ndef double(x): raise builtins.AssertionError",
        # every descriptor it has, and the harness's own module
        'import os, sys\nfor n in range(3, 64):\n try: os.write(n, b\'{"passed": true, "done": 1, "detail": ""}\')\n'
        " except OSError: pass\n",
        "import sys\nsys.modules['__main__'].run_tests = sys.modules['__main__'].os._exit = lambda *a: None\n"
        "def double(x): return None",
        "import os, signal\nfor n in range(1, 40):\n try: os.kill(n, signal.SIGKILL) if n != os.getpid() else 0\n"
        " except OSError: pass\ndef double(x): return None",
        "def double(x:",
        "",
    ],
)
def test_a_verdict_is_not_forged(attack: Callable[..., SandboxResult], code: str) -> None:
    assert attack(code, TEST).status in ("failed", "killed")


@isolated
def test_builtins_that_the_program_redefines_are_not_the_tests() -> None:
    code = RIGHT + "def set(x): return 1\n"
    assert not run_code(code, "assert set([double(4)]) == set([9])").passed
    assert run_code("def sum(a, b): return 6", "assert sum(10, 15) == 6", entry_points=["sum"]).passed


# Values


@isolated
def test_values_and_objects_cross() -> None:
    code = """
import math, sys
from collections import Counter
from fractions import Fraction
class Pair:
    def __init__(self, a): self.a = a
def total(pairs): return sum(pair.a for pair in pairs)
def echo(x): return x
def apply(f, x): return f(x)
def grow(items): items.append(4)
def many(): yield from (1, 2)
def fail(): raise KeyError("k")
"""
    tests = [
        "pair = Pair(1); pair.a = 5; assert total([pair, Pair(2)]) == 7",
        "for x in (10**400, -1.5, 'ä', b'x', (1, [2]), {1: {2}}, frozenset({3}), None, 2j, float('inf')):\n"
        "    assert echo(x) == x and type(echo(x)) is type(x)",
        "from fractions import Fraction\nassert echo(Fraction(1, 3)) == Fraction(1, 3)",
        "assert apply(lambda n: n + 1, 2) == 3 and math.isclose(echo(0.1 + 0.2), 0.3)",
        "items = [1]; grow(items); assert items == [1, 4] and list(many()) == [1, 2]",
        "try:\n    fail()\nexcept KeyError:\n    pass\nelse:\n    raise AssertionError",
    ]
    result = run_code(code, tests)
    assert result.passed, result.detail


# Limits


@isolated
@pytest.mark.parametrize(
    ("code", "settings", "status"),
    [
        ("while True: pass", {"timeout": 1.0}, "timeout"),
        ("import time; time.sleep(60)", {"timeout": 0.5}, "timeout"),
        ("x = bytearray(10**9)", {"memory_mb": 128}, "memory"),
        ("while True: print('x' * 1000)", {"max_output": 5000}, "output"),
        ("import os\nwhile True:\n try: os.fork()\n except OSError: pass", {"timeout": 1.0}, "timeout"),
        ("import os, signal; os.kill(os.getpid(), signal.SIGSEGV)", {}, "killed"),
        ("raise SystemExit(3)", {}, "failed"),
        ("open('big', 'wb').write(bytes(3 * 2**20))", {"scratch_mb": 1}, "failed"),
        ("\ud800", {}, "refused"),
    ],
)
def test_a_limit_ends_the_run(attack: Callable[..., SandboxResult], code: str, settings: dict, status: str) -> None:
    result = attack(code, **settings)
    assert result.status == status, result
    assert len(result.stdout) <= 5000


FORKS = """
import os, signal
children = []
try:
    while len(children) < 64:
        child = os.fork()
        if child == 0:
            signal.pause()
        children.append(child)
except OSError:
    pass
print(len(children))
for child in children:
    os.kill(child, signal.SIGKILL)
"""

# Six processes, each far below the limit for one; together they hold 240 MB.
SPREAD = """
import os, time
ready, full = os.pipe()
for _ in range(6):
    if os.fork() == 0:
        held = b"x" * (40 * 2**20)
        os.write(full, b".")
        time.sleep({seconds})
        os._exit(0)
for _ in range(6):
    os.read(ready, 1)
print("held", flush=True)
for _ in range(6):
    os.wait()
"""

FILES = """
for number in range(4):
    with open(f"{folder}/part-{{number}}", "wb") as file:
        file.write(bytes(700 * 2**10))
"""


@isolated
def test_processes_are_counted_together(attack: Callable[..., SandboxResult]) -> None:
    assert outside(FORKS).stdout == "64\n"
    result = attack(FORKS, processes=16)
    assert result.passed and 8 < int(result.stdout) < 16, result


@isolated
def test_memory_spread_over_processes_is_counted_together(attack: Callable[..., SandboxResult]) -> None:
    assert outside(SPREAD.format(seconds=0)).stdout == "held\n"
    result = attack(SPREAD.format(seconds=30), memory_mb=128, timeout=20)
    assert result.status == "memory", result
    assert attack(SPREAD.format(seconds=0.5), memory_mb=512).stdout == "held\n", "what fits may stay"


@isolated
def test_files_are_counted_together(attack: Callable[..., SandboxResult], tmp_path: Path) -> None:
    assert outside(FILES.format(folder=tmp_path)).returncode == 0
    result = attack(FILES.format(folder="."), scratch_mb=2)  # each of them would fit
    assert result.status == "failed" and "No space left on device" in result.stderr, result


# What is outside

SECRET = "not for a program under test"
PROBE = """
import os, signal, socket, sys
done = []
def attempt(name, action):
    try:
        if action() is False:
            return
    except OSError:
        return
    done.append(name)
def connect(family, address):
    with socket.socket(family) as probe:
        probe.settimeout(5)
        probe.connect(address)
def oneself():
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        listening.listen()
        connect(socket.AF_INET, listening.getsockname())
def held(number):
    try:
        return os.pread(number, 100, 0) == {secret!r}.encode()
    except OSError:
        return False
def remove(path):
    open(path, "w").close()
    os.unlink(path)
attempt("scratch", lambda: remove("inside"))
attempt("home", lambda: open({home!r}).read())
attempt("elsewhere", lambda: open({elsewhere!r}).read())
attempt("write", lambda: open({folder!r} + "/written", "w").close())
attempt("interpreter", lambda: open(os.__file__, "a").close())
attempt("harness", lambda: open({harness!r}, "a").close())
attempt("tcp", lambda: connect(socket.AF_INET, ("127.0.0.1", {port})))
attempt("abstract", lambda: connect(socket.AF_UNIX, {abstract!r}))
attempt("unix", lambda: connect(socket.AF_UNIX, {folder!r} + "/socket"))
attempt("loopback", oneself)
attempt("environment", lambda: {secret!r} in open("/proc/{victim}/environ").read())
attempt("descriptor", lambda: any(held(number) for number in range(3, 256)))
attempt("kill", lambda: os.kill({victim}, signal.SIGKILL))
attempt("shadow", lambda: open("/etc/shadow").read())
attempt("top", lambda: remove("/hf-rm-{victim}"))
attempt("root", lambda: os.setuid(0))
print(*done)
"""
EVERY_USER = "home elsewhere write interpreter harness tcp abstract unix loopback environment descriptor kill".split()
ROOT_ALONE = ["shadow", "top", "root"]


class Host:
    """What a program could reach: secrets, a writable folder, sockets that listen, a process of the same user."""

    def __init__(self, stack: ExitStack) -> None:
        # Readable and writable for everybody, as far as the permissions of the folders above go: what keeps a program
        # out has to be the sandbox.
        self.folder = stack.enter_context(tempfile.TemporaryDirectory(dir="/var/tmp"))
        os.chmod(self.folder, 0o777)
        self.elsewhere = Path(self.folder, "secret")
        home = stack.enter_context(tempfile.NamedTemporaryFile("w+", dir=Path.home(), prefix=".hf-rm-secret-"))
        for file in (home, stack.enter_context(self.elsewhere.open("w+"))):
            file.write(SECRET)
            file.flush()
            os.chmod(file.name, 0o644)
        self.home = home.name
        descriptor = os.open(self.elsewhere, os.O_RDONLY)
        stack.callback(os.close, descriptor)
        os.set_inheritable(descriptor, True)
        self.abstract = f"\0hf-rm-{os.getpid()}"
        self.sockets = [
            stack.enter_context(socket.socket(family)) for family in (socket.AF_INET, socket.AF_UNIX, socket.AF_UNIX)
        ]
        for listening, address in zip(
            self.sockets, (("127.0.0.1", 0), self.abstract, f"{self.folder}/socket"), strict=True
        ):
            listening.bind(address)
            listening.listen()
            listening.setblocking(False)
        os.chmod(f"{self.folder}/socket", 0o777)
        self.stack = stack
        self.new_victim()

    def new_victim(self) -> None:
        """A process of this user with a secret in its environment."""
        command = [sys.executable, "-c", "print(flush=True); input()"]
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
        self.victim = self.stack.enter_context(
            subprocess.Popen(command, env={**os.environ, "SECRET": SECRET}, **pipes)  # type: ignore[call-overload]
        )
        self.stack.callback(self.victim.kill)
        self.victim.stdout.readline()  # it runs, under its own environment

    def probe(self) -> str:
        """The program that tries everything."""
        return PROBE.format(
            secret=SECRET,
            home=self.home,
            elsewhere=str(self.elsewhere),
            folder=self.folder,
            harness=str(sandbox.PEER),
            port=self.sockets[0].getsockname()[1],
            abstract=self.abstract,
            victim=self.victim.pid,
        )

    def connections(self) -> int:
        """How many programs have connected."""
        count = 0
        for listening in self.sockets:
            try:
                listening.accept()[0].close()
                count += 1
            except BlockingIOError:
                continue
        return count


@pytest.fixture
def host() -> Iterator[Host]:
    with ExitStack() as stack:
        yield Host(stack)


@isolated
def test_nothing_outside_is_reached(attack: Callable[..., SandboxResult], host: Host, tmp_path: Path) -> None:
    free = outside(host.probe(), close_fds=False, cwd=tmp_path)
    wanted = ["scratch", *EVERY_USER, *(ROOT_ALONE if AS_ROOT else ())]
    for name, path in (("interpreter", os.__file__), ("harness", sandbox.PEER)):
        if not os.access(path, os.W_OK):  # this user may not write there anyway
            wanted.remove(name)
    assert free.stdout.split() == wanted, "without isolation every attempt succeeds, or it would prove nothing"
    assert host.connections() == 3 and host.victim.wait(10) == -signal.SIGKILL
    os.unlink(f"{host.folder}/written")
    host.new_victim()

    result = attack(host.probe())
    assert result.passed and result.stdout.split() == ["scratch"], result
    assert host.connections() == 0 and host.victim.poll() is None
    assert sorted(os.listdir(host.folder)) == ["secret", "socket"]


LOOK = """
import os
status = open("/proc/self/status").read()
print("CapEff:\\t0000000000000000" in status, "NoNewPrivs:\\t1" in status, os.getuid() != 0)
print(len([name for name in os.listdir("/proc") if name.isdigit()]) < 6)
print(*(os.readlink(f"/proc/self/ns/{kind}") for kind in ("mnt", "pid", "net", "ipc", "uts")))
"""


@isolated
def test_a_program_has_no_rights_and_namespaces_of_its_own(attack: Callable[..., SandboxResult]) -> None:
    rights, alone, spaces = attack(LOOK).stdout.splitlines()
    assert (rights, alone) == ("True True True", "True")
    *free, ours = outside(LOOK).stdout.splitlines()
    assert free[1] == "False" and ours == " ".join(
        os.readlink(f"/proc/self/ns/{n}") for n in "mnt pid net ipc uts".split()
    )
    assert not set(spaces.split()) & set(ours.split()) and len(spaces.split()) == 5


KILL_PARENT = "import os, signal\ntry: os.kill(os.getppid(), signal.SIGKILL)\nexcept OSError: pass\nprint('alive')\n"


@isolated
def test_a_program_that_kills_its_parent_kills_nobody(attack: Callable[..., SandboxResult]) -> None:
    caller = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {KILL_PARENT!r}])"
    assert outside(caller).returncode == -signal.SIGKILL
    result = attack(KILL_PARENT)
    assert (result.status, result.stdout) == ("passed", "alive\n")
    assert attack(KILL_PARENT + RIGHT, TEST).passed


ORPHANS = """
import os, sys
for _ in range(3):
    if os.fork() == 0:
        os.setsid()
        if os.fork() == 0:
            os.execv(sys.executable, [sys.executable, "-c", "import time; time.sleep({seconds})"])
        os._exit(0)
"""


@isolated
def test_processes_that_left_their_session_end_with_the_run(
    attack: Callable[..., SandboxResult], marked: Path
) -> None:
    command = [str(marked / "python"), "-c", ORPHANS.format(seconds=2)]
    subprocess.run(command, check=True, timeout=60)
    assert marked_processes(marked), "without isolation they stay"
    deadline = time.monotonic() + 20
    while marked_processes(marked) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert attack(ORPHANS.format(seconds=600)).passed
    assert marked_processes(marked) == []


# Machines without


REFUSED = """
import ctypes, sys
sys.path.insert(0, sys.argv[1])
for capability in (21, 7):  # SYS_ADMIN, SETUID: a container's root
    ctypes.CDLL(None).prctl(24, capability, 0, 0, 0)
import sandbox
try:
    sandbox.run_code("open('/tmp/ran', 'w')")
except OSError as error:
    print(error)
"""


@pytest.mark.skipif(not AS_ROOT, reason="drops root's capabilities")
def test_without_isolation_it_refuses_and_says_what_is_missing() -> None:
    folder = str(Path(sys.modules[run_code.__module__].__file__ or "").parent)
    answer = subprocess.run([sys.executable, "-c", REFUSED, folder], capture_output=True, text=True, timeout=120)
    assert "CAP_SYS_ADMIN" in answer.stdout and "isolation='none'" in answer.stdout, answer.stderr


AS_USER = """
import os, sys
sys.path.insert(0, sys.argv[1])
import sandbox
support = sandbox.sandbox_available()
print(os.getuid(), support.available, support.missing)
if support.available:
    look = "import os, ctypes, pathlib\\nfor number in (1, 2):\\n try: os.open(f'/proc/{number}/fd/5', os.O_WRONLY)"
    look += "\\n except PermissionError: print('held')\\nprint(ctypes.CDLL(None).unshare(0x10000000))"
    look += "\\nprint('CapEff:\\\\t0000000000000000' in pathlib.Path('/proc/self/status').read_text())"
    result = sandbox.run_code(look + "\\ndef double(x): return 2 * x", "assert double(4) == 8")
    print(result.passed, result.stdout.split(), sandbox.run_code("open('/x', 'w')").passed)
"""


@pytest.mark.skipif(not AS_ROOT, reason="changes to another user")
def test_other_users_get_a_user_namespace_or_a_refusal() -> None:
    python = shutil.which("python3", path="/usr/bin:/usr/local/bin")
    if python is None:
        pytest.skip("no Python that another user may start")
    with tempfile.TemporaryDirectory() as folder:  # tmp_path is closed to other users
        os.chmod(folder, 0o755)
        for file in Path(sys.modules[run_code.__module__].__file__ or "").parent.glob("*sandbox*.py"):
            shutil.copyfile(file, Path(folder, file.name))
        answer = subprocess.run(
            [python, "-c", AS_USER, folder],
            capture_output=True,
            text=True,
            timeout=120,
            user=65534,
            group=65534,
            extra_groups=[],
            cwd="/",
            env={"HOME": "/nonexistent"},
        )
    first, *rest = answer.stdout.splitlines()
    if first.startswith("65534 True"):
        assert rest == ["True ['held', 'held', '-1', 'True'] False"], answer
    else:
        assert "isolation='none'" in first, answer


def test_the_user_can_ask_for_no_isolation() -> None:
    assert run_code(RIGHT, TEST, isolation="none").passed
    assert run_code("import os; os._exit(0)", TEST, isolation="none").status == "failed"
    assert run_code("while True: pass", timeout=0.5, isolation="none").status == "timeout"


@pytest.mark.parametrize(
    ("arguments", "named"),
    [({"timeout": 0}, "timeout"), ({"memory_mb": -1}, "memory_mb"), ({"isolation": "some"}, "isolation")],
)
def test_arguments_that_make_no_sense(arguments: dict, named: str) -> None:
    with pytest.raises(ValueError, match=named):
        run_code("pass", **arguments)


def test_unavailable_is_an_os_error_and_a_missing_interpreter_is_named() -> None:
    assert issubclass(SandboxUnavailableError, OSError)
    with pytest.raises(ValueError, match="no-such-python"):
        run_code("pass", python="/no-such-python")


@isolated
def test_python_may_itself_lie_below_tmp() -> None:
    with tempfile.TemporaryDirectory(dir="/tmp") as folder:
        os.chmod(folder, 0o755)  # the program runs as nobody that owns it
        venv.create(folder, symlinks=True)
        script = (
            "from hf_rm.evaluation.sandbox import run_code\n"
            "code = 'import tempfile\\nwith tempfile.TemporaryFile() as f: f.write(b\"1\")\\nprint(6 * 7)'\n"
            "found = run_code(code)\n"
            "assert (found.passed, found.stdout) == (True, '42\\n'), found\n"
        )
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
        command = [str(Path(folder) / "bin" / "python"), "-c", script]
        done = subprocess.run(command, capture_output=True, text=True, timeout=200, env=environment)
    assert done.returncode == 0, done.stderr[-2000:]
