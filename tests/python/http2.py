"""Frames of HTTP/2 as no library would send them, through the proxy to an app.

    http2.py HOST PORT CERTIFICATE KEY APP_PORT PROXY_PID [GROUP...]

Prints what did not come out as it must, and ends with 1 if there was any. The policies are those of
`http1.py`.
"""

import socket
import ssl
import struct
import sys
import threading
import time

import h2.config
import h2.connection
import h2.events
import hpack

from wire import DEADLINE_SECONDS, OK, Site, Table, exchange, get, is_field, parse_fields

table = Table()

DATA, HEADERS, PRIORITY, RST_STREAM, SETTINGS, PUSH_PROMISE, PING, GOAWAY, WINDOW_UPDATE, CONTINUATION = range(10)
END_STREAM = ACK = 0x1
END_HEADERS = 0x4
PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
# How much the proxy may grow under any one attack.
MEMORY_MIB = 96


def frame(kind, flags, stream, payload=b""):
    return struct.pack("!I", len(payload))[1:] + struct.pack("!BBI", kind, flags, stream) + payload


def setting(**values):
    numbers = {"table": 1, "push": 2, "streams": 3, "window": 4, "size": 5, "list": 6}
    return b"".join(struct.pack("!HI", numbers[name], value) for name, value in values.items())


def request(path="/", *more, method="GET", authority="web.example"):
    return [
        (":method", method),
        (":scheme", "https"),
        (":authority", authority),
        (":path", path),
        *more,
    ]


class Raw:
    """One connection, frame by frame."""

    def __init__(self, site, settings=b"", acks=True, protocol="h2"):
        self.end = site.proxy.connect(protocol)
        self.encoder, self.decoder = hpack.Encoder(), hpack.Decoder()
        self.acks = acks
        self.bytes = b""
        self.streams = {}
        self.goaway = None
        self.closed = None
        self.pongs = 0
        self.send(PREFACE + frame(SETTINGS, 0, 0, settings))

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.end.close()

    def send(self, data):
        """Tells whether it could be sent."""
        try:
            self.end.settimeout(DEADLINE_SECONDS)
            self.end.sendall(data)
            return True
        except OSError as error:
            self.closed = self.closed or type(error).__name__
            return False

    def block(self, fields):
        """Literals without indexing: exactly these bytes, whatever they are."""
        block = b""
        for name, value in fields:
            block += b"\0"
            for text in (name, value):
                text = text if isinstance(text, bytes) else text.encode("latin-1")
                block += integer(len(text), 7) + text
        return block

    def ask(self, stream, fields, data=None, end=True):
        flags = END_HEADERS | (END_STREAM if data is None and end else 0)
        sent = frame(HEADERS, flags, stream, self.block(fields))
        if data is not None:
            sent += frame(DATA, END_STREAM if end else 0, stream, data)
        return self.send(sent)

    def read(self, holds, patience=DEADLINE_SECONDS):
        """Reads until something holds, or the connection ends."""
        deadline = time.monotonic() + patience
        while not holds(self) and not self.closed:
            while len(self.bytes) < 9 or len(self.bytes) < 9 + self.length():
                self.end.settimeout(max(deadline - time.monotonic(), 0.01))
                try:
                    data = self.end.recv(65536)
                except socket.timeout:
                    return False
                except (OSError, ssl.SSLError) as error:
                    self.closed = type(error).__name__
                    return holds(self)
                if not data:
                    self.closed = "closed"
                    return holds(self)
                self.bytes += data
            length = self.length()
            kind, flags, stream = struct.unpack("!BBI", self.bytes[3:9])
            payload, self.bytes = self.bytes[9 : 9 + length], self.bytes[9 + length :]
            self.take(kind, flags, stream & 0x7FFFFFFF, payload)
        return holds(self)

    def length(self):
        return int.from_bytes(self.bytes[:3], "big")

    def take(self, kind, flags, number, payload):
        stream = self.streams.setdefault(number, Stream())
        if kind == HEADERS:
            stream.headers += self.decoder.decode(payload)
        elif kind == DATA:
            stream.data += payload
        elif kind == RST_STREAM:
            stream.reset = struct.unpack("!I", payload)[0]
        elif kind == GOAWAY:
            self.goaway = struct.unpack("!II", payload[:8])[1]
        elif kind == SETTINGS and not flags & ACK and self.acks:
            self.send(frame(SETTINGS, ACK, 0))
        elif kind == PING and not flags & ACK and self.acks:
            self.send(frame(PING, ACK, 0, payload))
        elif kind == PING:
            self.pongs += 1
        if kind in (HEADERS, DATA) and flags & END_STREAM:
            stream.ended = True

    def answer(self, number, patience=DEADLINE_SECONDS):
        """What became of a stream: a status, `reset`, `goaway` or `closed`."""

        def is_done(raw):
            stream = raw.streams.get(number, Stream())
            return stream.ended or stream.reset is not None or raw.goaway not in (None, 0)

        self.read(is_done, patience)
        stream = self.streams.get(number, Stream())
        if stream.ended or (stream.status and stream.reset is not None):
            return stream.status
        if stream.reset is not None:
            return "reset"
        if self.goaway not in (None, 0):
            return "goaway"
        return "closed" if self.closed else "silent"


class Stream:
    def __init__(self):
        self.headers, self.data, self.reset, self.ended = [], b"", None, False

    @property
    def status(self):
        found = [value for name, value in self.headers if name == ":status"]
        return int(found[-1]) if found else None

    def field(self, name):
        return [value for known, value in self.headers if known == name]


def integer(number, bits):
    """An integer of HPACK with a prefix of so many bits, all others zero."""
    most = (1 << bits) - 1
    if number < most:
        return bytes([number])
    number -= most
    rest = bytearray([most])
    while number >= 128:
        rest.append(number % 128 + 128)
        number //= 128
    rest.append(number)
    return bytes(rest)


REFUSED = ("reset", "goaway", "closed", 400)


def refused(site, what, fields, data=None, accepted=REFUSED):
    """The stream is refused, the app saw nothing, and others are served."""
    site.app.reset()
    with Raw(site) as raw:
        raw.ask(1, fields, data)
        answer = raw.answer(1)
        site.check(answer in accepted, what, "answer", answer)
        if answer in ("reset", 400):
            # A stream's error is not the connection's.
            raw.ask(3, request("/second"))
            answer = raw.answer(3)
            site.check(answer == 200, what, "the next stream", answer)
    seen = [head for head in site.app.heads() if not head.startswith(b"GET /second ")]
    site.check(not seen, what, "the app saw", seen)
    works(site, what)


def works(site, what):
    """Another caller is served, over both versions."""
    site.app.answer = OK
    site.works(what)
    with Raw(site) as raw:
        raw.ask(1, request("/works"))
        answer = raw.answer(1)
        site.check(answer == 200, what, "afterwards", answer)


def flood(site, what, sends, settings=b"", reads=True, seconds=3):
    """Sends as much as is taken in this time; others are served meanwhile, and memory is bounded."""
    before = site.memory()
    site.app.reset()
    with Raw(site, settings) as raw:
        ends = threading.Event()

        def send():
            raw.end.settimeout(2)
            for data in sends(raw):
                if ends.is_set():
                    return
                try:
                    raw.end.sendall(data)
                except OSError:
                    return

        def read():
            try:
                while not ends.is_set() and raw.end.recv(65536):
                    pass
            except (OSError, ssl.SSLError):
                pass

        threads = [threading.Thread(target=send)]
        if reads:
            threads.append(threading.Thread(target=read))
        for thread in threads:
            thread.start()
        deadline = time.monotonic() + seconds
        while threads[0].is_alive() and time.monotonic() < deadline:
            began = time.monotonic()
            site.works(what)
            grown = site.memory() - before
            site.check(grown < MEMORY_MIB, what, f"grew by {grown:.0f} MiB")
            threads[0].join(max(0.2 - (time.monotonic() - began), 0.01))
        ends.set()
        try:
            raw.end.shutdown(socket.SHUT_RDWR)
        except OSError:
            pass
        for thread in threads:
            thread.join()
    works(site, what)


@table.group
def resets(site):
    # FAULTS 96, 97
    def rapid(raw):
        for number in range(1, 40_001, 2):
            block = raw.block(request("/reset"))
            yield frame(HEADERS, END_HEADERS | END_STREAM, number, block) + frame(
                RST_STREAM, 0, number, struct.pack("!I", 8)
            )

    def rapid_with_body(raw):
        for number in range(1, 40_001, 2):
            block = raw.block(request("/reset", method="POST"))
            yield (
                frame(HEADERS, END_HEADERS, number, block)
                + frame(DATA, 0, number, b"hello")
                + frame(RST_STREAM, 0, number, struct.pack("!I", 8))
            )

    def zero_window(raw):
        # The server itself resets: a WINDOW_UPDATE of nothing is an error of the stream.
        for number in range(1, 40_001, 2):
            block = raw.block(request("/reset"))
            yield frame(HEADERS, END_HEADERS | END_STREAM, number, block) + frame(
                WINDOW_UPDATE, 0, number, struct.pack("!I", 0)
            )

    def overflow(raw):
        for number in range(1, 40_001, 2):
            block = raw.block(request("/reset"))
            yield frame(HEADERS, END_HEADERS | END_STREAM, number, block) + frame(
                WINDOW_UPDATE, 0, number, struct.pack("!I", 0x7FFFFFFF)
            )

    def malformed(raw):
        for number in range(1, 40_001, 2):
            block = raw.block(request("/reset", ("Upper", "x")))
            yield frame(HEADERS, END_HEADERS | END_STREAM, number, block)

    def self_dependent(raw):
        for number in range(1, 40_001, 2):
            block = raw.block(request("/reset"))
            yield frame(HEADERS, END_HEADERS | END_STREAM, number, block) + frame(
                PRIORITY, 0, number, struct.pack("!IB", number, 16)
            )

    for sends in [rapid, rapid_with_body, zero_window, overflow, malformed, self_dependent]:
        for reads in (True, False):
            what = f"{sends.__name__}, {'reading' if reads else 'not reading'}"
            flood(site, what, sends, reads=reads)
            asked = len([head for head in site.app.heads() if b"/reset" in head])
            site.check(asked < 2_000, what, f"the app was asked {asked} times")


@table.group
def continuations(site):
    # FAULTS 98
    def full(raw):
        yield frame(HEADERS, END_STREAM, 1, raw.block(request("/x")))
        for number in range(20_000):
            yield frame(CONTINUATION, 0, 1, raw.block([(f"x-{number}", "a" * 4_000)]))

    def empty(raw):
        yield frame(HEADERS, END_STREAM, 1, raw.block(request("/x")))
        for _ in range(200):
            yield frame(CONTINUATION, 0, 1) * 10_000

    def empty_headers(raw):
        yield frame(HEADERS, END_STREAM, 1)
        for _ in range(200):
            yield frame(CONTINUATION, 0, 1) * 10_000

    def small(raw):
        yield frame(HEADERS, END_STREAM, 1, raw.block(request("/x")))
        for _ in range(200):
            yield frame(CONTINUATION, 0, 1, raw.block([("x", "y")])) * 1_000

    def trailing(raw):
        # In the place of trailers.
        yield frame(HEADERS, END_HEADERS, 1, raw.block(request("/x", method="POST")))
        yield frame(HEADERS, END_STREAM, 1)
        for _ in range(200):
            yield frame(CONTINUATION, 0, 1, raw.block([("x", "y")])) * 1_000

    for sends in [full, empty, empty_headers, small, trailing]:
        for reads in (True, False):
            what = f"{sends.__name__}, {'reading' if reads else 'not reading'}"
            flood(site, what, sends, reads=reads)
            seen = [head for head in site.app.heads() if b"GET /x" in head]
            site.check(not seen, what, "the app saw", seen)
    for what, sent in [
        ("another frame between", lambda raw: frame(HEADERS, END_STREAM, 1, raw.block(request("/x"))) + frame(PING, 0, 0, b"12345678")),
        ("another stream's", lambda raw: frame(HEADERS, END_STREAM, 1, raw.block(request("/x"))) + frame(CONTINUATION, END_HEADERS, 3)),
        ("without a beginning", lambda raw: frame(CONTINUATION, END_HEADERS, 1, raw.block(request("/x")))),
        ("behind the end", lambda raw: frame(HEADERS, END_STREAM | END_HEADERS, 1, raw.block(request("/works"))) + frame(CONTINUATION, END_HEADERS, 1)),
    ]:
        with Raw(site) as raw:
            raw.send(sent(raw))
            raw.read(lambda raw: raw.goaway not in (None, 0))
            site.check(raw.goaway not in (None, 0) or raw.closed, what, "no error", raw.goaway)
        works(site, what)


@table.group
def floods(site):
    # FAULTS 99
    kinds = {
        "SETTINGS": lambda raw: frame(SETTINGS, 0, 0) * 1_000,
        "SETTINGS with values": lambda raw: frame(SETTINGS, 0, 0, setting(window=65_535, size=16_384)) * 1_000,
        "acknowledged SETTINGS": lambda raw: frame(SETTINGS, ACK, 0) * 1_000,
        "SETTINGS of the table": lambda raw: frame(SETTINGS, 0, 0, setting(table=0) + setting(table=4_096)) * 1_000,
        "PING": lambda raw: frame(PING, 0, 0, b"12345678") * 1_000,
        "acknowledged PING": lambda raw: frame(PING, ACK, 0, b"12345678") * 1_000,
        "PRIORITY": lambda raw: b"".join(frame(PRIORITY, 0, number, struct.pack("!IB", 0, 16)) for number in range(1, 2_000, 2)),
        "WINDOW_UPDATE of the connection": lambda raw: frame(WINDOW_UPDATE, 0, 0, struct.pack("!I", 1)) * 1_000,
        "WINDOW_UPDATE of a stream": lambda raw: frame(WINDOW_UPDATE, 0, 1, struct.pack("!I", 1)) * 1_000,
        "unknown": lambda raw: frame(0x42, 0xFF, 0, b"x" * 100) * 1_000,
        "unknown of a stream": lambda raw: frame(0x42, 0xFF, 1, b"x" * 100) * 1_000,
        "empty DATA": lambda raw: frame(DATA, 0, 1) * 1_000,
        "DATA of padding": lambda raw: frame(DATA, 0x8, 1, b"\xff" + b"\0" * 255) * 10,
        "RST_STREAM of closed streams": lambda raw: frame(RST_STREAM, 0, 1, struct.pack("!I", 8)) * 1_000,
        "ORIGIN and ALTSVC": lambda raw: frame(0xC, 0, 0, b"\0\0") * 500 + frame(0xA, 0, 0, b"\0\0") * 500,
    }
    for what, data in kinds.items():

        def sends(raw, data=data):
            yield frame(HEADERS, END_HEADERS, 1, raw.block(request("/x", method="POST")))
            piece = data(raw)
            for _ in range(1_000):
                yield piece

        for reads in (True, False):
            flood(site, f"{what}, {'reading' if reads else 'not reading'}", sends, reads=reads, seconds=2)


@table.group
def windows(site):
    # FAULTS 100
    body = b"x" * 1_000_000
    answer = b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n" % len(body) + body
    before = site.memory()
    raws = []
    site.app.reset(answer)
    for _ in range(10):
        raw = Raw(site, setting(window=0))
        raws.append(raw)
        for number in range(1, 201, 2):
            raw.ask(number, request("/large"))
    site.app.wait(lambda app: len(app.requests) >= 900)
    works(site, "zero windows")
    grown = site.memory() - before
    # 1,000 answers of a megabyte, of which nobody takes any.
    site.check(grown < 2 * MEMORY_MIB, "zero windows", f"grew by {grown:.0f} MiB")
    # Nobody waits for them for ever: the streams or the connections end.
    for raw in raws[:2]:
        raw.read(lambda raw: raw.goaway is not None or any(s.reset is not None for s in raw.streams.values()), 60)
        is_over = raw.closed or raw.goaway is not None or any(s.reset is not None for s in raw.streams.values())
        site.check(is_over, "zero windows", "never given up")
    for raw in raws:
        raw.end.close()
    works(site, "zero windows")
    # One byte at a time, and yet whole.
    site.app.reset()
    with Raw(site, setting(window=1)) as raw:
        raw.ask(1, request("/small"))
        while raw.read(lambda raw: raw.streams.get(1, Stream()).data or raw.streams.get(1, Stream()).ended, 5):
            stream = raw.streams[1]
            if stream.ended or len(stream.data) >= 2:
                break
            raw.send(frame(WINDOW_UPDATE, 0, 1, struct.pack("!I", 1)))
            raw.read(lambda raw: len(raw.streams[1].data) >= 2 or raw.streams[1].ended, 5)
        site.check(raw.streams[1].data == b"ok", "windows of one byte", raw.streams[1].data)
    # More than was allowed, and windows beyond their limit.
    for what, sent in [
        ("a window beyond its limit", frame(WINDOW_UPDATE, 0, 0, struct.pack("!I", 0x7FFFFFFF)) * 2),
        ("a window of nothing", frame(WINDOW_UPDATE, 0, 0, struct.pack("!I", 0))),
        ("an initial window beyond its limit", frame(SETTINGS, 0, 0, setting(window=0x80000000))),
        ("frames too small", frame(SETTINGS, 0, 0, setting(size=1))),
        ("frames too large", frame(SETTINGS, 0, 0, setting(size=0xFFFFFF + 1))),
        ("a frame of another size", frame(SETTINGS, 0, 0, b"123")),
        ("settings of a stream", frame(SETTINGS, 0, 1)),
        ("acknowledged with content", frame(SETTINGS, ACK, 0, setting(window=1))),
        ("a short ping", frame(PING, 0, 0, b"1")),
        ("a ping of a stream", frame(PING, 0, 1, b"12345678")),
        ("a frame that is too long", frame(0x42, 0, 0, b"x" * 3_000_000)),
        ("data without a stream", frame(DATA, 0, 0, b"x")),
        ("data of a stream that never was", frame(DATA, 0, 5, b"x")),
        ("an even stream", None),
        ("a promise", frame(PUSH_PROMISE, END_HEADERS, 1, struct.pack("!I", 2))),
    ]:
        with Raw(site) as raw:
            if sent is None:
                sent = frame(HEADERS, END_HEADERS | END_STREAM, 2, raw.block(request("/x")))
            raw.send(sent)
            raw.read(lambda raw: raw.goaway not in (None, 0))
            site.check(raw.goaway not in (None, 0) or raw.closed, what, "no error", raw.goaway)
        works(site, what)
    for what, hello in [
        ("no preface", b"GET / HTTP/1.1\r\nHost: a\r\n\r\n"),
        ("half a preface", PREFACE[:10] + b"x" * 30),
        ("no settings", PREFACE + frame(PING, 0, 0, b"12345678")),
    ]:
        site.app.reset()
        with site.proxy.connect("h2") as end:
            end.sendall(hello)
            data = b""
            try:
                end.settimeout(DEADLINE_SECONDS)
                while more := end.recv(65536):
                    data += more
            except (OSError, ssl.SSLError):
                pass
            site.check(b"HTTP/1.1 200" not in data, what, data)
        site.check(not site.app.heads(), what, site.app.heads())
        works(site, what)


@table.group
def tables(site):
    # FAULTS 101
    def bomb(raw):
        """One large entry, and thousands of references to it."""
        entry = b"\x40" + integer(1, 7) + b"x" + integer(3_900, 7) + b"a" * 3_900
        yield frame(HEADERS, END_STREAM, 1, raw.block(request("/x")) + entry)
        for _ in range(100):
            yield frame(CONTINUATION, 0, 1, b"\xbe" * 16_000)

    def bombs(raw):
        entry = b"\x40" + integer(1, 7) + b"x" + integer(3_900, 7) + b"a" * 3_900
        for number in range(1, 201, 2):
            yield frame(HEADERS, END_STREAM | END_HEADERS, number, raw.block(request("/x")) + entry + b"\xbe" * 12_000)

    def large_list(raw):
        yield frame(HEADERS, END_STREAM, 1, raw.block(request("/x")))
        for number in range(300):
            yield frame(CONTINUATION, 0, 1, raw.block([(f"x-{number}", "a" * 15_000)]))
        yield frame(CONTINUATION, END_HEADERS, 1)

    def many_fields(raw):
        yield frame(HEADERS, END_STREAM, 1, raw.block(request("/x")))
        for number in range(200):
            yield frame(CONTINUATION, 0, 1, raw.block([(f"x-{number}", "y")] * 100))
        yield frame(CONTINUATION, END_HEADERS, 1)

    for sends in [bomb, bombs, large_list, many_fields]:
        for reads in (True, False):
            flood(site, f"{sends.__name__}", sends, reads=reads)
            seen = [head for head in site.app.heads() if b"GET /x" in head]
            site.check(not seen, sends.__name__, "the app saw", len(seen))
    plain = lambda raw: raw.block(request("/x"))
    for what, block in [
        ("an index that is not there", lambda raw: plain(raw) + b"\xff\x80\x01"),
        ("index 0", lambda raw: plain(raw) + b"\x80"),
        ("an index without end", lambda raw: plain(raw) + b"\xff" + b"\xff" * 20),
        ("a table larger than allowed", lambda raw: b"\x3f" + integer(1 << 20, 7) + plain(raw)),
        ("a table's size in the middle", lambda raw: plain(raw) + b"\x20"),
        ("a text longer than the block", lambda raw: plain(raw) + b"\0\x01x\x7f\xff\x10"),
        ("a Huffman code that is none", lambda raw: plain(raw) + b"\0\x01x\x84\xff\xff\xff\xff"),
        ("half a field", lambda raw: plain(raw) + b"\0\x05x"),
    ]:
        site.app.reset()
        with Raw(site) as raw:
            raw.send(frame(HEADERS, END_STREAM | END_HEADERS, 1, block(raw)))
            answer = raw.answer(1)
            site.check(answer in ("goaway", "closed", "reset"), what, answer)
        site.check(not site.app.heads(), what, "the app saw", site.app.heads())
        works(site, what)
    with Raw(site) as raw:
        fields = request("/x", *[(f"x-{number}", "y") for number in range(100)])
        raw.ask(1, fields)
        site.check(raw.answer(1) == 200, "100 fields", raw.answer(1))


@table.group
def streams(site):
    # FAULTS 102
    def never(end, reader, asked):
        while reader.more():
            pass
        return False

    site.app.reset(never)
    with Raw(site) as raw:
        # What the proxy allows at once is in its settings; beyond it streams are refused.
        for number in range(1, 601, 2):
            raw.ask(number, request("/wait"))
        raw.read(lambda raw: sum(s.reset is not None for s in raw.streams.values()) >= 190, 10)
        refusals = [s.reset for s in raw.streams.values() if s.reset is not None]
        site.check(raw.goaway not in (None, 0) or (len(refusals) >= 190 and set(refusals) == {7}), "above the limit", len(refusals), set(refusals), raw.goaway)
    site.check(len(site.app.heads()) <= 110, "above the limit", "the app was asked", len(site.app.heads()))
    works(site, "above the limit")
    # Bodies that never end.
    site.app.reset()
    with Raw(site) as raw:
        for number in range(1, 101, 2):
            raw.ask(number, request("/never", method="POST"), b"x", end=False)
        works(site, "bodies that never end")
        raw.read(lambda raw: all(raw.streams.get(n, Stream()).ended or raw.streams.get(n, Stream()).reset is not None for n in range(1, 101, 2)), 90)
        ended = sum(s.ended or s.reset is not None for s in raw.streams.values())
        site.check(ended >= 50 or raw.closed, "bodies that never end", f"{ended} of 50 ended", raw.goaway, raw.closed)
    was_cut = site.app.wait(lambda app: app.cut >= 50)
    site.check(was_cut, "bodies that never end", "the app saw no cut", site.app.cut)
    works(site, "bodies that never end")


@table.group
def silence(site):
    # FAULTS 94, 100, 102: with limits of a second.
    ends = {what: site.proxy.connect("h2") for what in ["nothing", "half a preface", "something else"]}
    ends["half a preface"].sendall(PREFACE[:12])
    ends["something else"].sendall(b"hello")
    for what, end in ends.items():
        end.settimeout(DEADLINE_SECONDS)
        try:
            while end.recv(1000):
                pass
        except socket.timeout:
            site.check(False, what, "was not closed")
        except (OSError, ssl.SSLError):
            pass
        end.close()
    works(site, "silence")
    site.app.reset(b"HTTP/1.1 200 OK\r\ncontent-length: 1000000\r\n\r\n" + b"x" * 1_000_000)
    with Raw(site, setting(window=10)) as raw:
        raw.ask(1, request("/large"))
        raw.read(lambda raw: raw.goaway is not None)
        site.check(raw.closed or raw.goaway is not None, "a small window", "never given up")
        site.check(len(raw.streams[1].data) == 10, "a small window", len(raw.streams[1].data))
    works(site, "a small window")


@table.group
def authorities(site):
    # FAULTS 103, 106, 112
    accepted = (400, "reset")
    for what, authority, host in [
        ("another host", "web.example", "other.example"),
        ("the denied host in the field", "web.example", "denied.example"),
        ("another port", "web.example", "web.example:81"),
        ("a list", "web.example", "web.example, other.example"),
        ("an empty host", "web.example", ""),
    ]:
        refused(site, what, request("/", ("host", host), authority=authority), accepted=accepted)
    refused(site, "two hosts", request("/", ("host", "web.example"), ("host", "web.example")), accepted=accepted)
    without = [field for field in request("/") if field[0] != ":authority"]
    refused(site, "neither", without, accepted=accepted)
    for value in ["", " ", "a b", "a/b", "u@a", "u:p@a", "a?b", "a#b", "a,b", "a:b", "a..b", "a\\b", "[::1", "a:99999", "a\0", "a\r\nb"]:
        refused(site, f"authority {value!r}", request("/", authority=value))
    for what, fields in [
        ("the same", request("/", ("host", "web.example"))),
        ("the same in capitals", request("/", ("host", "WEB.Example."))),
        ("only the field", without + [("host", "web.example")]),
        ("in capitals", request("/", authority="WEB.example")),
    ]:
        site.app.reset()
        with Raw(site) as raw:
            raw.ask(1, fields)
            site.check(raw.answer(1) == 200, what, raw.answer(1))
        heads = site.app.heads()
        site.check(len(heads) == 1 and is_field(heads[0], "host", "web.example"), what, heads)
    # One connection, several authorities: each is judged by who asks, never by who asked first.
    site.app.reset()
    with Raw(site) as raw:
        raw.ask(1, request("/1"))
        raw.ask(3, request("/3", authority="denied.example"))
        raw.ask(5, request("/5", authority="DENIED.EXAMPLE."))
        raw.ask(7, request("/7", authority="web.example"))
        raw.ask(9, request("/9", ("host", "denied.example"), authority="denied.example"))
        answers = [raw.answer(number) for number in (1, 3, 5, 7, 9)]
        site.check(answers == [200, 403, 403, 200, 403], "several authorities", answers)
    paths = sorted(head.split(b" ")[1] for head in site.app.heads())
    site.check(paths == [b"/1", b"/7"], "several authorities", paths)


@table.group
def fields(site):
    # FAULTS 104, 108, 110, 114, 115
    def without(name):
        return [field for field in request("/x") if field[0] != name]

    def instead(name, value):
        return [(known, value if known == name else old) for known, old in request("/x")]

    for value in ["", "x", "a/b", "*", "http://web.example/", "?x", " /", "/ x", "/x y", "/x\0", "/x\r\ny", "/x\ny", "/x\ty", "\\x", "//\0", "/\x7f", "/\xe9", "/%2", "/%00", "/a%2fb", "/..", "/x\r\nX: y"]:
        refused(site, f":path {value!r}", instead(":path", value))
    refused(site, ":path * of OPTIONS", [(n, {":method": "OPTIONS", ":path": "*"}.get(n, v)) for n, v in request()])
    for value in ["", " ", "GET ", "G T", "get", "GET\0", "GET\r\n", "CONNECT", "TRACE", "FOO", "G\xe9T", "PRI"]:
        refused(site, f":method {value!r}", instead(":method", value), accepted=(*REFUSED, 405, 501))
    for value in ["", "ftp", "ht tp", "http\0", "://", "javascript", "HTTPS\r\n"]:
        refused(site, f":scheme {value!r}", instead(":scheme", value))
    for name in [":method", ":path", ":scheme"]:
        refused(site, f"no {name}", without(name))
    for name, value in request("/x"):
        refused(site, f"{name} twice", request("/x") + [(name, value)], accepted=("reset", "goaway"))
        first = [(name, value), (name, value)] + without(name)
        refused(site, f"{name} twice at once", first, accepted=("reset", "goaway"))
        late = [field for field in request("/x") if field[0] != name] + [("x", "y"), (name, value)]
        refused(site, f"{name} late", late, accepted=("reset", "goaway", "closed"))
    for name in [":status", ":protocol", ":unknown", ":", ":host", ":Path", ":path ", ":authority\0"]:
        refused(site, f"{name!r}", [(name, "200")] + request("/x"))
    connect = [(":method", "CONNECT"), (":authority", "web.example:80")]
    refused(site, "CONNECT", connect, accepted=(*REFUSED, 405, 501))
    extended = connect + [(":scheme", "https"), (":path", "/"), (":protocol", "websocket")]
    refused(site, "extended CONNECT", extended, accepted=(*REFUSED, 405, 501))
    for name, value in [
        ("Upper", "x"), ("X", "y"), ("content-Length", "0"), ("Host", "web.example"), ("x y", "z"), ("x:", "y"), ("", "x"), ("x\0", "y"),
        ("x\r\n", "y"), ("x\ny", "z"), ("x\xe9", "y"), ("x", "y\0"), ("x", "y\r\nz: a"), ("x", "y\nz"), ("x", "y\rz"), ("x", "\x7f"), ("x", "\x1b"),
        ("connection", "close"), ("connection", "keep-alive"), ("connection", "x"), ("keep-alive", "timeout=5"), ("proxy-connection", "close"),
        ("transfer-encoding", "chunked"), ("transfer-encoding", "identity"), ("transfer-encoding", "gzip"), ("upgrade", "h2c"), ("upgrade", "websocket"),
        ("te", "gzip"), ("te", "trailers, gzip"), ("te", "chunked"), ("content-length", "x"), ("content-length", "-1"), ("content-length", "+0"),
        ("content-length", ""), ("content-length", "1, 2"), ("content-length", "99999999999999999999"),
    ]:
        refused(site, f"{name!r}: {value!r}", request("/x", (name, value)))
    refused(site, "two lengths", request("/x", ("content-length", "0"), ("content-length", "1")))
    # What is fine, and how it is cleaned.
    site.app.reset()
    with Raw(site) as raw:
        forged = [(name, "forged") for name in ["x-forwarded-client-cert", "x_forwarded_client_cert", "x-spiffe-id", "x-client-identity", "x-postern-a"]]
        raw.ask(1, request("/x", ("te", "trailers"), ("cookie", "a=b"), ("cookie", "c=d"), *forged))
        site.check(raw.answer(1) == 200, "cleaned", raw.answer(1))
    head = site.app.heads()[0]
    site.check(b"forged" not in head, "cleaned", head)
    site.check(is_field(head, "cookie", "a=b; c=d"), "cookies", head)
    own = parse_fields(head).get(b"x-forwarded-client-cert", [])
    site.check(len(own) == 1 and b"URI=spiffe://example.org/workload/frontend" in own[0], "cleaned", head)
    for path in ["/denied", "/denied/x", "/./denied", "/a/../denied", "/%64enied", "/a/%2e%2e/denied", "/denied?x", "/denied/../denied"]:
        refused(site, path, request(path), accepted=(403, 400, "reset"))
    for more in [("x-deny", "yes"), ("x-http-method-override", "GET")]:
        method = "GET" if more[0] == "x-deny" else "DELETE"
        refused(site, f"{more}", request("/x", more, method=method), accepted=(403,))
    refused(site, "x-deny twice", request("/x", ("x-deny", "no"), ("x-deny", "yes")), accepted=(403,))


@table.group
def states_and_sizes(site):
    # FAULTS 99, 104, 105: frames that no state of a stream allows, or of a size that is none.
    def headers(raw, stream, flags=END_HEADERS | END_STREAM, before=b"", method="GET", behind=b""):
        return frame(HEADERS, flags, stream, before + raw.block(request("/x", method=method)) + behind)

    def number(value):
        return struct.pack("!I", value)

    padded, priority = 0x8, 0x20
    for what, data in [
        ("headers without a stream", lambda raw: headers(raw, 0)),
        ("a smaller stream than the last", lambda raw: headers(raw, 5) + headers(raw, 3)),
        ("a reset of a stream that never was", lambda raw: frame(RST_STREAM, 0, 5, number(8))),
        ("a reset without a stream", lambda raw: frame(RST_STREAM, 0, 0, number(8))),
        ("a reset of another size", lambda raw: headers(raw, 1) + frame(RST_STREAM, 0, 1, b"123")),
        ("a window of a stream that never was", lambda raw: frame(WINDOW_UPDATE, 0, 5, number(1))),
        ("a window of another size", lambda raw: frame(WINDOW_UPDATE, 0, 0, b"123")),
        ("a goodbye of a stream", lambda raw: frame(GOAWAY, 0, 1, number(0) * 2)),
        ("half a goodbye", lambda raw: frame(GOAWAY, 0, 0, b"123")),
        ("a priority without a stream", lambda raw: frame(PRIORITY, 0, 0, number(3) + b"\0")),
        ("data that is all padding, and more", lambda raw: headers(raw, 1, END_HEADERS, method="POST") + frame(DATA, padded, 1, b"\x09x")),
        ("headers that are all padding, and more", lambda raw: frame(HEADERS, END_HEADERS | padded, 1, b"\xff" + raw.block(request("/x")))),
        ("headers without room for their padding", lambda raw: frame(HEADERS, END_HEADERS | padded, 1, b"")),
        ("headers without room for their priority", lambda raw: frame(HEADERS, END_HEADERS | priority, 1, b"123")),
        ("push that is neither on nor off", lambda raw: frame(SETTINGS, 0, 0, setting(push=2))),
        ("data of more than a frame", lambda raw: headers(raw, 1, END_HEADERS, method="POST") + frame(DATA, 0, 1, b"x" * 16_385)),
        ("headers of more than a frame", lambda raw: headers(raw, 1, behind=raw.block([("x", "y" * 17_000)]))),
    ]:
        site.app.reset()
        with Raw(site) as raw:
            raw.send(data(raw))
            raw.read(lambda raw: raw.goaway not in (None, 0))
            site.check(raw.goaway not in (None, 0) or raw.closed, what, "no error", raw.goaway)
        works(site, what)
    for what, data in [
        ("data behind the end", lambda raw: headers(raw, 1) + frame(DATA, END_STREAM, 1, b"x")),
        ("headers behind the end", lambda raw: headers(raw, 1) + headers(raw, 1)),
        ("headers twice", lambda raw: headers(raw, 1, END_HEADERS, method="POST") + headers(raw, 1)),
        ("trailers that are not the end", lambda raw: headers(raw, 1, END_HEADERS, method="POST") + frame(HEADERS, END_HEADERS, 1, raw.block([("x", "y")]))),
        ("a window of nothing of a stream", lambda raw: headers(raw, 1, END_HEADERS, method="POST") + frame(WINDOW_UPDATE, 0, 1, number(0))),
        ("a window of a stream beyond its limit", lambda raw: headers(raw, 1, END_HEADERS, method="POST") + frame(WINDOW_UPDATE, 0, 1, number(0x7FFFFFFF)) * 2),
        ("a stream that depends on itself", lambda raw: headers(raw, 1, END_HEADERS | END_STREAM | priority, number(1) + b"\0")),
    ]:
        site.app.reset(lambda *_: False)
        with Raw(site) as raw:
            raw.send(data(raw))
            answer = raw.answer(1)
            site.check(answer in REFUSED + (502,), what, "answer", answer)
        works(site, what)


@table.group
def values(site):
    # FAULTS 104, 111: an app that speaks HTTP/1 cuts the spaces around a value off, and would see another one.
    for value in [" yes", "yes ", "\tyes", "yes\t", " yes ", " "]:
        refused(site, f"x-deny: {value!r}", request("/x", ("x-deny", value)), accepted=(*REFUSED, 403))
    for name, value in [("x", " y"), ("x", "y "), ("x", "\ty"), ("host", " web.example"), ("content-length", " 0"), ("cookie", " a=b")]:
        refused(site, f"{name!r}: {value!r}", request("/x", (name, value)))
    for authority in ["user@web.example", "user:pass@web.example", "web.example/x", "web.example?x", "web.example#x", " web.example", "web.example ", "web.example:0", "web.example:99999", "a,b", "[::1"]:
        refused(site, f":authority {authority!r}", request("/x", authority=authority))
    for value in ["", "a b"]:
        site.app.reset()
        with Raw(site) as raw:
            raw.ask(1, request("/x", ("x-fine", value)))
            site.check(raw.answer(1) == 200, f"x-fine: {value!r}", raw.answer(1))


@table.group
def lengths(site):
    # FAULTS 105
    smuggled = b"GET /denied HTTP/1.1\r\nHost: a\r\n\r\n"
    for what, length, pieces in [
        ("more than it says", 2, [b"hello"]),
        ("nothing said, and more", 0, [smuggled]),
        ("more, later", 5, [b"hello", smuggled]),
    ]:
        site.app.reset()
        with Raw(site) as raw:
            raw.ask(1, request("/x", ("content-length", str(length)), method="POST"), end=False)
            for number, piece in enumerate(pieces):
                raw.send(frame(DATA, END_STREAM if number == len(pieces) - 1 else 0, 1, piece))
            answer = raw.answer(1)
            site.check(answer in ("reset", "goaway", 400, 502), what, answer)
        site.check(not any(b"denied" in head for head in site.app.heads()), what, site.app.heads())
        site.check(len(site.app.heads()) <= 1 and all(one["body"] is None for one in site.app.requests), what, site.app.requests)
        works(site, what)
    for what, length, data in [("less than it says", 10, b"hello"), ("nothing", 10, b"")]:
        site.app.reset()
        with Raw(site) as raw:
            raw.ask(1, request("/x", ("content-length", str(length)), method="POST"), data)
            answer = raw.answer(1)
            site.check(answer in ("reset", "goaway", 400, 502), what, answer)
        site.check(all(one["body"] is None for one in site.app.requests), what, site.app.requests)
        works(site, what)
    refused(site, "no data at all", request("/x", ("content-length", "10"), method="POST"))
    for what, fields, data in [
        ("as it says", [("content-length", "5")], b"hello"),
        ("nothing said", [], b"hello"),
        ("a GET", [], b"hello"),
        ("looks like a request", [], smuggled),
        ("looks like chunks", [], b"0\r\n\r\n" + smuggled),
    ]:
        site.app.reset()
        with Raw(site) as raw:
            raw.ask(1, request("/x", *fields, method="GET" if what == "a GET" else "POST"), data)
            site.check(raw.answer(1) == 200, what, raw.answer(1))
        site.check([one["body"] for one in site.app.requests] == [data], what, site.app.requests)
        works(site, what)
    # Trailers of a request: only what is harmless.
    site.app.reset()
    with Raw(site) as raw:
        raw.ask(1, request("/x", ("trailer", "x-sum, x-forwarded-client-cert, content-length"), ("te", "trailers"), method="POST"), b"hello", end=False)
        trailers = [("x-sum", "1"), ("x-forwarded-client-cert", "forged"), ("x_spiffe_id", "forged"), ("content-length", "3"), ("host", "forged")]
        raw.send(frame(HEADERS, END_HEADERS | END_STREAM, 1, raw.block(trailers)))
        answer = raw.answer(1)
        site.check(answer in (200, "reset", 502), "trailers", answer)
    seen = b"".join(one["trailers"].lower() for one in site.app.requests)
    site.check(b"forged" not in seen and b"content-length" not in seen, "trailers", seen)
    for what, trailers in [
        ("a connection field in the trailers", [("connection", "close")]),
        ("a bad name in the trailers", [("Upper", "x")]),
        ("NUL in the trailers", [("x", "\0")]),
    ]:
        site.app.reset()
        with Raw(site) as raw:
            raw.ask(1, request("/x", method="POST"), b"hello", end=False)
            raw.send(frame(HEADERS, END_HEADERS | END_STREAM, 1, raw.block(trailers)))
            answer = raw.answer(1)
            site.check(answer in ("reset", "goaway", 400, 502), what, answer)
        site.check(all(one["body"] is None for one in site.app.requests), what, site.app.requests)
        works(site, what)
    # A pseudo-field in the trailers is ignored, or the stream refused.
    site.app.reset()
    with Raw(site) as raw:
        raw.ask(1, request("/x", method="POST"), b"hello", end=False)
        raw.send(frame(HEADERS, END_HEADERS | END_STREAM, 1, raw.block([(":path", "/denied")])))
        raw.answer(1)
    seen = [(one["head"], one["trailers"]) for one in site.app.requests]
    site.check(not any(b"denied" in head + trailers for head, trailers in seen), "a pseudo-field in the trailers", seen)


class Grpc:
    """An app of gRPC: says what it got, and how streams ended."""

    def __init__(self):
        self.lock = threading.Condition()
        self.reset()

    def reset(self):
        with self.lock:
            self.headers, self.trailers, self.ended = [], [], []

    def wait(self, holds):
        with self.lock:
            return self.lock.wait_for(lambda: holds(self), DEADLINE_SECONDS)

    def serve(self, end, data):
        http = h2.connection.H2Connection(h2.config.H2Configuration(client_side=False))
        http.initiate_connection()
        end.sendall(http.data_to_send())
        while data:
            for event in http.receive_data(data):
                with self.lock:
                    self.take(http, event)
                    self.lock.notify_all()
            end.sendall(http.data_to_send())
            data = end.recv(65536)

    def take(self, http, event):
        if isinstance(event, h2.events.RequestReceived):
            self.headers.append(event.headers)
        elif isinstance(event, h2.events.TrailersReceived):
            self.trailers.append(event.headers)
        elif isinstance(event, h2.events.StreamReset):
            self.ended.append("reset")
        elif isinstance(event, h2.events.DataReceived):
            http.acknowledge_received_data(event.flow_controlled_length, event.stream_id)
        elif isinstance(event, h2.events.StreamEnded):
            self.ended.append("end")
            answer = [(":status", "200"), ("content-type", "application/grpc")]
            http.send_headers(event.stream_id, answer)
            http.send_data(event.stream_id, b"\0\0\0\0\x02ok")
            trailers = [("grpc-status", "0"), ("grpc-message", "fine"), ("x-custom", "kept")]
            http.send_headers(event.stream_id, trailers, end_stream=True)


@table.group
def grpc(site):
    # FAULTS 107, 114
    app = Grpc()
    site.app.http2 = app.serve
    call = request("/a.B/C", ("content-type", "application/grpc"), ("te", "trailers"), ("grpc-timeout", "5S"), method="POST")
    with Raw(site) as raw:
        raw.ask(1, call, b"\0\0\0\0\x02hi")
        raw.answer(1)
        stream = raw.streams[1]
        site.check(stream.field("grpc-status") == ["0"], "trailers", stream.headers)
        site.check(stream.field("x-custom") == ["kept"], "trailers", stream.headers)
        site.check(stream.data == b"\0\0\0\0\x02ok", "the message", stream.data)
        seen = dict(app.headers[0])
        get = lambda name: seen.get(name.encode(), seen.get(name))
        site.check(get("grpc-timeout") in (b"5S", "5S"), "the deadline", seen)
        site.check(get("te") in (b"trailers", "trailers"), "te", seen)
        # Cancelled by the caller: the app hears of it.
        app.reset()
        raw.ask(3, call, b"\0\0\0\0\x02hi", end=False)
        site.check(app.wait(lambda app: app.headers), "a stream", "not begun")
        raw.send(frame(RST_STREAM, 0, 3, struct.pack("!I", 8)))
        site.check(app.wait(lambda app: app.ended == ["reset"]), "cancelled", app.ended)
        # Trailers of a request that would tell who asks.
        app.reset()
        raw.ask(5, call, b"\0\0\0\0\x02hi", end=False)
        forged = [("x-forwarded-client-cert", "forged"), ("x_spiffe_id", "forged"), ("x-kept", "1")]
        raw.send(frame(HEADERS, END_HEADERS | END_STREAM, 5, raw.block(forged)))
        raw.answer(5)
        names = [name if isinstance(name, str) else name.decode() for trailers in app.trailers for name, _ in trailers]
        site.check(names == ["x-kept"], "trailers of a request", names)
        # A denied call never arrives.
        app.reset()
        raw.ask(7, [(n, "/denied" if n == ":path" else v) for n, v in call], b"")
        site.check(raw.answer(7) == 403, "denied", raw.answer(7))
        site.check(not app.headers, "denied", app.headers)
    # Cancelled by the end of the connection.
    app.reset()
    with Raw(site) as raw:
        raw.ask(1, call, b"\0\0\0\0\x02hi", end=False)
        site.check(app.wait(lambda app: app.headers), "a stream", "not begun")
    site.check(app.wait(lambda app: app.ended == ["reset"]), "closed", app.ended)
    site.app.http2 = None


def proof(chain, signature=b"\0" * 70, scheme=0x0403):
    """What shows a certificate over an open connection, without the key that belongs to it."""
    shown = struct.pack("!HH", scheme, len(signature)) + signature
    return shown + b"".join(struct.pack("!I", len(one))[1:] + one for one in chain)


@table.group
def renewals(site):
    """Nobody proves anything with a certificate alone, and nothing of it ever reaches the app."""
    with open(site.proxy.certificate) as file:
        own = ssl.PEM_cert_to_DER_cert(file.read())
    forged = {
        "another's signature": proof([own]),
        "no scheme of TLS 1.3": proof([own], scheme=0x0401),
        "no certificate": proof([]),
        "no DER": proof([b"certificate"]),
        "a length that lies": proof([own])[:-1],
        "many certificates": proof([own] * 11),
        "nothing": b"",
    }
    renew = request("/", method="POSTERN-RENEW")
    for what, body in forged.items():
        with Raw(site, protocol="postern/h2") as raw:
            pieces = [body[at : at + 16384] for at in range(0, max(len(body), 1), 16384)]
            raw.ask(1, renew, end=False)
            for number, piece in enumerate(pieces):
                last = END_STREAM if number + 1 == len(pieces) else 0
                raw.send(frame(DATA, last, 1, piece))
            site.check(raw.answer(1) in (403, "reset"), what, raw.answer(1))
            # Its requests go on as before.
            raw.ask(3, request("/ok"))
            site.check(raw.answer(3) == 200, f"after {what}", raw.answer(3))
    # More than any proof has ends at least the stream.
    with Raw(site, protocol="postern/h2") as raw:
        raw.ask(1, renew, end=False)
        for _ in range(8):
            raw.send(frame(DATA, 0, 1, b"\0" * 16384))
        site.check(raw.answer(1) in (403, "reset", "goaway", "closed"), "too much", raw.answer(1))
    # As often as it likes is too often.
    with Raw(site, protocol="postern/h2") as raw:
        for number in range(1, 41, 2):
            raw.ask(number, renew, proof([own]))
        answers = [raw.answer(number) for number in range(1, 41, 2)]
        site.check(set(answers) <= {403, "reset"}, "many renewals", answers)
    # Whoever did not say in the handshake that it knows renewals has a method that nobody knows.
    with Raw(site) as raw:
        raw.ask(1, renew, proof([own]))
        site.check(raw.answer(1) == 501, "without the protocol", raw.answer(1))
    said = site.proxy.say(b"POSTERN-RENEW / HTTP/1.1\r\nhost: web\r\ncontent-length: 0\r\n\r\n", wait_for=1)
    site.check(said.statuses == [501], "HTTP/1", said)


@table.group
def expiry(site):
    # With a certificate that ends in fifteen seconds: asked to leave before, and not cut.
    go_on = threading.Event()

    def waiting(end, reader, asked):
        if b" /slow " in asked["head"]:
            go_on.wait(DEADLINE_SECONDS)
        end.sendall(OK)
        return True

    site.app.reset(waiting)
    with site.proxy.connect() as old, Raw(site) as raw:
        answers = exchange(old, [get("/")], 1, (), 0)
        site.check(answers.statuses == [200], "HTTP/1.1", answers)
        site.check(b"connection" not in answers.all[0][1], "HTTP/1.1", "closes early", answers)
        raw.ask(1, request("/"))
        site.check(raw.answer(1) == 200, "HTTP/2", raw.answer(1))
        site.check(raw.goaway is None, "HTTP/2", "GOAWAY early")
        raw.ask(3, request("/slow"))
        site.check(raw.read(lambda raw: raw.goaway == 0), "HTTP/2", "no GOAWAY", raw.closed)
        site.check(not raw.closed, "HTTP/2", "cut", raw.closed)
        answers = exchange(old, [get("/late")], None, (), 0)
        site.check(answers.statuses == [200] and answers.ended == "closed", "HTTP/1.1, late", answers)
        site.check(answers.all[0][1].get(b"connection") == [b"close"], "HTTP/1.1, late", answers)
        go_on.set()
        begun = raw.answer(3)
        site.check(begun == 200, "what was begun", begun, raw.closed)
        raw.read(lambda raw: False)
        site.check(raw.closed == "closed", "the end", raw.closed)


if __name__ == "__main__":
    elsewhere = ("silence", "expiry")
    names = sys.argv[7:] or [name for name in table.groups if name not in elsewhere]
    table.run(Site(sys.argv[1:7]), names)
