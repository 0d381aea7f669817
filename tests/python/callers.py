"""Callers that are not what they seem. callers.py CASE SOCKET ARGUMENTS: prints what they got.

A caller is often a process that connects and hands the connection to its parent: the identity must
be that of the process which connected, as it is now, or none.
"""

import array
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

from raw import Raw, ask, connect, said

CASE, SOCKET, *ARGUMENTS = sys.argv[1:]


def hand_over(end, connection):
    fds = array.array("i", [connection.fileno()])
    end.sendmsg([b"x"], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, fds)])


def take_over(end):
    _, ancillary, _, _ = end.recvmsg(1, socket.CMSG_SPACE(4))
    fds = array.array("i")
    fds.frombytes(ancillary[0][2][:4])
    return socket.socket(fileno=fds[0])


def connected(then, uid=None):
    """A child that connects and hands the connection over, then does something. Tells its number
    and the connection."""
    ours, theirs = socket.socketpair()
    pid = os.fork()
    if pid == 0:
        if uid is not None:
            os.setresuid(uid, uid, uid)
        hand_over(theirs, connect(SOCKET))
        then()
        os._exit(0)
    theirs.close()
    return pid, take_over(ours)


def wait_for_exe(pid, wanted):
    end = time.monotonic() + 20
    while os.readlink(f"/proc/{pid}/exe") != os.path.realpath(wanted):
        if time.monotonic() > end:
            sys.exit("the child does not run what it should")
        os.sched_yield()


def gone():
    """The process that connected has ended."""
    pid, connection = connected(lambda: None)
    os.waitpid(pid, 0)
    print(ask(connection))


def reused():
    """The process that connected has ended, and its number is another's. Needs root."""
    pid, connection = connected(lambda: None, uid=int(ARGUMENTS[0]))
    os.waitpid(pid, 0)
    for _ in range(1000):
        Path("/proc/sys/kernel/ns_last_pid").write_text(str(pid - 1))
        other = os.fork()
        if other == 0:
            other_uid = int(ARGUMENTS[1])
            os.setresuid(other_uid, other_uid, other_uid)
            if os.getpid() == pid:
                time.sleep(60)
            os._exit(0)
        if other == pid:
            break
        os.waitpid(other, 0)
    else:
        sys.exit("the number was not given out again")
    print(ask(connection))
    os.kill(other, signal.SIGKILL)


def handed():
    """The process that connected lives; another one asks."""
    pid, connection = connected(signal.pause, uid=int(ARGUMENTS[0]) if ARGUMENTS else None)
    print(ask(connection))
    os.kill(pid, signal.SIGKILL)


def forged():
    """A record of somebody else is sent along. Needs root."""
    victim = int(ARGUMENTS[0])
    connection = connect(SOCKET)
    record = array.array("i", [victim, int(ARGUMENTS[1]), int(ARGUMENTS[1])])
    connection.sendmsg([b"PRI"], [(socket.SOL_SOCKET, 2, record)])
    # The rest of what the first bytes began.
    raw = Raw.__new__(Raw)
    whole = socket.socket.sendall

    class Rest:
        def __init__(self, inner):
            self.inner, self.first = inner, True

        def sendall(self, data):
            whole(self.inner, data[3:] if self.first else data)
            self.first = False

        def __getattr__(self, name):
            return getattr(self.inner, name)

    raw.__init__(Rest(connection))
    raw.call()
    print(said(next(raw.events())))


def executes():
    """Somebody connects, executes another program, and somebody else asks on the connection."""
    ours, theirs = socket.socketpair()
    theirs.set_inheritable(True)

    def then():
        theirs.recv(1)
        os.execv(ARGUMENTS[0], [ARGUMENTS[0], *ARGUMENTS[1:]])

    uid = int(os.environ["CALLER"]) if "CALLER" in os.environ else None
    pid, connection = connected(then, uid=uid)
    # The first word of the agent: it has accepted, and seen who is there.
    connection.recv(1, socket.MSG_PEEK)
    ours.send(b"x")
    wait_for_exe(pid, ARGUMENTS[0])
    raw = Raw(connection)
    raw.call()
    print(said(next(event for event in raw.events() if event[0] != "settings")))
    os.kill(pid, signal.SIGKILL)


def races():
    """Somebody asks while the process that connected executes another program, again and again."""
    answers = set()
    for _ in range(100):
        ours, theirs = socket.socketpair()
        theirs.set_inheritable(True)

        def then():
            theirs.recv(1)
            os.execv(ARGUMENTS[0], [ARGUMENTS[0], "60"])

        pid, connection = connected(then)
        # It has been accepted, and who is there has been seen.
        connection.recv(1, socket.MSG_PEEK)
        raw = Raw(connection)
        ours.send(b"x")
        raw.call()
        answers.add(said(next(raw.events())))
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
    print(*sorted(answers), sep="\n")


def executes_later():
    """The stream has begun before the process executes another program."""
    ours, theirs = socket.socketpair()
    theirs.set_inheritable(True)

    def then():
        theirs.recv(1)
        os.execv(ARGUMENTS[0], [ARGUMENTS[0], "60"])

    pid, connection = connected(then)
    raw = Raw(connection)
    raw.call()
    events = raw.events()
    print(said(next(events)))
    ours.send(b"x")
    print(said(next(event for event in events if event[0] != "message")))
    os.kill(pid, signal.SIGKILL)


def changes_user():
    """The stream has begun before the process becomes another user. Needs root."""
    ours, theirs = socket.socketpair()

    def then():
        theirs.recv(1)
        os.setresuid(*[int(ARGUMENTS[0])] * 3)
        signal.pause()

    pid, connection = connected(then)
    raw = Raw(connection)
    raw.call()
    events = raw.events()
    print(said(next(events)))
    ours.send(b"x")
    print(said(next(event for event in events if event[0] != "message")))
    os.kill(pid, signal.SIGKILL)


def moves():
    """The stream has begun before the process is moved to another control group. Needs root."""
    group = Path(ARGUMENTS[0])
    pid, connection = connected(signal.pause)
    (group / "cgroup.procs").write_text(str(pid))
    raw = Raw(connection)
    raw.call()
    events = raw.events()
    print(said(next(events)))
    (group.parent / "cgroup.procs").write_text(str(pid))
    print(said(next(event for event in events if event[0] != "message")))
    os.kill(pid, signal.SIGKILL)


def memory(pid):
    """Kilobytes."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return int(next(line for line in lines if "VmRSS" in line).split()[1])


def shown():
    """The agent, in a mount namespace of its own, is shown this file for the caller's control groups. Needs root."""
    agent, file = int(ARGUMENTS[0]), ARGUMENTS[1]
    ours, theirs = socket.socketpair()
    pid = os.fork()
    if pid == 0:
        theirs.recv(1)
        hand_over(theirs, connect(SOCKET))
        signal.pause()
    enter = ["nsenter", f"--mount=/proc/{agent}/ns/mnt", "mount", "--bind", file, f"/proc/{pid}/cgroup"]
    subprocess.run(enter, check=True)
    before = memory(agent)
    ours.send(b"x")
    raw = Raw(take_over(ours))
    events = raw.events()
    answers = set()
    for _ in range(50):
        raw.call()
        answers.add(said(next(events)))
    print(*answers)
    print("grown little", memory(agent) - before < 20_000)
    os.kill(pid, signal.SIGKILL)


def deleted():
    """The program of a process is deleted while its stream is open."""
    program = ARGUMENTS[0]
    watch = subprocess.Popen(
        [program, "api", "watch", "-output", "json", "-socketPath", SOCKET],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    print("an identity" if "spiffe_id" in watch.stdout.readline() else "none")
    os.unlink(program)
    print("withdrawn" if "PermissionDenied" in watch.stderr.readline() else "still there")
    watch.kill()
    watch.wait()


globals()[CASE]()
