"""Builds the box that model-written code runs in: namespaces, a root of its own, limits, and a supervisor.

`sandbox.py` starts this file as a script (``python -I -S``) with a request as JSON on its standard input; the report
goes to its standard output. Two processes: the outer one enters new namespaces and forks; the inner one is process 1
of the new PID namespace, builds the root file system, starts the program and the tests as an unprivileged user,
watches them and writes the report. When it ends, by itself or because one of the processes above it died, the kernel
kills whatever is left in the namespace. Standard library only.
"""

import ctypes
import errno
import fcntl
import json
import os
import platform
import re
import resource
import selectors
import signal
import socket
import struct
import sys
import time

NAMESPACES = {
    "mount": 0x00020000,
    "PID": 0x20000000,
    "network": 0x40000000,
    "IPC": 0x08000000,
    "UTS": 0x04000000,
}
NEW_USER_NAMESPACE = 0x10000000
READ_ONLY, NO_SUID, NO_DEVICES, NO_EXECUTE = 1, 2, 4, 8
REMOUNT, BIND, RECURSIVE, PRIVATE = 32, 4096, 16384, 1 << 18
KEPT_OPTIONS = {"nosuid": 2, "nodev": 4, "noexec": 8, "noatime": 1024, "nodiratime": 2048, "relatime": 1 << 21}
DETACH = 2
PR_SET_PDEATHSIG, PR_SET_SECCOMP, PR_SET_CHILD_SUBREAPER, PR_SET_NO_NEW_PRIVS = 1, 22, 36, 38
# Capabilities that root needs to build the box: chown, set ids, network and system administration, chroot.
NEEDED_CAPABILITIES = {"CHOWN": 0, "SETGID": 6, "SETUID": 7, "SYS_CHROOT": 18, "SYS_ADMIN": 21}

PIVOT_ROOT = {"x86_64": 155, "aarch64": 41, "riscv64": 41, "loongarch64": 41, "ppc64le": 203, "s390x": 217}
# Memory that no process is charged for, other processes' memory, key rings, and doors into the kernel that a program
# under test has no use for; they fail with EPERM. By machine: the audit number, then the calls' numbers.
SECCOMP = {
    "x86_64": (
        0xC000003E,
        (29, 64, 68, 101, 103, 155, 161, 165, 166, 240, 248, 249, 250, 272, 298, 303, 304, 308, 310, 311, 312, 319)
        + (321, 323, 425, 428, 429, 430, 438, 442, 447),
    ),
    "aarch64": (
        0xC00000B7,
        (39, 40, 41, 51, 97, 116, 117, 180, 186, 190, 194, 217, 218, 219, 241, 264, 265, 268, 270, 271, 272, 279)
        + (280, 282, 425, 428, 429, 430, 438, 442, 447),
    ),
}

# Only for the processes of one run, so that the limit on processes counts those alone: users nobody else is given.
FIRST_USER = 1_900_000_000
NOBODY = 65534
SCRATCH = "/scratch"
SYSTEM_PATHS = ("/usr", "/lib", "/lib32", "/lib64", "/libx32", "/bin", "/sbin", "/etc/ld.so.cache", "/nix", "/gnu")
DEVICES = ("null", "zero", "full", "random", "urandom")
WATCH_INTERVAL = 0.05
START_LIMIT = 60.0
LAST_WORDS = 0.5

libc = ctypes.CDLL(None, use_errno=True)


class SetupError(Exception):
    """A layer of the isolation that could not be had; the message names it."""


def check(result, layer):
    if result < 0:
        raise SetupError(f"{layer}: {os.strerror(ctypes.get_errno())}")


def prctl(option, value, layer):
    check(libc.prctl(option, ctypes.c_ulong(value), 0, 0, 0), layer)


def mount(source, target, kind, flags, data=""):
    encoded = [os.fsencode(text) if text else None for text in (source, target, kind)]
    result = libc.mount(*encoded, ctypes.c_ulong(flags), data.encode() if data else None)
    check(result, f"a file system of its own (mounting {kind or source or 'privately'} at {target})")


def write_file(path, text):
    with open(path, "w") as file:
        file.write(text)


# Namespaces and users


def effective_capabilities():
    with open("/proc/self/status") as file:
        line = next(line for line in file if line.startswith("CapEff:"))
    return int(line.split()[1], 16)


def free_users():
    """Two user ids without rights: unique to this run where the whole range can be had, else the last ones."""
    with open("/proc/self/uid_map") as file:
        ranges = [(int(line.split()[0]), int(line.split()[2])) for line in file]
    first = FIRST_USER + 2 * os.getpid()
    for candidate in (first, NOBODY - 1):
        if any(start <= candidate and candidate + 1 < start + length for start, length in ranges):
            return candidate, candidate + 1
    raise SetupError("an unprivileged user: this user namespace has no other user than root")


def enter_namespaces():
    """Enter new namespaces, and return the users (of the program, of the tests) or None for "as we are".

    Root changes to other users; anybody else makes a user namespace, in which the program has no capability.
    """
    users = None
    if os.geteuid() == 0:
        held = effective_capabilities()
        missing = [name for name, bit in NEEDED_CAPABILITIES.items() if not held >> bit & 1]
        if missing:
            raise SetupError(f"namespaces: root lacks the capability {', '.join('CAP_' + name for name in missing)}")
        users = free_users()
    else:
        user, group = os.geteuid(), os.getegid()
        check(libc.unshare(NEW_USER_NAMESPACE), "a user namespace")
        try:
            write_file("/proc/self/setgroups", "deny")
            write_file("/proc/self/uid_map", f"{NOBODY} {user} 1")
            write_file("/proc/self/gid_map", f"{NOBODY} {group} 1")
        except OSError as error:
            raise SetupError(f"a user namespace: {error.strerror}") from error
    for name, flag in NAMESPACES.items():
        check(libc.unshare(flag), f"a new {name} namespace")
    return users


# The root file system


def place(source, target, root):
    """Show `source` of the old root at `target` of the new one: a link again as a link, all else bound."""
    where = root + target
    os.makedirs(os.path.dirname(where), mode=0o755, exist_ok=True)
    if os.path.lexists(where):
        return
    if os.path.islink("/old" + source):
        os.symlink(os.readlink("/old" + source), where)
        return
    if os.path.isdir("/old" + source):
        os.makedirs(where, mode=0o755)
    else:
        write_file(where, "")
    mount("/old" + source, where, None, BIND | RECURSIVE)


def build_root(request, users):
    """Change to a root with the system's libraries and Python, all read-only, and a scratch folder."""
    base = next(path for path in ("/tmp", "/mnt", "/var", "/usr") if os.path.isdir(path))
    mount(None, "/", None, RECURSIVE | PRIVATE)
    mount("tmpfs", base, "tmpfs", NO_SUID | NO_DEVICES, "size=4m,mode=0755")
    os.makedirs(base + "/old")
    os.makedirs(base + "/new")
    os.chdir(base)
    number = PIVOT_ROOT.get(platform.machine())
    if number is None:
        raise SetupError(f"a root of its own: pivot_root's number on {platform.machine()} is not known")
    check(libc.syscall(number, b".", b"old"), "a root of its own (pivot_root)")
    os.chdir("/")

    placed: list[str] = []
    for source, target in [(path, path) for path in SYSTEM_PATHS] + request["binds"]:
        inside = any(target == other or target.startswith(other + "/") for other in placed)
        if not inside and os.path.lexists("/old" + source):
            place(source, target, "/new")
            placed.append(target)
    os.makedirs("/new/dev")
    for name in DEVICES:
        place("/dev/" + name, "/dev/" + name, "/new")
    for name, link in {"fd": "", "stdin": "/0", "stdout": "/1", "stderr": "/2"}.items():
        os.symlink("/proc/self/fd" + link, "/new/dev/" + name)
    owner = f",uid={users[0]},gid={users[0]}" if users else ""
    os.makedirs("/new" + SCRATCH)
    if not os.path.lexists("/new/tmp"):  # it is there where Python itself lies below /tmp; TMPDIR names the folder
        os.symlink(SCRATCH[1:], "/new/tmp")
    quota = f"size={request['scratch_mb']}m,nr_inodes={request['scratch_files']},mode=0700{owner}"
    mount("tmpfs", "/new" + SCRATCH, "tmpfs", NO_SUID | NO_DEVICES | NO_EXECUTE, quota)
    os.makedirs("/new/proc")
    mount("proc", "/new/proc", "proc", READ_ONLY | NO_SUID | NO_DEVICES | NO_EXECUTE)

    check(libc.umount2(b"/old", DETACH), "hiding the old root")
    os.rmdir("/old")
    lock_mounts()
    # Below the namespace's root, because the kernel makes no user namespace for a process in a chroot.
    os.chroot("/new")
    os.chdir("/")


def lock_mounts():
    """Make every mount but the scratch folder read-only, those below the bound folders too."""
    with open("/new/proc/self/mountinfo") as file:
        rows = [line.split() for line in file]
    for row in rows:
        octal = re.sub(rb"\\([0-7]{3})", lambda found: bytes([int(found[1], 8)]), os.fsencode(row[4]))
        target = os.fsdecode(octal)  # spaces are written as \040
        if target in ("/new" + SCRATCH, "/new/proc") or not (target == "/" or target.startswith("/new/")):
            continue
        kept = sum(KEPT_OPTIONS.get(option, 0) for option in row[5].split(","))
        device = target.startswith("/new/dev/")
        extra = READ_ONLY | NO_SUID | (0 if device else NO_DEVICES)
        mount(None, target, None, REMOUNT | BIND | extra | kept)


# Processes


def forbid_calls():
    """A seccomp filter over the calls of SECCOMP, where the machine is in the table."""
    if platform.machine() not in SECCOMP:
        return
    audit, calls = SECCOMP[platform.machine()]
    load, equal, at_least, give = 0x20, 0x15, 0x35, 0x06
    allow, kill, refuse = 0x7FFF0000, 0x80000000, 0x00050000 | errno.EPERM
    rows = [(load, 0, 0, 4), (equal, 1, 0, audit), (give, 0, 0, kill), (load, 0, 0, 0)]
    if platform.machine() == "x86_64":
        rows += [(at_least, 0, 1, 0x40000000), (give, 0, 0, refuse)]  # the x32 numbers of the same calls
    for call in calls:
        rows += [(equal, 0, 1, call), (give, 0, 0, refuse)]
    rows.append((give, 0, 0, allow))
    code = ctypes.create_string_buffer(b"".join(struct.pack("HBBI", *row) for row in rows))
    program = struct.pack("HxxxxxxP", len(rows), ctypes.addressof(code))
    check(libc.prctl(PR_SET_SECCOMP, 2, ctypes.c_char_p(program), 0, 0), "the seccomp filter")


def set_limits(request, isolated):
    memory = request["memory_mb"] * 2**20
    limits = {
        "AS": memory,
        "CPU": request["cpu_seconds"],
        "FSIZE": request["file_mb"] * 2**20,
        "NOFILE": 64,
        "CORE": 0,
        "MEMLOCK": 0,
        "MSGQUEUE": 0,
        "SIGPENDING": 64,
    }
    if isolated:  # outside a namespace the limit would count the user's other processes too
        limits["NPROC"] = request["processes"]
    for name, value in limits.items():
        _, most = resource.getrlimit(getattr(resource, "RLIMIT_" + name, 11))
        hard = value + 1 if name == "CPU" else value
        if most != resource.RLIM_INFINITY:
            value, hard = min(value, most), min(hard, most)
        resource.setrlimit(getattr(resource, "RLIMIT_" + name, 11), (value, hard))


def become(request, files, user, folder, isolated):
    """In the child: descriptors, limits, rights. The order matters: each step needs what the next gives up."""
    os.setsid()
    raised = [fcntl.fcntl(file, fcntl.F_DUPFD_CLOEXEC, 64) for file in files]
    for number, file in enumerate(raised):
        os.dup2(file, number, inheritable=True)
    for name in ("SIGPIPE", "SIGXFSZ"):  # Python ignores them, and an ignored signal stays ignored after exec
        signal.signal(getattr(signal, name), signal.SIG_DFL)
    os.chdir(folder)
    set_limits(request, isolated)
    if user is not None:
        os.setgroups([])
        os.setresgid(user, user, user)
        os.setresuid(user, user, user)
    prctl(PR_SET_NO_NEW_PRIVS, 1, "no_new_privs")
    if isolated:
        forbid_calls()


def spawn(request, role, files, user, folder, isolated):
    """Start a fresh interpreter in `role`; a step that fails before it runs is a SetupError here."""
    failed, low = os.pipe()
    tell = fcntl.fcntl(low, fcntl.F_DUPFD_CLOEXEC, 48)  # out of the way of the child's descriptors
    os.close(low)
    command = [request["python"], "-s", "-B", "-u", "-X", "utf8", "-c", request["peer"], role]
    child = os.fork()
    if child == 0:
        try:
            become(request, files, user, folder, isolated)
            os.execve(command[0], command, request["environment"])
        except BaseException as error:
            os.write(tell, f"starting {request['python']} for {role}: {error}".encode())
        finally:
            os._exit(127)
    os.close(tell)
    with open(failed, "rb") as file:
        message = file.read()
    if message:
        raise SetupError(message.decode(errors="replace"))
    return child


def in_memory(text):
    descriptor = os.memfd_create("text")
    data = text.encode("utf-8", "surrogatepass")
    while data:
        data = data[os.write(descriptor, data) :]
    os.lseek(descriptor, 0, os.SEEK_SET)
    return descriptor


class Supervisor:
    """Starts the program (and the tests), reads what they write, and ends them at a limit."""

    def __init__(self, request, users, isolated):
        self.request, self.users, self.isolated = request, users, isolated
        self.output = {name: bytearray() for name in ("stdout", "stderr", "started", "verdict")}
        self.selector = selectors.DefaultSelector()
        self.exits = {}
        self.status = ""
        self.detail = ""
        self.program = self.tests = None

    def listen(self, name):
        reading, writing = os.pipe()
        os.set_blocking(reading, False)
        self.selector.register(reading, selectors.EVENT_READ, name)
        return writing

    def start(self):
        folder = SCRATCH if self.isolated else self.request["folder"]
        user, tester = self.users or (None, None)
        streams = [in_memory(self.request["stdin"]), self.listen("stdout"), self.listen("stderr")]
        code = in_memory(self.request["code"])
        started = self.listen("started")
        if not self.request["tests"]:
            nothing = os.open("/dev/null", os.O_RDONLY)
            files = [*streams, nothing, code, started]
            self.program = spawn(self.request, "script", files, user, folder, self.isolated)
        else:
            ours, theirs = socket.socketpair()
            empty = os.open("/dev/null", os.O_RDONLY)
            tests = in_memory(json.dumps({key: self.request[key] for key in ("tests", "entry_points")}))
            verdict = self.listen("verdict")
            files = [empty, *streams[1:], ours.fileno(), tests, verdict]
            self.tests = spawn(self.request, "tests", files, tester, "/", self.isolated)
            files = [*streams, theirs.fileno(), code, started]
            self.program = spawn(self.request, "program", files, user, folder, self.isolated)
            os.close(verdict)
            ours.close()
            theirs.close()
        for stream in (*streams[1:], started):
            os.close(stream)

    def read(self, wait):
        for key, _ in self.selector.select(wait):
            try:
                data = os.read(key.fd, 1 << 16)
            except BlockingIOError:
                continue
            if not data:
                self.selector.unregister(key.fd)
                os.close(key.fd)
            buffer = self.output[key.data]
            buffer += data
            limit = self.request["max_output"]
            if key.data in ("stdout", "stderr") and len(buffer) > limit:
                del buffer[limit:]
                self.status = self.status or "output"

    def reap(self):
        while True:
            try:
                child, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if child == 0:
                return
            self.exits[child] = status

    def memory_mb(self):
        """Proportional memory of every process in the box (shared pages count once)."""
        total = 0
        for name in os.listdir("/proc"):
            if name.isdigit() and name != "1":
                try:
                    with open(f"/proc/{name}/smaps_rollup") as file:
                        total += next((int(line.split()[1]) for line in file if line.startswith("Pss:")), 0)
                except OSError:
                    continue  # it has just ended
        return total / 1024

    def watch(self):
        start = looked = time.monotonic()
        end = start + START_LIMIT
        main = self.tests or self.program
        running = False
        while not self.status and main not in self.exits:
            now = time.monotonic()
            if now >= end:
                self.status = "timeout" if not self.output["verdict"] else ""
                break
            self.read(min(WATCH_INTERVAL, end - now))
            self.reap()
            if self.output["started"] and not running:  # the interpreters' start is not the program's time
                running, start = True, time.monotonic()
                end = start + self.request["timeout"]
            if self.output["verdict"]:
                end = min(end, time.monotonic() + LAST_WORDS)
            if self.isolated and now - looked >= WATCH_INTERVAL:
                looked = now
                if self.memory_mb() > self.request["memory_mb"]:
                    self.status = "memory"
        seconds = time.monotonic() - start
        if self.tests and self.program not in self.exits and not self.passed():
            time.sleep(0.02)  # its end may be what failed the tests: see which end it was
            self.reap()
        self.kill()
        self.drain()
        return seconds

    def passed(self):
        return bool(self.verdict().get("passed"))

    def verdict(self):
        try:
            return json.loads(bytes(self.output["verdict"]))
        except ValueError:
            return {}

    def kill(self):
        if self.isolated:
            try:
                os.kill(-1, signal.SIGKILL)
            except ProcessLookupError:
                pass
            return
        while True:  # every descendant: orphans are handed to this process
            try:
                with open(f"/proc/self/task/{os.getpid()}/children") as file:
                    children = [int(number) for number in file.read().split()]
            except OSError:
                children = [child for child in (self.program, self.tests) if child and child not in self.exits]
            if not children:
                return
            for child in children:
                try:
                    os.kill(child, signal.SIGKILL)
                except ProcessLookupError:
                    pass
                try:
                    os.waitpid(child, 0)
                except ChildProcessError:
                    pass

    def drain(self):
        """What was written before the end; bounded, because a pipe is."""
        before = self.status
        for _ in range(64):
            held = {name: len(data) for name, data in self.output.items()}
            self.read(0)
            if held == {name: len(data) for name, data in self.output.items()}:
                break
        if before == "" and self.status == "output" and self.passed():
            self.status = ""  # the verdict was in before the flood

    def judge(self):
        """The status: what the supervisor stopped, else the verdict, else how the program ended."""
        verdict = self.verdict()
        self.detail = verdict.get("detail", "")
        if self.status:
            return self.status
        ended = self.exits.get(self.program)
        if self.tests:
            if verdict.get("passed"):
                return "passed"
            if ended is None or not os.WIFSIGNALED(ended):
                ended = self.exits.get(self.tests)
        elif ended is not None and os.WIFEXITED(ended) and os.WEXITSTATUS(ended) == 0:
            return "passed"
        if ended is not None and os.WIFSIGNALED(ended):
            number = os.WTERMSIG(ended)
            self.detail = self.detail or f"ended by signal {number}"
            return "timeout" if number == signal.SIGXCPU else "killed"
        lines = bytes(self.output["stderr"]).rstrip().splitlines()
        if verdict.get("memory") or (not self.tests and lines and lines[-1].startswith(b"MemoryError")):
            return "memory"
        return "failed"


def run(request, users, isolated):
    if isolated:
        build_root(request, users)
    supervisor = Supervisor(request, users, isolated)
    supervisor.start()
    seconds = supervisor.watch()
    status = supervisor.judge()
    text = {name: bytes(data).decode("utf-8", "replace") for name, data in supervisor.output.items()}
    return {
        "status": status,
        "stdout": text["stdout"],
        "stderr": text["stderr"],
        "detail": supervisor.detail,
        "seconds": seconds,
    }


def follow(parent):
    """Die with the process that started this one."""
    prctl(PR_SET_PDEATHSIG, signal.SIGKILL, "ending with the caller")
    if parent and os.getppid() != parent:
        os._exit(1)


def report(message):
    data = json.dumps(message).encode()
    while data:
        data = data[os.write(1, data) :]


def guarded(function, *arguments):
    """The report of `function`, or one that says which step failed."""
    try:
        return function(*arguments)
    except SetupError as error:
        return {"missing": str(error)}
    except Exception as error:
        return {"missing": f"{type(error).__name__}: {error}"}


def main():
    request = json.load(sys.stdin.buffer)
    isolated = request["isolation"] == "full"
    follow(request["parent"])
    try:
        write_file("/proc/self/oom_score_adj", "1000")  # short of memory, the kernel ends this before its caller
    except OSError:
        pass
    users = None
    if isolated:
        users = guarded(enter_namespaces)
        if isinstance(users, dict):
            report(users)
            return
        follow(0)  # a change of rights clears it
    else:
        prctl(PR_SET_CHILD_SUBREAPER, 1, "adopting orphans")
    if not isolated:
        report(guarded(run, request, users, isolated))
        return
    inner = os.fork()
    if inner == 0:
        follow(0)
        report(guarded(run, request, users, isolated))
        os._exit(0)
    _, status = os.waitpid(inner, 0)
    if status:
        report({"status": "killed", "stdout": "", "stderr": "", "seconds": 0.0, "detail": "the box was killed"})


if __name__ == "__main__":
    main()
