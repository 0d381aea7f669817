"""Too many of everything. crowds.py CASE SOCKET ARGUMENTS: prints what became of it."""

import json
import os
import resource
import socket
import subprocess
import sys
from pathlib import Path

from raw import Raw, connect, said
from spiffe._proto import workload_pb2

CASE, SOCKET, *ARGUMENTS = sys.argv[1:]
_, most = resource.getrlimit(resource.RLIMIT_NOFILE)
resource.setrlimit(resource.RLIMIT_NOFILE, (min(most, 20000), most))


def descriptors(pid):
    return len(os.listdir(f"/proc/{pid}/fd"))


def memory(pid):
    """Kilobytes."""
    line = next(
        line for line in Path(f"/proc/{pid}/status").read_text().splitlines() if "VmRSS" in line
    )
    return int(line.split()[1])


def streams():
    """Opens streams until one is refused, on many connections."""
    opened, raws = 0, []
    while opened < 5000:
        raw = Raw(connect(SOCKET))
        raws.append(raw)
        for _ in range(50):
            raw.call()
            event = next(raw.events())
            if event[0] == "status":
                print("opened", opened, said(event))
                return
            opened += 1
    print("opened", opened)


def connections():
    """Opens connections that say nothing, and waits until the agent has closed them all."""
    agent = int(ARGUMENTS[0])
    before = descriptors(agent)
    ends = [connect(SOCKET) for _ in range(int(ARGUMENTS[1]))]
    for end in ends:
        end.settimeout(40)
        try:
            if end.recv(1):
                # The server's own first words; the end comes after them.
                while end.recv(4096):
                    pass
        except ConnectionError:
            pass
        end.close()
    while descriptors(agent) > before + 5:
        os.sched_yield()
    print("closed")


def passing():
    """Connects and goes away at once, many times; half of it in the middle of a question."""
    agent, times = int(ARGUMENTS[0]), int(ARGUMENTS[1])
    before = descriptors(agent)
    for number in range(times):
        end = connect(SOCKET)
        if number % 2:
            Raw(end).call()
        end.close()
    while descriptors(agent) > before + 5:
        os.sched_yield()
    print("back", memory(agent) < 200_000)


def garbage():
    """Says what no client of gRPC says."""
    for words in [b"GET / HTTP/1.1\r\nhost: x\r\n\r\n", b"\0" * 100, b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\nxx" * 100]:
        end = connect(SOCKET)
        end.sendall(words)
        end.shutdown(socket.SHUT_WR)
        end.settimeout(20)
        try:
            while end.recv(4096):
                pass
        except ConnectionError:
            pass
        print("closed")


def slow():
    """Reads nothing while its identity is replaced many times, then reads on to the newest."""
    agent, times, program, admin = int(ARGUMENTS[0]), int(ARGUMENTS[1]), *ARGUMENTS[2:]

    def authority(*words):
        command = [program, "authority", *words, "-socketPath", admin]
        return subprocess.run(command, check=True, capture_output=True).stdout

    # So small a window that the agent cannot send more than two answers ahead.
    raw = Raw(connect(SOCKET), window=3000)
    raw.call()
    events = raw.events()
    next(events)
    before = memory(agent)
    for _ in range(times):
        authority("prepare")
        authority("activate")
        shown = json.loads(authority("show", "--json"))
        for one in shown:
            if one["status"] == "retired":
                authority("taint", one["id"])
                authority("revoke", one["id"])
    print("grown little", memory(agent) - before < 20_000)
    newest = next(
        one["id"] for one in shown if one["kind"] == "x509" and one["status"] == "active"
    )
    messages = 0
    for event in events:
        if event[0] != "message":
            print(said(event))
            return
        messages += 1
        answer = workload_pb2.X509SVIDResponse.FromString(event[1])
        if newest.encode() in answer.svids[0].x509_svid:
            break
    print("few messages", messages < times)


globals()[CASE]()
