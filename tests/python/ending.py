"""One request over HTTP/2 that takes long, on a connection that is asked to go away.

    ending.py HOST PORT PATH

Prints what comes, a word a line: `asked`, `goaway`, `answered STATUS`, `closed`. Never leaves by itself.
Frame by frame, since the library takes nothing more once it has seen GOAWAY.
"""

import socket
import struct
import sys

import hpack

HEADERS, SETTINGS, PING, GOAWAY = 1, 4, 6, 7
ACK = END_STREAM = 0x1
END_HEADERS = 0x4

host, port, path = sys.argv[1], int(sys.argv[2]), sys.argv[3]
end = socket.create_connection((host, port))
encoder, decoder = hpack.Encoder(), hpack.Decoder()


def send(kind, flags=0, stream=0, payload=b""):
    end.sendall(struct.pack("!I", len(payload))[1:] + struct.pack("!BBI", kind, flags, stream) + payload)


def read(reader):
    head = reader.read(9)
    if len(head) < 9:
        return None
    length = int.from_bytes(head[:3], "big")
    return head[3], head[4], reader.read(length)


end.sendall(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n")
send(SETTINGS)
request = [(":method", "GET"), (":scheme", "http"), (":authority", "web"), (":path", path)]
send(HEADERS, END_STREAM | END_HEADERS, 1, encoder.encode(request))
print("asked", flush=True)
reader = end.makefile("rb")
try:
    while frame := read(reader):
        kind, flags, payload = frame
        if kind in (SETTINGS, PING) and not flags & ACK:
            send(kind, ACK, 0, payload if kind == PING else b"")
        if kind == GOAWAY:
            print("goaway", flush=True)
        if kind == HEADERS:
            print("answered", dict(decoder.decode(payload))[":status"], flush=True)
except ConnectionError:
    pass
print("closed", flush=True)
