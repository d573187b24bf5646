"""Model-written code is contained, and cannot write its own verdict."""

import os
import shutil
import subprocess
import sys
import tempfile
import venv
from pathlib import Path

import pytest

from hf_rm.evaluation.sandbox import SandboxUnavailableError, run_code, sandbox_available

SUPPORT = sandbox_available()
isolated = pytest.mark.skipif(not SUPPORT.available, reason=SUPPORT.missing)
TEST = "assert double(4) == 8"
RIGHT = "def double(x): return 2 * x\n"


@isolated
def test_a_program_sees_its_standard_input_and_unicode() -> None:
    result = run_code("print('größer', input()[::-1], end='')", stdin="日本\n")
    assert (result.passed, result.stdout) == (True, "größer 本日")


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
def test_a_verdict_is_not_forged(code: str) -> None:
    assert run_code(code, TEST).status in ("failed", "killed")


@isolated
def test_builtins_that_the_program_redefines_are_not_the_tests() -> None:
    code = RIGHT + "def set(x): return 1\n"
    assert not run_code(code, "assert set([double(4)]) == set([9])").passed
    assert run_code("def sum(a, b): return 6", "assert sum(10, 15) == 6", entry_points=["sum"]).passed


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
def test_a_limit_ends_the_run(code: str, settings: dict, status: str) -> None:
    result = run_code(code, **settings)
    assert result.status == status, result
    assert len(result.stdout) <= 5000


@isolated
def test_nothing_outside_is_seen_changed_or_left(tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text("secret")
    secret.chmod(0o600)
    mark = f"left-behind-{os.getpid()}"
    code = f"""
import os, socket, subprocess, sys
held = []
def attempt(name, action):
    try:
        action()
    except OSError:
        held.append(name)
attempt("secret", lambda: open({str(secret)!r}).read())
attempt("shadow", lambda: open("/etc/shadow").read())
attempt("home", lambda: os.listdir({str(Path.home())!r} + "/.ssh"))
attempt("usr", lambda: open("/usr/x", "w"))
attempt("top", lambda: open("/x", "w"))
attempt("python", lambda: open(os.__file__, "a"))
attempt("socket", lambda: socket.create_connection(("127.0.0.1", 9), 1))
attempt("outer", lambda: socket.create_connection(("192.0.2.1", 9), 1))
attempt("parent", lambda: open(f"/proc/{{os.getppid()}}/environ").read())
attempt("root", lambda: os.setuid(0))
attempt("descriptors", lambda: os.read(6, 1))
open("inside", "w").write("may")
pids = [int(name) for name in os.listdir("/proc") if name.isdigit()]
status = open("/proc/self/status").read()
if os.fork() == 0:
    os.setsid()
    os.execv(sys.executable, [sys.executable, "-c", "import time; time.sleep(600)", {mark!r}])
print(sorted(held), len(pids) < 6, os.getuid() != 0)
print("CapEff:\\t0000000000000000" in status, "NoNewPrivs:\\t1" in status)
"""
    result = run_code(code)
    names = ["descriptors", "home", "outer", "parent", "python", "root", "secret", "shadow", "socket", "top", "usr"]
    assert result.stdout.split("\n")[:2] == [f"{names} True True", "True True"], result
    assert not any(mark.encode() in line for line in command_lines())


def command_lines() -> list[bytes]:
    lines = []
    for name in filter(str.isdigit, os.listdir("/proc")):
        try:
            lines.append(Path(f"/proc/{name}/cmdline").read_bytes())
        except OSError:
            continue
    return lines


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


@pytest.mark.skipif(os.geteuid() != 0, reason="drops root's capabilities")
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


@pytest.mark.skipif(os.geteuid() != 0, reason="changes to another user")
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
