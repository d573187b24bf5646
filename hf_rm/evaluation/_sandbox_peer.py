"""What runs inside the sandbox: the program's process, and the tests' process, which calls it over a socket.

`sandbox.py` passes this file's text to a fresh interpreter (``python -c``) with one argument, the role. Descriptor 3
is the socket between the two, 4 holds the code, 5 takes the verdict from the tests' process, and from the program's
the word that its code starts, which starts the clock. Only data crosses the
socket: what the program returns is rebuilt here from plain values, so an object that claims to equal everything, or a
replaced harness, changes nothing in the process that decides. Standard library only; nothing of the package is
at hand.
"""

import builtins
import importlib
import json
import linecache
import os
import socket
import struct
import sys
import traceback
import types

CHANNEL, CODE, VERDICT = 3, 4, 5
STARTED = 5
MESSAGE_LIMIT = 64 * 2**20
DETAIL_LIMIT = 4000
EXACT_INTEGER = 2**53

# Values that cross as "constructor and arguments"; both sides know the same short list.
REBUILT = {
    ("decimal", "Decimal"),
    ("fractions", "Fraction"),
    ("datetime", "date"),
    ("datetime", "datetime"),
    ("datetime", "time"),
    ("datetime", "timedelta"),
}
SEQUENCES = {"list": list, "tuple": tuple, "set": set, "frozenset": frozenset}
MUTABLE = (list, dict, set, bytearray)

# What an object of the program answers for itself. Arithmetic, `in` and comparison with plain data are missing on
# purpose: an operand that comes from the test could be answered with whatever makes the test pass.
FORWARDED = (
    "__len__",
    "__iter__",
    "__next__",
    "__getitem__",
    "__setitem__",
    "__delitem__",
    "__bool__",
    "__str__",
    "__repr__",
    "__enter__",
    "__exit__",
)
BETWEEN_OBJECTS = ("__eq__", "__lt__", "__le__", "__gt__", "__ge__")


class ProgramError(Exception):
    """An exception of the program that is no built-in one, or the program's end."""


class ProgramMemoryError(ProgramError):
    """The program ran out of memory."""


class Peer:
    """One end of the channel: sends requests, and answers those that arrive while it waits."""

    def __init__(self, channel, operations):
        self.channel = channel
        self.operations = operations
        self.exports = []
        self.numbers = {}
        self.namespace = {}  # what `names` tells of

    # Messages

    def send(self, message):
        data = json.dumps(message).encode()
        if len(data) > MESSAGE_LIMIT:
            raise MemoryError("a value is too large to hand over")
        self.channel.sendall(struct.pack("!I", len(data)) + data)

    def read(self, length):
        parts = []
        while length:
            part = self.channel.recv(min(length, 1 << 20))
            if not part:
                raise EOFError("the program ended before the tests did")
            parts.append(part)
            length -= len(part)
        return b"".join(parts)

    def receive(self):
        (length,) = struct.unpack("!I", self.read(4))
        if length > MESSAGE_LIMIT:
            raise ProgramError("the program sent a message that is too large")
        return json.loads(self.read(length))

    def request(self, *message):
        self.send(message)
        while True:
            reply = self.receive()
            if reply[0] == "return":
                return reply[1:]
            if reply[0] == "raise":
                raise rebuild_exception(reply[1], reply[2])
            self.answer(reply)

    def answer(self, message):
        try:
            if message[0] not in self.operations:
                raise ProgramError("the program asked for what it may not")
            reply = ["return", *getattr(self, "do_" + message[0])(*message[1:])]
            self.send(reply)
        except (EOFError, OSError):
            raise
        except BaseException as error:
            self.send(["raise", type(error).__name__, str(error)[:DETAIL_LIMIT]])

    # What can be asked for

    def do_call(self, number, arguments, keywords):
        values = [self.decode(item) for item in arguments]
        result = self.exports[number](*values, **{name: self.decode(item) for name, item in keywords})
        changed = []
        for index, (value, sent) in enumerate(zip(values, arguments)):
            if isinstance(value, MUTABLE) and self.encode(value) != sent:
                changed.append([index, self.encode(value)])
        return self.encode(result), changed

    def do_get(self, number, name):
        return (self.encode(getattr(self.exports[number], name)),)

    def do_set(self, number, name, value):
        setattr(self.exports[number], name, self.decode(value))
        return (None,)

    def do_method(self, number, name, arguments):
        target = self.exports[number]
        if name == "__bool__":
            return (bool(target),)
        method = getattr(type(target), name, None)
        if method is None:  # as Python says it: list(), for one, asks for a length and goes on without
            raise TypeError(f"object of type {type(target).__name__} has no {name}")
        return (self.encode(method(target, *map(self.decode, arguments))),)

    def do_names(self):
        names = []
        for name, value in self.namespace.items():
            if name.startswith("__"):
                continue
            if isinstance(value, types.ModuleType):
                names.append([name, "module", value.__name__])
            else:
                try:
                    names.append([name, "value", self.encode(value)])
                except Exception:
                    continue  # a global that cannot be handed over, such as a list that holds itself
        return (names,)

    def do_flush(self):
        sys.stdout.flush()
        sys.stderr.flush()
        return (None,)

    # Values

    def encode(self, value):
        if value is None or isinstance(value, (bool, str, float)):
            return value
        if isinstance(value, int):
            return int(value) if abs(value) < EXACT_INTEGER else ["int", hex(value)]
        if isinstance(value, (bytes, bytearray)):
            return ["bytearray" if isinstance(value, bytearray) else "bytes", value.decode("latin-1")]
        if isinstance(value, complex):
            return ["complex", value.real, value.imag]
        if isinstance(value, dict):
            return ["dict", [[self.encode(key), self.encode(item)] for key, item in value.items()]]
        for name, kind in SEQUENCES.items():
            if isinstance(value, kind):
                return [name, [self.encode(item) for item in value]]
        if isinstance(value, range):
            return ["range", value.start, value.stop, value.step]
        if value is NotImplemented or value is Ellipsis:
            return ["constant", str(value)]
        return self.encode_object(value)

    def encode_object(self, value):
        kind = type(value)
        if kind is Proxy and value._peer is self:
            return ["own", value._number]
        where = (kind.__module__, kind.__name__)
        if where in REBUILT:
            return ["new", *where, [self.encode(item) for item in value.__reduce__()[1]]]
        if where == ("collections", "deque"):
            return ["deque", [self.encode(item) for item in value]]
        if isinstance(value, type) and value.__module__ == "builtins":
            return ["type", value.__name__]
        if kind.__module__ == "numpy" and hasattr(value, "tolist"):
            return self.encode(value.tolist())
        if "get" not in self.operations and not callable(value):
            raise TypeError(f"the tests cannot hand a {kind.__name__} to the program: only data and functions")
        if id(value) not in self.numbers:
            self.numbers[id(value)] = len(self.exports)
            self.exports.append(value)
        return ["object", self.numbers[id(value)]]

    def decode(self, item):
        if not isinstance(item, list):
            return item
        tag, *content = item
        if tag in SEQUENCES:
            return SEQUENCES[tag]([self.decode(value) for value in content[0]])
        if tag == "new":
            module, name, arguments = content
            if (module, name) not in REBUILT:
                raise ProgramError("the program sent a value of an unknown kind")
            return getattr(importlib.import_module(module), name)(*map(self.decode, arguments))
        return getattr(self, "decode_" + tag)(*content)

    def decode_int(self, text):
        return int(text, 16)

    def decode_bytes(self, text):
        return text.encode("latin-1")

    def decode_bytearray(self, text):
        return bytearray(text.encode("latin-1"))

    def decode_complex(self, real, imaginary):
        return complex(real, imaginary)

    def decode_dict(self, pairs):
        return {self.decode(key): self.decode(value) for key, value in pairs}

    def decode_deque(self, items):
        return importlib.import_module("collections").deque(map(self.decode, items))

    def decode_range(self, start, stop, step):
        return range(start, stop, step)

    def decode_constant(self, name):
        return {"NotImplemented": NotImplemented, "Ellipsis": Ellipsis}[name]

    def decode_type(self, name):
        found = getattr(builtins, name)
        if not isinstance(found, type):
            raise ProgramError("the program sent a value of an unknown kind")
        return found

    def decode_object(self, number):
        return Proxy(self, number)

    def decode_own(self, number):
        return self.exports[number]


class Proxy:
    """Stands for an object of the other process."""

    def __init__(self, peer, number):
        object.__setattr__(self, "_peer", peer)
        object.__setattr__(self, "_number", number)

    def __call__(self, *arguments, **keywords):
        peer = self._peer
        sent = [peer.encode(value) for value in arguments]
        named = [[name, peer.encode(value)] for name, value in keywords.items()]
        result, changed = peer.request("call", self._number, sent, named)
        for index, item in changed:
            replace_content(arguments[index], peer.decode(item))
        return peer.decode(result)

    def __getattr__(self, name):
        return self._peer.decode(self._peer.request("get", self._number, name)[0])

    def __setattr__(self, name, value):
        self._peer.request("set", self._number, name, self._peer.encode(value))

    def __hash__(self):
        return hash(self._number)


def forward(name, only_between_objects):
    """Let a proxy answer a special method by asking the object it stands for."""

    def method(self, *arguments):
        if only_between_objects and not isinstance(arguments[0], Proxy):
            return NotImplemented
        peer = self._peer
        reply = peer.request("method", self._number, name, [peer.encode(value) for value in arguments])
        return peer.decode(reply[0])

    setattr(Proxy, name, method)


for special in FORWARDED:
    forward(special, False)
for special in BETWEEN_OBJECTS:
    forward(special, True)


def replace_content(target, value):
    """Give a caller's list, dict, set or bytearray the content it has after the call."""
    if type(target) is not type(value) or not isinstance(target, MUTABLE):
        return
    target.clear()
    (target.extend if isinstance(target, (list, bytearray)) else target.update)(value)


def rebuild_exception(name, message):
    """The built-in exception of that name, or a ProgramError that names it."""
    if name == "MemoryError":
        return ProgramMemoryError(message or "out of memory")
    kind = getattr(builtins, str(name), None)
    if isinstance(kind, type) and issubclass(kind, Exception):
        try:
            return kind(message)
        except TypeError:
            pass
    return ProgramError(f"{name}: {message}")


def read_all(descriptor):
    with open(descriptor, encoding="utf-8", errors="surrogatepass", newline="") as file:
        return file.read()


def compiled(code, name):
    """Compile, and let tracebacks show the lines."""
    linecache.cache[name] = (len(code), None, code.splitlines(keepends=True), name)
    return compile(code, name, "exec", dont_inherit=True)


def fresh_module(name):
    """A module that the program's own look-ups (dataclasses, pickle) find under its name."""
    module = types.ModuleType(name)
    sys.modules[name] = module
    return module


def print_error(error):
    """The traceback without this file's frame."""
    own = error.__traceback__
    traceback.print_exception(type(error), error, own and own.tb_next)


def say_started():
    with open(STARTED, "wb") as file:
        file.write(b"1")


def run_script():
    """Run the code as a script; its end is the process's end."""
    code = read_all(CODE)
    namespace = fresh_module("__main__").__dict__
    say_started()
    try:
        exec(compiled(code, "solution.py"), namespace)
    except Exception as error:
        print_error(error)
        sys.stderr.flush()
        sys.exit(1)


def run_program():
    """Run the code as a module, then answer calls of its functions until the tests have ended."""
    channel = socket.socket(fileno=CHANNEL)
    peer = Peer(channel, {"call", "get", "set", "method", "names", "flush"})
    code = read_all(CODE)
    peer.receive()  # the tests' process has shut its memory to this one
    module = fresh_module("solution")
    peer.namespace = module.__dict__
    say_started()
    try:
        exec(compiled(code, "solution.py"), module.__dict__)
        peer.send(["return", None])
    except BaseException as error:
        print_error(error)
        peer.send(["raise", type(error).__name__, str(error)[:DETAIL_LIMIT]])
    try:
        while True:
            peer.answer(peer.receive())
    except (EOFError, OSError):
        pass


def hide_memory():
    """Let no process of the same user read this one's memory or descriptors (PR_SET_DUMPABLE 0)."""
    import ctypes

    ctypes.CDLL(None).prctl(4, 0, 0, 0, 0)


def allowed(name, wanted):
    return name in wanted if wanted is not None else not hasattr(builtins, name)


def import_names(peer, namespace, wanted):
    """Put the program's names into the tests' namespace.

    Modules are imported anew, here. A name that hides a built-in one has to be asked for, otherwise a program could
    redefine `set` or `abs` for its own tests.
    """
    for name, kind, value in peer.request("names")[0]:
        if kind == "module":
            try:
                if not hasattr(builtins, name):
                    namespace[name] = importlib.import_module(value)
            except Exception:
                continue
        elif allowed(name, wanted):
            namespace[name] = peer.decode(value)


def run_tests():
    """Run the tests against the program and write the verdict, which only this process can."""
    hide_memory()
    request = json.loads(read_all(CODE))
    peer = Peer(socket.socket(fileno=CHANNEL), {"call"})
    namespace = fresh_module("tests").__dict__
    verdict = {"passed": False, "memory": False, "detail": ""}
    try:
        peer.request("go")
        import_names(peer, namespace, request["entry_points"])
        for test in request["tests"]:
            exec(compiled(test, "tests.py"), namespace)
        verdict["passed"] = True
    except BaseException as error:
        frames = traceback.extract_tb(error.__traceback__)
        shown = traceback.format_list([frame for frame in frames if frame.filename == "tests.py"])
        detail = "".join([*shown, *traceback.format_exception_only(type(error), error)])
        verdict["detail"] = detail[-DETAIL_LIMIT:].strip()
        verdict["memory"] = isinstance(error, ProgramMemoryError)
    with open(VERDICT, "wb") as file:
        file.write(json.dumps(verdict).encode())
    try:
        peer.request("flush")
    except BaseException:
        pass  # nothing depends on it
    os._exit(0)


if __name__ == "__main__":
    role = sys.argv.pop()
    sys.argv[:] = ["solution.py"]
    sys.path[:] = [entry for entry in sys.path if entry]
    {"script": run_script, "program": run_program, "tests": run_tests}[role]()
