"""An upstream behind mutual TLS that does what the path of a request says, good or bad.

    upstream.py ADDRESS PORT CERTIFICATE KEY BUNDLE [http1|tcp|greet|probe|plain]

`tcp` counts bytes, `greet` speaks first and then says what it hears, `probe` only looks whether
the handshake comes to its end, and `plain` and `greet-plain` have no TLS: they are the app behind
a proxy.

Prints one JSON line for each thing that happens: `listening`, `handshake`, `refused` (a handshake
that failed, and how many bytes of a request came all the same), `request`, `ended` (of a body or
an opaque connection, with its length).
"""

import base64
import hashlib
import json
import socket
import ssl
import struct
import sys
import threading
import time

# Answers that no upstream should give.
ODD = {
    "/odd/lengths": b"HTTP/1.1 200 X\r\ncontent-length: 1\r\ncontent-length: 2\r\n\r\nab",
    "/odd/both": b"HTTP/1.1 200 X\r\ncontent-length: 3\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n",
    "/odd/nul": b"HTTP/1.1 200 X\r\nname: a\0b\r\ncontent-length: 0\r\n\r\n",
    "/odd/switch": b"HTTP/1.1 101 X\r\nconnection: upgrade\r\nupgrade: else\r\n\r\nHTTP/1.1 200 X\r\ncontent-length: 3\r\n\r\nbad",
    "/odd/huge": b"HTTP/1.1 200 X\r\nname: " + b"x" * 300_000 + b"\r\ncontent-length: 0\r\n\r\n",
    "/odd/many": b"HTTP/1.1 200 X\r\n" + b"name: x\r\n" * 2000 + b"content-length: 0\r\n\r\n",
    "/odd/text": b"SSH-2.0-else\r\n\r\n",
    "/odd/negative": b"HTTP/1.1 200 X\r\ncontent-length: -1\r\n\r\n",
    "/odd/extra": b"HTTP/1.1 200 X\r\ncontent-length: 6\r\n\r\nhello\nHTTP/1.1 200 X\r\ncontent-length: 3\r\n\r\nbad",
}

PRINTING = threading.Lock()
COUNTING = threading.Lock()
SEEN = {}


def tell(event, **facts):
    with PRINTING:
        print(json.dumps({"event": event, **facts}), flush=True)


def times(path):
    """How often this path was asked for, this time included."""
    with COUNTING:
        SEEN[path] = SEEN.get(path, 0) + 1
        return SEEN[path]


class Reset(Exception):
    """The connection is to be reset."""


class Connection:
    def __init__(self, stream, number):
        self.stream, self.number, self.buffer = stream, number, b""

    def more(self):
        data = self.stream.recv(65536)
        self.buffer += data
        return bool(data)

    def line(self):
        while b"\r\n" not in self.buffer:
            if not self.more():
                return None
        line, self.buffer = self.buffer.split(b"\r\n", 1)
        return line.decode()

    def take(self, length):
        """Reads a body away and tells its length."""
        left = length
        while left:
            if not self.buffer and not self.more():
                break
            part = min(left, len(self.buffer))
            self.buffer, left = self.buffer[part:], left - part
        return length - left

    def body(self, fields):
        if fields.get("transfer-encoding") == "chunked":
            total = 0
            while True:
                line = self.line()
                if line is None:
                    return total
                size = int(line, 16)
                total += self.take(size)
                if self.line() is None or not size:
                    return total
        return self.take(int(fields.get("content-length", 0)))

    def answer(self, status, body=b"hello\n", length=None):
        head = f"HTTP/1.1 {status} X\r\ncontent-length: {len(body) if length is None else length}\r\n\r\n"
        self.stream.sendall(head.encode() + body)

    def exactly(self, length):
        while len(self.buffer) < length:
            if not self.more():
                return None
        found, self.buffer = self.buffer[:length], self.buffer[length:]
        return found

    def websocket(self, path, fields):
        """Says every short frame once more, and how it ended. Spec: RFC 6455 section 5.2."""
        to = "else" if path == "/ws-else" else "websocket"
        head = f"HTTP/1.1 101 X\r\nconnection: Upgrade\r\nupgrade: {to}\r\n"
        head += f"sec-websocket-accept: {accept_of(fields['sec-websocket-key'])}\r\n\r\n"
        self.stream.sendall(head.encode())
        tell("switched")
        if path == "/ws-bye":
            self.stream.sendall(b"\x88\x02\x03\xe8")
            return False
        while first := self.exactly(2):
            length = first[1] & 0x7F
            mask, data = self.exactly(4), self.exactly(length)
            data = bytes(byte ^ mask[place % 4] for place, byte in enumerate(data))
            self.stream.sendall(bytes([first[0], length]) + data)
        tell("ended", websocket=True)
        self.stream.sendall(b"\x81\x03bye")
        return False

    def serve(self):
        """Requests, one after the other. False when the connection is to end."""
        first = self.line()
        if not first:
            return False
        method, path, _ = first.split(" ", 2)
        fields = {}
        while line := self.line():
            name, value = line.split(":", 1)
            fields[name.lower()] = value.strip()
        count = times(path)
        tell("request", method=method, path=path, connection=self.number)
        return self.act(path.split("?")[0], method, fields, count)

    def act(self, path, method, fields, count):
        if path.startswith("/ws") and fields.get("upgrade", "").lower() == "websocket":
            return self.websocket(path, fields)
        if path == "/swallow":  # takes the body, then breaks off
            tell("ended", bytes=self.body(fields))
            raise Reset
        if path == "/break":  # breaks off at once
            return False
        if path == "/slow":
            time.sleep(60)
            return False
        if path.startswith("/wait/"):
            time.sleep(float(path.split("/")[2]))
        if path == "/late" and count == 1:  # only the first one waits
            time.sleep(30)
            return False
        if path == "/cut":  # with a length
            self.answer(200, b"begin", length=100000)
            raise Reset
        if path == "/cut-chunked":
            self.stream.sendall(b"HTTP/1.1 200 X\r\ntransfer-encoding: chunked\r\n\r\n5\r\nbegin\r\n")
            raise Reset
        if path in ODD:
            self.stream.sendall(ODD[path])
            return True
        if path == "/goodbye":  # answers as if the connection stayed open, and closes it
            self.answer(200)
            return False
        if path == "/second":  # a kept connection breaks when it is used again
            if self.served:
                return False
            self.answer(200)
            return True
        if path.startswith("/status/"):  # /status/503 always, /status/503/2 twice
            parts = path.split("/")[2:]
            self.body(fields)
            bad = len(parts) == 1 or count <= int(parts[1])
            self.answer(int(parts[0]) if bad else 200)
            return True
        if path.startswith("/bytes/"):
            length = int(path.split("/")[2])
            self.answer(200, b"", length=length)
            block = b"x" * 65536
            while length:
                self.stream.sendall(block[: min(length, len(block))])
                length -= min(length, len(block))
            return True
        received = self.body(fields)
        if received:
            tell("ended", bytes=received)
        self.answer(200)
        return True


def accept_of(key):
    """Spec: RFC 6455 section 4.2.2."""
    digest = hashlib.sha1(key.encode() + b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11").digest()
    return base64.b64encode(digest).decode()


def reset(stream):
    """Ends a connection by RST."""
    stream.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    stream.close()


def http(stream, number):
    connection = Connection(stream, number)
    connection.served = False
    try:
        while connection.serve():
            connection.served = True
        stream.close()
    except Reset:
        reset(stream)


def tcp(stream):
    """Reads to the end, then answers with how much it was: the other way is open still."""
    total = 0
    while data := stream.recv(65536):
        total += len(data)
    tell("ended", bytes=total)
    stream.sendall(f"got {total}\n".encode())
    stream.unwrap()
    stream.close()


def greet(stream):
    stream.sendall(b"220 hello\r\n")
    while data := stream.recv(65536):
        stream.sendall(data)
    stream.close()


def one(raw, context, number, kind):
    names = []
    context.sni_callback = lambda _stream, name, _context: names.append(name)
    raw.settimeout(60)
    if kind in ("plain", "greet-plain"):
        try:
            greet(raw) if kind == "greet-plain" else http(raw, number)
        except OSError as error:
            tell("broken", error=type(error).__name__)
        return
    try:
        stream = context.wrap_socket(raw, server_side=True)
        # With TLS 1.3 a client's refusal comes after the server's part of the handshake.
        if kind == "probe":
            data = stream.recv(65536)
            tell("handshake", bytes=len(data))
            return
    except (ssl.SSLError, OSError) as error:
        tell("refused", error=type(error).__name__, reason=getattr(error, "reason", None) or "")
        return
    tell("handshake", connection=number, name=(names or [None])[0], alpn=stream.selected_alpn_protocol())
    try:
        if kind in ("tcp", "greet"):
            {"tcp": tcp, "greet": greet}[kind](stream)
        else:
            http(stream, number)
    except OSError as error:
        tell("broken", error=type(error).__name__)


def main():
    address, port, certificate, key, bundle = sys.argv[1:6]
    kind = sys.argv[6] if len(sys.argv) > 6 else "http1"
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    listener = socket.create_server((address, int(port)), family=family, backlog=1024)
    tell("listening")
    number = 0
    while True:
        raw, _ = listener.accept()
        number += 1
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.minimum_version = ssl.TLSVersion.TLSv1_3
        context.num_tickets = 0
        context.load_cert_chain(certificate, key)
        context.load_verify_locations(bundle)
        context.verify_mode = ssl.CERT_REQUIRED
        if kind == "http1":
            context.set_alpn_protocols(["http/1.1"])
        arguments = (raw, context, number, kind)
        threading.Thread(target=one, args=arguments, daemon=True).start()


main()
