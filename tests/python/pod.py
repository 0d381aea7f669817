"""A process of a pod that does what it is told. pod.py SOCKET: a command on each line of the standard
input, a line of answer for each.

fetch FOLDER       opens a stream, keeps the SVID for openssl, tells the identities
next               waits for what the stream says next
silent             has the stream said something?
again              the identities by a connection of its own
run PROGRAM ...    starts a program and tells its number
orphan PROGRAM ... the same, and its parent has ended
kill               ends the programs
threads            starts threads and waits for their end
listen PORT [IP]   waits for connections at a port, of 127.0.0.1 unless told otherwise
connect PORT [IP]  connects to one
write PATH         opens a file for writing
memory PROGRAM ... the same as run, from a copy in memory
bind PORT          waits for datagrams at a port of 127.0.0.1
send PORT [IP]     connects a socket for datagrams to one
wait PROGRAM ...   starts a program and waits for its end
fork               makes a child that runs no other program
leave FLAGS        a child makes new namespaces for itself, by the flags of unshare(2)
join PATH          a child enters a namespace
trace              traces a child of its own
close              closes all that was opened so
"""

import base64
import ctypes
import os
import select
import socket
import subprocess
import sys
import threading

from raw import Raw, ask, connect, ids, said
from spiffe._proto import workload_pb2

SOCKET = sys.argv[1]
held, children, opened = None, [], []


def certificates(der):
    """Each of several certificates that follow one another."""
    while der:
        # The length of a sequence, in the long form.
        size = der[1] & 0x7F
        length = 2 + size + int.from_bytes(der[2 : 2 + size], "big")
        yield der[:length]
        der = der[length:]


def pem(der):
    body = base64.encodebytes(der).decode()
    return f"-----BEGIN CERTIFICATE-----\n{body}-----END CERTIFICATE-----\n"


def write(path, der):
    with open(path, "w") as file:
        file.write("".join(map(pem, certificates(der))))


def fetch(folder):
    global held
    raw = Raw(connect(SOCKET))
    raw.call()
    held = raw, raw.events()
    event = next(held[1])
    if event[0] == "message":
        svid = workload_pb2.X509SVIDResponse.FromString(event[1]).svids[0]
        os.makedirs(folder, exist_ok=True)
        write(f"{folder}/svid.0.pem", svid.x509_svid)
        write(f"{folder}/bundle.0.pem", svid.bundle)
    return said(event)


def next_word():
    """What is new of the identities or the right to them; a message may only bring other lists."""
    for event in held[1]:
        if event[0] != "message":
            return said(event)
    return "nothing"


def is_silent():
    """Nothing but messages with the same identities."""
    raw, events = held
    while select.select([raw.end], [], [], 0)[0]:
        event = next(events)
        if event[0] != "message":
            return said(event)
    return "silent"


def run(*command):
    child = subprocess.Popen(command)
    children.append(child.pid)
    return str(child.pid)


def orphan(*command):
    shell = 'setsid "$@" >/dev/null 2>&1 & echo $!'
    output = subprocess.run(["sh", "-c", shell, "sh", *command], capture_output=True, check=True)
    children.append(int(output.stdout))
    return str(children[-1])


def kill():
    for pid in children:
        try:
            handle = os.pidfd_open(pid)
            os.kill(pid, 9)
            # Of an orphan too: it is seen as long as it lives.
            select.select([handle], [], [], 20)
            os.close(handle)
            os.waitpid(pid, 0)
        except (ProcessLookupError, ChildProcessError):
            pass
    children.clear()
    return "killed"


def threads():
    all_of_them = [threading.Thread(target=lambda: None) for _ in range(20)]
    for thread in all_of_them:
        thread.start()
    for thread in all_of_them:
        thread.join()
    return "joined"


def listen(port, address="127.0.0.1"):
    opened.append(socket.create_server((address, int(port))))
    return "listens"


def connect_to(port, address="127.0.0.1"):
    opened.append(socket.create_connection((address, int(port))))
    return "connected"


def write_to(path):
    opened.append(open(path, "w"))
    return "open"


def memory(program, *arguments):
    file = os.memfd_create("copy", 0)
    with open(program, "rb") as source:
        os.sendfile(file, source.fileno(), 0, os.fstat(source.fileno()).st_size)
    return run(f"/proc/{os.getpid()}/fd/{file}", *arguments)


def bind(port):
    opened.append(socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
    opened[-1].bind(("127.0.0.1", int(port)))
    return "bound"


def send(port, address="127.0.0.1"):
    opened.append(socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
    opened[-1].connect((address, int(port)))
    return "connected"


def wait(*command):
    return str(subprocess.run(command, stdout=subprocess.DEVNULL).returncode)


def forked(work):
    """A child without a program of its own, which waits for its end when it has done its work."""
    ready, tell = os.pipe()
    child = os.fork()
    if child == 0:
        work()
        os.write(tell, b".")
        while True:
            threading.Event().wait()
    children.append(child)
    os.close(tell)
    done = os.read(ready, 1)
    os.close(ready)
    return str(child) if done else "failed"


def libc(name, *arguments):
    """A call that this Python has no function for."""
    if getattr(ctypes.CDLL(None, use_errno=True), name)(*arguments) != 0:
        raise OSError(ctypes.get_errno(), name)


def leave(flags):
    return forked(lambda: libc("unshare", int(flags, 0)))


def join(path):
    def enter():
        with open(path) as namespace:
            libc("setns", namespace.fileno(), 0)

    return forked(enter)


def trace():
    """Attaches to a child, which is its tracee until it ends."""
    child, attach = forked(lambda: None), 16
    libc("ptrace", attach, int(child), 0, 0)
    os.waitpid(int(child), 0)
    return child


def close():
    for one in opened:
        one.close()
    opened.clear()
    return "closed"


commands = {
    "bind": bind,
    "send": send,
    "wait": wait,
    "fork": lambda: forked(lambda: None),
    "leave": leave,
    "join": join,
    "trace": trace,
    "listen": listen,
    "connect": connect_to,
    "write": write_to,
    "memory": memory,
    "close": close,
    "fetch": fetch,
    "next": next_word,
    "silent": is_silent,
    "again": lambda: ask(connect(SOCKET)),
    "run": run,
    "orphan": orphan,
    "kill": kill,
    "threads": threads,
}
for line in sys.stdin:
    name, *arguments = line.split()
    print(commands[name](*arguments), flush=True)
kill()
