"""An agent that has no descriptors left. lacks.py CASE SOCKET PID LOG ARGUMENTS.

The agent's limit is lowered from outside and raised again; what it has open stays open.
"""

import os
import resource
import select
import signal
import subprocess
import sys
import time
from pathlib import Path

from raw import Raw, ask, connect, said

CASE, SOCKET, PID, LOG, *ARGUMENTS = sys.argv[1:]
AGENT, LOG = int(PID), Path(LOG)
_, MOST = resource.prlimit(AGENT, resource.RLIMIT_NOFILE)


def limit(number):
    resource.prlimit(AGENT, resource.RLIMIT_NOFILE, (number, MOST))


def logged(text):
    return LOG.read_text().count(text)


def until(what, done):
    end = time.monotonic() + 20
    while not done():
        if time.monotonic() > end:
            sys.exit(f"waited in vain: {what}\n{LOG.read_text()}")
        time.sleep(0.01)


def accepted():
    """A connection that the agent has pinned, and that has asked for nothing yet."""
    raw = Raw(connect(SOCKET))
    select.select([raw.end], [], [], 20)
    return raw


def answer(raw):
    raw.call()
    return said(next(raw.events()))


def is_silent(raw):
    return not select.select([raw.end], [], [], 0)[0]


def rounds(number):
    """Waits until the agent has tried so often and could not look. It says so once a second."""
    before = logged("processes cannot be looked at")
    until("the agent to try", lambda: logged("processes cannot be looked at") >= before + number)


def every_step():
    """The answers when each of the agent's steps in turn is the one that fails. With an argument that
    program runs beside."""
    beside = [subprocess.Popen([program, "60"]) for program in ARGUMENTS]
    answers, whole, number = set(), 0, 1
    while whole < 3 and number < 300:
        raw = accepted()
        limit(number)
        said_now = answer(raw)
        limit(MOST)
        raw.end.close()
        answers.add(said_now)
        whole = whole + 1 if said_now != "status 14" else 0
        number += 1
    for process in beside:
        process.kill()
    print(*sorted(answers), sep="\n")


def every_step_of_a_connection():
    """The same, of one that is opened meanwhile: what is not accepted waits."""
    answers, at_once, number = set(), 0, 1
    while at_once < 3 and number < 300:
        limit(number)
        refused = logged("cannot accept a connection")
        end = connect(SOCKET)
        try:
            raw = Raw(end)
            raw.call()
            until(
                "an answer, or none",
                lambda: not is_silent(raw) or logged("cannot accept a connection") > refused,
            )
            at_once = at_once + 1 if logged("cannot accept a connection") == refused else 0
            limit(MOST)
            answers.add(said(next(raw.events())))
        except ConnectionError:
            answers.add("closed")
        limit(MOST)
        end.close()
        number += 1
    print(*sorted(answers), sep="\n")


def stream():
    """A stream that is open while there are none, and a call beside it."""
    held, beside = accepted(), accepted()
    print(answer(held))
    limit(1)
    print(answer(beside))
    rounds(3)
    print("silent" if is_silent(held) else said(next(held.events())))
    limit(MOST)
    print(answer(beside))
    # The stream is alive: it tells the next change.
    Path(ARGUMENTS[0]).write_text(Path(ARGUMENTS[0]).read_text() + ARGUMENTS[1])
    print(said(next(held.events())))


def drift():
    """The same in a pod that is watched; afterwards it runs what it must not."""
    held = accepted()
    print(answer(held))
    limit(1)
    rounds(3)
    print("silent" if is_silent(held) else said(next(held.events())))
    print("taken back", logged("taken back"))
    limit(MOST)
    print(ask(connect(SOCKET)))
    stranger = subprocess.Popen([ARGUMENTS[0], "60"])
    print(said(next(held.events())))
    print("taken back", logged("taken back"))
    os.kill(stranger.pid, signal.SIGKILL)


{
    "every_step": every_step,
    "every_step_of_a_connection": every_step_of_a_connection,
    "stream": stream,
    "drift": drift,
}[CASE]()
