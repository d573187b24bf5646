"""A sandbox for model-written Python.

[`run_code`] runs a program, and tests of it, apart from the caller and from each other: fresh interpreters under an
unprivileged user, in namespaces of their own (PID, mount, network, IPC, UTS), in a root file system that holds the
system's libraries and Python read-only and one small scratch folder. Where that is not to be had it raises
[`SandboxUnavailableError`], which names what is missing, unless the caller says ``isolation="none"``.

How it is decided whether tests passed. The program and its tests run in two processes. The tests' process holds the
tests, the only descriptor that takes a verdict, and stand-ins for the program's functions: a call sends the arguments
as data and gets data back. The program never sees the tests and cannot write the verdict. So it does not help it to
exit early, to print what a passing run prints, to change `assert`, exit hooks, built-ins or modules of its own
process, or to return an object that claims to equal everything.

What holds, with ``isolation="full"``:

* nothing outside the scratch folder is written; the folder lives in memory and ends with the run;
* home folders, other users' files, other processes and their environment are not visible;
* no network (not even the loopback device is up), no unix sockets of the host;
* memory, CPU time, processes, open files, size of files, of the scratch folder and of the output are limited, and a
  wall-clock timeout ends everything: when the box's first process ends, the kernel kills all others in it;
* no capability, no set-user-id program, no nested user namespace; on x86-64 and arm64 a seccomp filter refuses
  the calls that no ordinary program makes (ptrace, mount, keys, bpf and their like).

What is not defended against: faults in the kernel; what can be inferred from timing or from world-readable files below
/usr, /etc/ld.so.cache and the Python installation (an editable install's sources are elsewhere and not seen); memory
taken faster than it is watched (every process is limited by itself, their sum is looked at every 50 ms); a program
that knows the expected answers, and tests that let the program decide (``f(x).equals(y)``, or ``f(x) == C(y)`` with a
class of the program). With ``isolation="none"`` only the limits on each process, the timeout and the two
processes remain: a hostile program can read and write what the caller can, and forge the verdict.

What tests may do across the two processes: call functions and classes, read and set attributes, iterate and index,
catch built-in exceptions, pass functions and lambdas; a list, dict or set that the program changes in place is
changed
for the caller. Values are rebuilt as built-in types (a named tuple arrives as a tuple), with `Decimal`, `Fraction`,
`deque` and the types of `datetime`; any other object stays with the program, and comparing it with plain data is
false. Tests cannot hand instances of their own classes to the program.
"""

from __future__ import annotations

import json
import math
import os
import platform
import subprocess
import sys
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal, NamedTuple

Status = Literal["passed", "failed", "timeout", "memory", "output", "killed", "refused"]

BOX = Path(__file__).with_name("_sandbox_box.py")
PEER = Path(__file__).with_name("_sandbox_peer.py")
CODE_LIMIT = 2**20
START_GRACE = 90.0  # seconds beyond the timeout to build the box and start two interpreters on a busy machine
LAYERS = (
    "namespaces (PID, mount, network, IPC, UTS)",
    "an unprivileged user",
    "a root file system of its own, read-only but for a scratch folder",
    "no new privileges",
    "limits on memory, CPU, processes, files and output",
)
REMEDY = (
    "Run as root with CAP_SYS_ADMIN, or as a user who may make user namespaces (sysctl user.max_user_namespaces above "
    "0, kernel.unprivileged_userns_clone=1, kernel.apparmor_restrict_unprivileged_userns=0 where they exist; a "
    "container needs a seccomp profile that allows unshare and mount). "
    "isolation='none' runs the code without protection."
)


class SandboxUnavailableError(OSError):
    """Raised instead of running model-written code without isolation; the message names what is missing."""


class SandboxResult(NamedTuple):
    """How one program fared.

    Attributes:
        passed: Whether every test passed or, without tests, the program ended with exit status 0.
        status: ``"passed"``; ``"failed"`` (a test, an exception, an exit status); ``"timeout"`` (wall clock or CPU);
            ``"memory"``; ``"output"`` (more than `max_output`); ``"killed"`` (a signal ended it); ``"refused"`` (text
            that is no program: nothing was run).
        stdout: What was printed, at most `max_output` bytes, invalid UTF-8 replaced.
        stderr: The same for standard error.
        seconds: Wall-clock time from the program's start to its end.
        detail: Why it did not pass, where that is known: the failing test and its exception.

    Example:
        >>> SandboxResult(True, "passed", "", "", 0.1).detail
        ''
    """

    passed: bool
    status: Status
    stdout: str
    stderr: str
    seconds: float
    detail: str = ""


class SandboxSupport(NamedTuple):
    """What isolation this machine gives.

    Attributes:
        available: Whether [`run_code`] runs here with ``isolation="full"``.
        missing: What is missing otherwise, in words; empty if nothing is.
        layers: The layers that hold (none of them where the whole is not to be had).
        seccomp: Whether the filter on system calls is known for this kind of machine.

    Example:
        >>> SandboxSupport(False, "a user namespace: Operation not permitted", (), False).available
        False
    """

    available: bool
    missing: str
    layers: tuple[str, ...]
    seccomp: bool


@lru_cache(maxsize=8)
def _python_folders(python: str) -> tuple[str, ...]:
    """The folders an interpreter needs to start, as it names them."""
    script = (
        "import json, os, sys, sysconfig; paths = sysconfig.get_paths();"
        "print(json.dumps([sys.prefix, sys.base_prefix, sys.exec_prefix, sys.base_exec_prefix, paths['stdlib'],"
        "paths['platstdlib'], os.path.dirname(os.path.realpath(sys.executable)), os.path.dirname(sys.executable)]))"
    )
    try:
        answer = subprocess.run([python, "-I", "-c", script], capture_output=True, check=True, timeout=60)
    except (OSError, subprocess.SubprocessError) as error:
        raise ValueError(f"python={python!r} does not start ({error}); pass a Python interpreter's path.") from error
    return tuple(dict.fromkeys(os.path.abspath(folder) for folder in json.loads(answer.stdout)))


def _binds(python: str) -> list[tuple[str, str]]:
    """(real folder, name it goes by) of what the interpreter needs, outermost first."""
    home = os.path.realpath(os.path.expanduser("~"))
    pairs = set()
    for folder in _python_folders(python):
        real = os.path.realpath(folder)
        if os.path.commonpath([home, real]) == real and real != "/usr":
            raise SandboxUnavailableError(
                f"python={python!r} is installed in {real}, which holds the home folder: it cannot be shown to "
                "model-written code. Use an interpreter in a folder of its own, such as a virtual environment."
            )
        pairs |= {(real, folder), (real, real)}  # by both names
    return sorted(pairs, key=lambda pair: (pair[1].count("/"), pair[1]))


def _launch(request: dict[str, Any]) -> dict[str, Any]:
    environment = {key: os.environ[key] for key in ("LD_LIBRARY_PATH",) if key in os.environ}
    process = subprocess.Popen(
        [sys.executable, "-I", "-S", str(BOX)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        start_new_session=True,
        cwd="/",
        env=environment,
    )
    try:
        answer, errors = process.communicate(json.dumps(request).encode(), request["timeout"] + START_GRACE)
    except subprocess.TimeoutExpired:
        return {"status": "timeout", "detail": "the sandbox itself did not end in time"}
    finally:
        process.kill()
        process.wait()
        for stream in (process.stdin, process.stdout, process.stderr):
            if stream is not None:
                stream.close()
    try:
        report: dict[str, Any] = json.loads(answer)
    except ValueError:
        reason = errors.decode(errors="replace").strip().splitlines()[-1:]
        return {"status": "killed", "detail": f"the sandbox was ended from outside {reason}"}
    return report


def _number(name: str, value: float, least: float) -> None:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not least <= value < math.inf:
        raise ValueError(f"{name} is {value!r}; pass a number of at least {least:g}.")


def _check_settings(
    timeout: float = 10.0,
    memory_mb: int = 512,
    cpu_seconds: int | None = None,
    max_output: int = 65536,
    processes: int = 16,
    scratch_mb: int = 16,
    isolation: str = "full",
) -> None:
    """Settings of [`run_code`], which it would refuse."""
    for name, value, least in (
        ("timeout", timeout, 0.01),
        ("memory_mb", memory_mb, 32),
        ("cpu_seconds", 1 if cpu_seconds is None else cpu_seconds, 1),
        ("max_output", max_output, 1),
        ("processes", processes, 4),
        ("scratch_mb", scratch_mb, 1),
    ):
        _number(name, value, least)
    if isolation not in ("full", "none"):
        raise ValueError(f"isolation is {isolation!r}; pass 'full', or 'none' to run the code unprotected.")
    if platform.system() != "Linux":
        raise SandboxUnavailableError(f"model-written code is run on Linux only; this is {platform.system()}.")


def _tests(tests: str | Sequence[str]) -> list[str]:
    listed = [tests] if isinstance(tests, str) else list(tests)
    for test in listed:
        if not isinstance(test, str):
            raise ValueError(f"tests holds {test!r}; pass source text, or a sequence of it.")
    return [test for test in listed if test.strip()]


def _unrunnable(code: str) -> str:
    """Why a text cannot be a program at all, or nothing."""
    if len(code) > CODE_LIMIT:
        return f"the program has {len(code)} characters; at most {CODE_LIMIT} are run"
    if "\0" in code:
        return "the program holds a NUL character"
    if any(0xD800 <= ord(character) < 0xE000 for character in code):
        return "the program holds half of a surrogate pair, which is no text"
    return ""


def run_code(
    code: str,
    tests: str | Sequence[str] = (),
    stdin: str | None = None,
    timeout: float = 10.0,
    memory_mb: int = 512,
    cpu_seconds: int | None = None,
    max_output: int = 65536,
    python: str | None = None,
    *,
    entry_points: Sequence[str] | None = None,
    processes: int = 16,
    scratch_mb: int = 16,
    isolation: Literal["full", "none"] = "full",
) -> SandboxResult:
    """Run a model-written program in isolation, and tests of it in another process.

    Without tests the program is a script (``__name__ == "__main__"``), and passes with exit status 0. With tests it
    is a module whose names the tests use, and what its ``if __name__ == "__main__"`` part would do is not done.

    Args:
        code: The program.
        tests: Source text, or several, run in order in one namespace until one raises. Not shown to the program.
        stdin: What the program reads; nothing by default.
        timeout: Wall-clock seconds for the program and its tests; the interpreter's start is not counted.
        memory_mb: Limit on each process's address space and on the memory of all together.
        cpu_seconds: Limit on each process's CPU time; by default the timeout, rounded up.
        max_output: Bytes kept of standard output and of standard error; the program ends when it writes more.
        python: The interpreter for the program; by default the one that runs this. Its packages can be imported.
        entry_points: The program's names that tests may use. By default all that hide no built-in name: a
            program must not redefine `set` or `abs` for its own tests, unless that is what was asked of it.
        processes: Limit on processes and threads together.
        scratch_mb: Size of the scratch folder, the program's working directory, and of any file in it.
        isolation: ``"none"`` runs the code unprotected, with limits and the timeout alone.

    Returns:
        Whether it passed, why not, what it printed and how long it took.

    Raises:
        SandboxUnavailableError: If this machine gives no isolation; the message names what is missing. Nothing was
            run.
        ValueError: If an argument makes no sense.

    Example:
        >>> code = "def double(x):\\n    return 2 * x"
        >>> if sandbox_available().available:  # where it is not, run_code would raise
        ...     assert run_code(code, "assert double(4) == 8").passed
        ...     assert run_code(code, "assert double(4) == 9").status == "failed"
        ...     assert run_code("import os; os._exit(0)", "assert double(4) == 8").status == "failed"
    """
    listed = _tests(tests)
    _check_settings(timeout, memory_mb, cpu_seconds, max_output, processes, scratch_mb, isolation)
    reason = _unrunnable(code)
    if reason:
        return SandboxResult(False, "refused", "", "", 0.0, reason)
    request = {
        "code": code,
        "tests": listed,
        "stdin": stdin or "",
        "entry_points": None if entry_points is None else list(entry_points),
        "timeout": timeout,
        "memory_mb": int(memory_mb),
        "cpu_seconds": math.ceil(timeout if cpu_seconds is None else cpu_seconds),
        "max_output": int(max_output),
        "processes": int(processes),
        "scratch_mb": int(scratch_mb),
        "file_mb": int(scratch_mb),
        "scratch_files": 1024,
        "isolation": isolation,
    }
    return _run(request, sys.executable if python is None else python)


def _run(request: dict[str, Any], python: str) -> SandboxResult:
    isolated = request["isolation"] == "full"
    request |= {
        "python": os.path.abspath(python),
        "peer": PEER.read_text(encoding="utf-8"),
        "binds": _binds(os.path.abspath(python)) if isolated else [],
        "parent": os.getpid(),
    }
    if isolated:
        report = _launch(request | {"environment": _environment("/scratch")})
    else:
        import tempfile

        with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
            report = _launch(request | {"environment": _environment(folder), "folder": folder})
    if "missing" in report:
        raise SandboxUnavailableError(f"model-written code was not run: {report['missing']}. {REMEDY}")
    return SandboxResult(
        report["status"] == "passed",
        report["status"],
        report.get("stdout", ""),
        report.get("stderr", ""),
        float(report.get("seconds", 0.0)),
        report.get("detail", ""),
    )


def _environment(folder: str) -> dict[str, str]:
    kept = {"LD_LIBRARY_PATH": os.environ["LD_LIBRARY_PATH"]} if "LD_LIBRARY_PATH" in os.environ else {}
    return kept | {
        "PATH": "/usr/local/bin:/usr/bin:/bin",
        "HOME": folder,
        "TMPDIR": folder,
        "LANG": "C.UTF-8",
        "PYTHONHASHSEED": "0",  # the same program gives the same result again
        "OMP_NUM_THREADS": "1",
        "OPENBLAS_NUM_THREADS": "1",
    }


@lru_cache(maxsize=1)
def sandbox_available() -> SandboxSupport:
    """Try the sandbox with an empty program, once a process.

    Returns:
        Whether it runs here and, if not, what is missing.

    Example:
        >>> support = sandbox_available()
        >>> support.available == (support.missing == "")
        True
    """
    try:
        result = run_code("pass", timeout=60)
    except SandboxUnavailableError as error:
        return SandboxSupport(False, str(error), (), False)
    if not result.passed:
        return SandboxSupport(
            False, f"an empty program ended as {result.status}: {result.detail}{result.stderr}", (), False
        )
    return SandboxSupport(True, "", LAYERS, platform.machine() in ("x86_64", "aarch64"))


def check_sandbox(python: str | None = None, **settings: Any) -> None:
    """Raise now what [`run_code`] would raise at the first program.

    Args:
        python: As for [`run_code`].
        settings: `timeout`, `isolation` and its other limits.

    Raises:
        SandboxUnavailableError: If this machine gives no isolation, and isolation="full"; with what is missing.
        ValueError: If a setting makes no sense.

    Example:
        >>> check_sandbox(timeout=5.0, isolation="none")
    """
    _check_settings(**settings)
    support = sandbox_available() if settings.get("isolation", "full") == "full" else None
    if support is not None and not support.available:
        raise SandboxUnavailableError(f"isolation is 'full', but this machine gives none: {support.missing}")
