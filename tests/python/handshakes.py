"""Callers who do not shake hands as they should. handshakes.py CASE HOST PORT [NUMBER].

Prints one word for each connection: `alert`, `closed`, or what came instead. Those that hold
connections print `held` and wait for a line on standard input.
"""

import os
import random
import socket
import ssl
import struct
import sys

CASE, HOST, PORT, *ARGUMENTS = sys.argv[1:]
DEADLINE_SECONDS = 30
HANDSHAKE, ALERT, APPLICATION = 22, 21, 23


def connect():
    end = socket.create_connection((HOST, int(PORT)))
    end.settimeout(DEADLINE_SECONDS)
    return end


def hello(version=None):
    """A hello as a common library writes it: its handshake message, without record headers."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    tls = context.wrap_bio(incoming, outgoing)
    try:
        tls.do_handshake()
    except ssl.SSLWantReadError:
        pass
    return outgoing.read()[5:]


def record(kind, payload, length=None):
    return struct.pack("!BHH", kind, 0x0303, len(payload) if length is None else length) + payload


def ends(end):
    """How the other side ends it."""
    data = b""
    while True:
        try:
            piece = end.recv(4096)
        except ConnectionError:
            return "alert" if data[:1] == bytes([ALERT]) else "closed"
        except socket.timeout:
            return "nothing"
        if not piece:
            break
        data += piece
    if b"HTTP" in data:
        return "HTTP"
    if not data:
        return "closed"
    # What comes before an alert is the server's part of the handshake.
    return "alert" if data[0] in (ALERT, HANDSHAKE) else repr(data[:20])


def say(*pieces):
    end = connect()
    try:
        for piece in pieces:
            end.sendall(piece)
        end.shutdown(socket.SHUT_WR)
    except OSError:
        pass
    print(ends(end))


def held(first):
    """Opens so many connections, says `first` on each, and holds them."""
    number = int(ARGUMENTS[0])
    all_held = []
    for _ in range(number):
        end = connect()
        try:
            end.sendall(first)
        except ConnectionError:
            pass
        all_held.append(end)
    print("held", flush=True)
    sys.stdin.readline()


def strange():
    whole = hello()
    say(*[record(HANDSHAKE, bytes([byte])) for byte in whole], record(ALERT, b"\x01\x00"))
    say(record(HANDSHAKE, b"\x01\xff\xff\xff" + whole[4:]))
    say(record(HANDSHAKE, whole, length=0xFFFF))
    say(*[record(HANDSHAKE, b"")] * 2000, record(HANDSHAKE, whole))
    say(record(HANDSHAKE, whole[: len(whole) // 2]))
    say(b"\x80\x2e\x01\x00\x02" + b"\x00" * 40)
    say(record(APPLICATION, b"x" * 100))
    say(record(ALERT, b"\x02\x28"))
    chance = random.Random(7)
    for _ in range(20):
        say(bytes([HANDSHAKE, 3, 1]) + chance.randbytes(300))
    # Hellos with one byte changed.
    for _ in range(200):
        changed = bytearray(whole)
        changed[chance.randrange(len(changed))] = chance.randrange(256)
        say(record(HANDSHAKE, bytes(changed)))


def plain():
    say(b"GET / HTTP/1.1\r\nhost: web\r\n\r\n")
    say(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n")
    say(b"PROXY TCP4 10.0.0.1 10.0.0.2 1 2\r\n" + record(HANDSHAKE, hello()))
    say(b"\r\n\r\n\x00\r\nQUIT\n\x21\x11\x00\x0c" + b"\x00" * 12 + record(HANDSHAKE, hello()))
    say(b"\x00" + record(HANDSHAKE, hello()))


def silent():
    held(b"")


def half():
    held(record(HANDSHAKE, hello()[:60]))


os.environ.pop("SSLKEYLOGFILE", None)
globals()[CASE]()
