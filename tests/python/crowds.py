"""Too many of everything. crowds.py CASE SOCKET ARGUMENTS: prints what became of it."""

import json
import os
import resource
import socket
import subprocess
import sys
import time
from pathlib import Path

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc
from raw import HEADER, X509, Raw, ask, connect, said
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


def all_streams():
    """Asks for 5,000 streams and holds those that it gets, whatever is said of the others."""
    agent, opened, refused, raws = int(ARGUMENTS[0]), 0, 0, []
    before = memory(agent)
    while opened + refused < 5000:
        raw = Raw(connect(SOCKET))
        raws.append(raw)
        events = raw.events()
        for _ in range(50):
            raw.call()
            event = next(events)
            opened += event[0] == "message"
            refused += said(event) == "status 8"
    print("opened", opened, "refused", refused)
    print("grown little", memory(agent) - before < 50_000)


def unary():
    """So many processes ask for a token, of no audience, once each; at last one of another user, if he is named."""
    for user in [None] * int(ARGUMENTS[0]) + ARGUMENTS[1:]:
        sys.stdout.flush()
        pid = os.fork()
        if pid == 0:
            if user:
                os.setuid(int(user))
            raw = Raw(connect(SOCKET))
            raw.call("/SpiffeWorkloadAPI/FetchJWTSVID")
            print(said(next(event for event in raw.events() if event[0] != "settings")), flush=True)
            os._exit(0)
        os.waitpid(pid, 0)


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


def raise_for(what, seconds=30):
    end = time.monotonic() + seconds

    def still(*_):
        if time.monotonic() > end:
            raise TimeoutError(what)
        os.sched_yield()

    return still


def is_closed(end):
    """Has the agent closed this connection? Reads what is there, and waits for nothing."""
    end.setblocking(False)
    try:
        while end.recv(65536):
            pass
        return True
    except BlockingIOError:
        return False
    except ConnectionError:
        return True


def idle():
    """Connections that were asked and have nothing open end; those that have stay, and clients come back."""
    watch = "/grpc.health.v1.Health/Watch"
    held = [Raw(connect(SOCKET)) for _ in range(2)]
    numbers = [raw.call(method) for raw, method in zip(held, [X509, watch])]
    for raw in held:
        next(raw.events())
    with grpc.insecure_channel(f"unix:{SOCKET}") as channel:
        stub = health_pb2_grpc.HealthStub(channel)

        def check():
            return stub.Check(health_pb2.HealthCheckRequest(), metadata=HEADER, timeout=10).status

        states = []
        check()
        channel.subscribe(states.append)
        for _ in range(3):
            # One has said no more than hello, one was asked something that was answered.
            fresh, asked = Raw(connect(SOCKET)), Raw(connect(SOCKET))
            asked.call("/grpc.health.v1.Health/Check")
            still = raise_for("idle connections to be closed")
            while not (is_closed(fresh.end) and is_closed(asked.end)):
                still()
        print("held", not any(is_closed(raw.end) for raw in held))
        still = raise_for("the client of gRPC to be idle")
        while grpc.ChannelConnectivity.IDLE not in states:
            still()
        print("again", check())
    for raw, number in zip(held, numbers):
        raw.end.setblocking(True)
        raw.http.reset_stream(number, 8)
        raw.flush()
        still = raise_for("a connection to be closed when its stream has ended")
        while not is_closed(raw.end):
            still()
    print("closed")


def full():
    """So many connections that a user has no more, with nothing open: who comes is served all the same.

    One that has something open is older than all of them, and stays.
    """
    held = Raw(connect(SOCKET))
    held.call()
    next(held.events())
    ends = []
    for _ in range(int(ARGUMENTS[0])):
        end = connect(SOCKET)
        # The preface of HTTP/2 and empty settings.
        end.sendall(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\4\0\0\0\0\0")
        ends.append(end)
    print("asked", ask(connect(SOCKET)))
    still = raise_for("three to give way")
    while not all(is_closed(end) for end in ends[:3]):
        still()
    gone = [number for number, end in enumerate(ends) if is_closed(end)]
    print("gave way", gone)
    print("held", not is_closed(held.end))


def known():
    """Asks again and again on one connection, which the agent answers by what it knows, until the right is lost."""
    program, admin = ARGUMENTS
    raw = Raw(connect(SOCKET))
    events = raw.events()

    def answer():
        raw.call()
        return said(next(events))

    print(*sorted({answer() for _ in range(50)}))
    command = [program, "workload", "delete", "default/app", "-socketPath", admin]
    subprocess.run(command, check=True, capture_output=True)
    raw.call()
    # The fifty that are open, and the one that was asked for now.
    print(*sorted({said(next(events)) for _ in range(51)}))


def passing():
    """Connects and goes away at once, many times; half of it in the middle of a question."""
    agent, times = int(ARGUMENTS[0]), int(ARGUMENTS[1])
    before = descriptors(agent)
    for number in range(times):
        if number == times // 5:
            # Whatever is kept once and for all is there by now.
            used = memory(agent)
        end = connect(SOCKET)
        if number % 2:
            Raw(end).call()
        end.close()
    still = raise_for("the descriptors to be closed")
    while descriptors(agent) > before + 5:
        still()
    print("back", memory(agent) - used < 20_000)


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
