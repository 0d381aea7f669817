"""Callers whose program lies on a file system that answers no more: hanging.py CASE SOCKET FOLDER PROGRAM
USER AGENT. Needs root. Prints what they got.

A file system in user space with one file, which is the program. It answers until it is told to hang;
every question of the kernel waits from then on. In the cases `names` and `drifts` it lets the kernel keep
names, so that only other things have to be asked for.
"""

import array
import ctypes
import os
import select
import signal
import socket
import struct
import subprocess
import sys
import threading
import time

from raw import Raw, said

CASE, SOCKET, FOLDER, PROGRAM, USER, AGENT = sys.argv[1:]
USER = int(USER)
ROOT, FILE = 1, 2
NAME = b"program"
DATA = open(PROGRAM, "rb").read()
LOOKUP, GETATTR, OPEN, READ, STATFS, RELEASE, FLUSH, INIT, OPENDIR = 1, 3, 14, 15, 17, 18, 25, 26, 27
FORGET, INTERRUPT, BATCH_FORGET = 2, 36, 42
ENOENT, ENOSYS = 2, 38
KEEP_CACHE, DETACH = 2, 2
KEPT_SECONDS = 0 if CASE == "hangs" else 3600

libc = ctypes.CDLL(None, use_errno=True)
answers = threading.Event()
answers.set()

CONNECTS = """
import array, os, signal, socket, subprocess, sys
def another(*_): subprocess.Popen(["/bin/sleep", "60"])
signal.signal(signal.SIGUSR1, another)
os.setresuid(*[int(sys.argv[3])] * 3)
connection = socket.socket(socket.AF_UNIX)
connection.connect(sys.argv[1])
end = socket.socket(fileno=int(sys.argv[2]))
rights = array.array("i", [connection.fileno()])
end.sendmsg([b"x"], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, rights)])
while True: signal.pause()
"""


def attributes(node):
    mode, size = (0o40755, 0) if node == ROOT else (0o100755, len(DATA))
    blocks = (size + 511) // 512
    times = (0,) * 6
    return struct.pack("QQQ3Q3I7I", node, size, blocks, *times, mode, 1, 0, 0, 0, 4096, 0)


def answer(code, node, body):
    """An error number, and what is answered."""
    if code == INIT:
        return 0, struct.pack("IIIIHHIIHHII24x", 7, 31, 65536, 0, 16, 12, 65536, 1, 0, 0, 0, 0)
    if code == LOOKUP:
        if body.rstrip(b"\0") != NAME:
            return ENOENT, b""
        kept = (KEPT_SECONDS, KEPT_SECONDS)
        return 0, struct.pack("QQQQII", FILE, 0, *kept, 0, 0) + attributes(FILE)
    if code == GETATTR:
        return 0, struct.pack("QII", KEPT_SECONDS, 0, 0) + attributes(node)
    if code in (OPEN, OPENDIR):
        return 0, struct.pack("QII", 1, KEEP_CACHE, 0)
    if code == READ:
        _, offset, size = struct.unpack_from("QQI", body)
        return 0, DATA[offset : offset + size]
    if code == STATFS:
        return 0, bytes(80)
    if code in (RELEASE, FLUSH):
        return 0, b""
    return ENOSYS, b""


def serve(device):
    while True:
        try:
            question = os.read(device, 1 << 18)
        except OSError:
            return
        _, code, unique, node = struct.unpack_from("IIQQ", question)
        if code in (FORGET, BATCH_FORGET, INTERRUPT):
            continue
        answers.wait()
        error, text = answer(code, node, question[40:])
        try:
            os.write(device, struct.pack("IiQ", 16 + len(text), -error, unique) + text)
        except OSError:
            # Whoever asked is gone.
            pass


def mount():
    device = os.open("/dev/fuse", os.O_RDWR)
    options = f"fd={device},rootmode=40000,user_id=0,group_id=0,allow_other".encode()
    if libc.mount(b"hanging", FOLDER.encode(), b"fuse.hanging", 6, options) != 0:
        sys.exit(os.strerror(ctypes.get_errno()))
    for _ in range(4):
        threading.Thread(target=serve, args=(device,), daemon=True).start()
    # What the kernel has of it in memory is what the callers run on.
    with open(f"{FOLDER}/program", "rb") as file:
        assert file.read() == DATA


children = []


def connected(program=f"{FOLDER}/program", user=USER):
    """A connection that a process of this program has opened, which lives on in a session of its own. Something
    is said on it at once: the agent closes those on which nothing is. By SIGUSR1 it starts another program."""
    ours, theirs = socket.socketpair()
    words = [program, "-c", CONNECTS, SOCKET, str(theirs.fileno()), str(user)]
    home = {"PYTHONHOME": sys.base_prefix}
    child = subprocess.Popen(
        words, pass_fds=[theirs.fileno()], env=home, start_new_session=True
    )
    children.append(child)
    theirs.close()
    _, passed, _, _ = ours.recvmsg(1, socket.CMSG_SPACE(4))
    return Raw(socket.socket(fileno=array.array("i", passed[0][2])[0]))


def ask(connection):
    """What the answer is on a connection."""
    connection.call()
    return said(next(connection.events()))


def threads_that_look():
    """How many of the agent's threads wait for file systems."""
    names = []
    for task in os.listdir(f"/proc/{AGENT}/task"):
        try:
            names.append(open(f"/proc/{AGENT}/task/{task}/comm").read().strip())
        except OSError:
            pass
    return names.count("look")


def asked(connections):
    """What all get who ask at the same time."""
    for one in connections:
        one.call()
    return sorted({said(next(one.events())) for one in connections})


def answer_all():
    """The file system answers again, and whoever waited for it has heard it."""
    answers.set()
    end = time.monotonic() + 20
    while threads_that_look() and time.monotonic() < end:
        time.sleep(0.01)


def hangs():
    print(ask(connected()))
    stream = connected()
    stream.call()
    events = stream.events()
    print(said(next(events)))
    waiting = [connected() for _ in range(20)]
    good = [connected(PROGRAM), connected(PROGRAM, USER + 1)]
    later = connected()
    answers.clear()
    print(asked(waiting))
    print("few threads" if 1 <= threads_that_look() <= 4 else threads_that_look())
    for one in good:
        print(ask(one))
    silent = not select.select([stream.end], [], [], 0)[0]
    print("silent" if silent else said(next(events)))
    answer_all()
    print(ask(later), threads_that_look())


def names():
    print(ask(connected()))
    first, second = connected(), connected()
    answers.clear()
    print(ask(first))
    answer_all()
    print(ask(second))


def drifts():
    watched = connected(PROGRAM, USER + 1)
    watched.call()
    events = watched.events()
    print(said(next(events)))
    hung = connected()
    answers.clear()
    # The whole pod is looked at before its first identity.
    print(ask(hung))
    children[0].send_signal(signal.SIGUSR1)
    # A message may only bring other lists.
    print(next(said(event) for event in events if event[0] != "message"))
    answers.set()


mount()
try:
    globals()[CASE]()
finally:
    answers.set()
    for child in children:
        # With what it has started.
        os.killpg(child.pid, signal.SIGKILL)
        child.wait()
    libc.umount2(FOLDER.encode(), DETACH)
