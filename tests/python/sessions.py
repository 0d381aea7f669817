"""Sessions whose numbers come round again: sessions.py CASE SOCKET [AGENT CONFIGURATION LOG]. Needs root
and a PID namespace of its own. Prints what they got.
"""

import ctypes
import hashlib
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

from raw import Raw, connect
from spiffe._proto import workload_pb2

CASE, SOCKET, *ARGUMENTS = sys.argv[1:]
NUMBER, OTHER = 4711, 4811
CHILD_SUBREAPER = 36
SET_NAME = 15


def ask():
    """The certificate that somebody gets, by its digest, or why he gets none."""
    raw = Raw(connect(SOCKET))
    raw.call()
    event = next(raw.events())
    if event[0] != "message":
        return f"{event[0]} {event[1]}"
    svid = workload_pb2.X509SVIDResponse.FromString(event[1]).svids[0]
    return hashlib.sha256(svid.x509_svid).hexdigest()


def serve(end):
    """Does in a session what it is told."""
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    while True:
        words = end.recv(100).decode().split()
        if not words:
            os._exit(0)
        if words[0] == "ask":
            said = ask()
        elif words[0] == "run":
            said = str(subprocess.Popen(words[1:]).pid)
        elif words[0] == "fork" and os.fork() != 0:
            # The leader; its child goes on.
            signal.pause()
        else:
            said = "forked"
        end.send(said.encode())


class Session:
    """One of this number."""

    def __init__(self, number):
        self.number = number
        self.end, theirs = socket.socketpair()
        for _ in range(1000):
            Path("/proc/sys/kernel/ns_last_pid").write_text(str(number - 1))
            pid = os.fork()
            if pid == 0:
                if os.getpid() != number:
                    os._exit(0)
                os.setsid()
                # What stands behind the name in `stat` is not what it says there.
                ctypes.CDLL(None).prctl(SET_NAME, b"a) R 1 (\nb) S 9", 0, 0, 0)
                self.end.close()
                serve(theirs)
            if pid == number:
                theirs.close()
                return
            os.waitpid(pid, 0)
        sys.exit(f"the number {number} was not given out again")

    def __call__(self, words):
        self.end.send(words.encode())
        return self.end.recv(100).decode()

    def lose_leader(self):
        """Only the child of its leader goes on."""
        kill(self.number)
        # Until then it is there, if only as one that has ended.
        os.waitpid(self.number, 0)

    def stop(self):
        """Ends all its processes, and waits for a moment in which none of them was there."""
        while members := [pid for pid in numbers() if session(pid) == self.number]:
            for pid in members:
                kill(pid)
            reap()
        now = uptime()
        while uptime() == now:
            time.sleep(0.001)


def numbers():
    return [int(name) for name in os.listdir("/proc") if name.isdigit()]


def session(pid):
    try:
        return int(Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[3])
    except OSError:
        return None


def kill(pid):
    try:
        os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
        pass


def reap():
    try:
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass
    except ChildProcessError:
        pass


def uptime():
    return Path("/proc/uptime").read_text().split()[0]


def lives(pid):
    reap()
    return Path(f"/proc/{pid}").exists()


def wait(what, is_so):
    end = time.monotonic() + 20
    while not is_so():
        if time.monotonic() > end:
            sys.exit(f"waited in vain: {what}")
        time.sleep(0.01)


def told(certificate, before):
    if certificate.startswith("status"):
        return certificate
    return "the same" if certificate == before else "another"


def reused():
    """Nobody is told what a session of his number had."""
    first = Session(NUMBER)
    had = first("ask")
    print(told(first("ask"), had))
    first("fork")
    print(told(first("ask"), had))
    first.lose_leader()
    print(told(first("ask"), had))
    first.stop()
    second = Session(NUMBER)
    has = second("ask")
    print(told(has, had), told(second("ask"), has))
    second.stop()
    third = Session(NUMBER)
    third("fork")
    third.lose_leader()
    print(told(third("ask"), has))
    third.stop()


def hit():
    """What a rule saw counts for the session in which it was."""
    first = Session(NUMBER)
    print(told(first("ask"), ""))
    pid = int(first("run sleep 77"))
    wait("a refusal", lambda: first("ask") == "status 7")
    kill(pid)
    wait("its end", lambda: not lives(pid))
    print(first("ask"))
    first.stop()
    second = Session(NUMBER)
    print(told(second("ask"), ""))
    second.stop()


def restarted():
    """While nobody looks, a number comes round again. Who has it does not answer for the other."""
    agent, configuration, log = ARGUMENTS
    gone, stays = Session(NUMBER), Session(OTHER)
    print(told(gone("ask"), ""), told(stays("ask"), ""))
    for pid in numbers():
        if Path(f"/proc/{pid}/comm").read_text().strip() == "postern-agent":
            kill(pid)
            wait("the end of the agent", lambda: session(pid) is None)
    gone.stop()
    stranger = Session(NUMBER)
    innocent, guilty = int(stranger("run sleep 66")), int(stays("run sleep 66"))
    # In a session of nobody's, as before.
    again = subprocess.Popen([agent, "run", "--config", configuration], stdout=open(log, "w"))
    wait("the answer", lambda: not lives(guilty))
    # Written behind the work.
    wait("the end of a pod", lambda: f"Session({NUMBER})" in Path(log).read_text())
    print("the other one", "lives" if lives(innocent) else "was ended")
    again.kill()
    again.wait()
    stranger.stop()
    stays.stop()


ctypes.CDLL(None).prctl(CHILD_SUBREAPER, 1, 0, 0, 0)
globals()[CASE]()
