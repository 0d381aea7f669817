"""Raw bytes on both sides of a proxy: a caller over mutual TLS, and an app that does what it is told.

The caller says exactly the bytes of a case, in the pieces that the case gives. The app keeps exactly
what it received, and answers every request with `ok`, or with whatever bytes the case wants.
"""

import socket
import ssl
import sys
import threading
import time

DEADLINE_SECONDS = 30
OK = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok"


class App:
    """An app of HTTP/1 that reads requests strictly, and so sees what others would not tell."""

    def __init__(self, port):
        self.listener = socket.create_server(("127.0.0.1", port), backlog=256)
        self.http2 = None
        self.greeting = b""
        self.lock = threading.Condition()
        self.reset()
        threading.Thread(target=self.serve, daemon=True).start()

    def reset(self, answer=OK):
        """Forgets what it saw. `answer` is bytes, or a function of the socket and the head."""
        with self.lock:
            self.answer = answer
            self.requests = []
            self.cut = 0
            self.wrong = []

    def serve(self):
        while True:
            end, _ = self.listener.accept()
            threading.Thread(target=self.connection, args=(end,), daemon=True).start()

    def connection(self, end):
        reader = Reader(end)
        with end:
            try:
                if self.greeting:
                    end.sendall(self.greeting)
                reader.more()
                if self.http2 and reader.bytes.startswith(b"PRI "):
                    return self.http2(end, reader.bytes)
                while self.request(end, reader):
                    pass
            except (OSError, Cut):
                pass

    def request(self, end, reader):
        head = reader.until(b"\r\n\r\n")
        if not head:
            return False
        with self.lock:
            answer = self.answer
            request = {"head": head, "body": None, "trailers": b""}
            self.requests.append(request)
            self.lock.notify_all()
        fields = parse_fields(head)
        if any(byte in head.replace(b"\r\n", b"") for byte in (b"\r", b"\n", b"\0")):
            self.wrong.append(head)
        if callable(answer):
            return answer(end, reader, request)
        try:
            request["body"], request["trailers"] = body_of(fields, reader)
        except Cut:
            with self.lock:
                self.cut += 1
                self.lock.notify_all()
            raise
        with self.lock:
            self.lock.notify_all()
        end.sendall(answer)
        return True

    def wait(self, holds):
        """Waits until something is so; tells whether it ever was."""
        with self.lock:
            return self.lock.wait_for(lambda: holds(self), DEADLINE_SECONDS)

    def heads(self):
        with self.lock:
            return [request["head"] for request in self.requests]


class Cut(Exception):
    """The other end ended in the middle."""


class Reader:
    def __init__(self, end):
        self.end = end
        self.bytes = b""

    def more(self):
        data = self.end.recv(65536)
        self.bytes += data
        return bool(data)

    def until(self, mark):
        while mark not in self.bytes:
            if not self.more():
                return b""
        found, _, self.bytes = self.bytes.partition(mark)
        return found + mark

    def exactly(self, length):
        while len(self.bytes) < length:
            if not self.more():
                raise Cut
        found, self.bytes = self.bytes[:length], self.bytes[length:]
        return found

    def line(self):
        line = self.until(b"\r\n")
        if not line:
            raise Cut
        return line[:-2]

    def rest(self):
        while self.more():
            pass
        return self.bytes


def parse_fields(head):
    """Field names in lower case, each with its values."""
    fields = {}
    for line in head.split(b"\r\n")[1:]:
        if line:
            name, _, value = line.partition(b":")
            fields.setdefault(name.lower(), []).append(value.strip())
    return fields


def body_of(fields, reader):
    """A body and its trailers."""
    if b"transfer-encoding" not in fields:
        return reader.exactly(int(fields.get(b"content-length", [b"0"])[0])), b""
    body = b""
    while True:
        size = int(reader.line().split(b";")[0], 16)
        if size == 0:
            break
        body += reader.exactly(size)
        assert reader.exactly(2) == b"\r\n"
    trailers = b""
    while line := reader.line():
        trailers += line + b"\r\n"
    return body, trailers


class Answers:
    """What came back: the answers that were whole, and how it ended."""

    def __init__(self, data, ended, methods=()):
        self.data = data
        self.ended = ended
        self.all = []
        self.torn = False
        self.parse(data, list(methods))

    def parse(self, data, methods):
        while data:
            head, mark, rest = data.partition(b"\r\n\r\n")
            if not mark:
                self.torn = True
                return
            status = int(head.split(b" ")[1])
            fields = parse_fields(head + b"\r\n")
            if status in (100, 101):
                self.all.append((status, fields, b""))
                if status == 101:
                    self.tunnel = rest
                    return
                data = rest
                continue
            method = methods.pop(0) if methods else "GET"
            body, rest, whole = self.body(status, fields, rest, method)
            self.torn = self.torn or not whole
            self.all.append((status, fields, body))
            data = rest

    def body(self, status, fields, rest, method):
        if method == "HEAD" or status in (204, 304):
            return b"", rest, True
        if b"content-length" in fields:
            length = int(fields[b"content-length"][0])
            return rest[:length], rest[length:], len(rest) >= length
        if b"transfer-encoding" in fields:
            body = b""
            while True:
                line, mark, rest = rest.partition(b"\r\n")
                if not mark:
                    return body, b"", False
                size = int(line, 16)
                if size == 0:
                    end = rest.find(b"\r\n")
                    while end > 0:
                        rest = rest[end + 2 :]
                        end = rest.find(b"\r\n")
                    return body, rest[2:], end == 0
                if len(rest) < size + 2:
                    return body, b"", False
                body, rest = body + rest[:size], rest[size + 2 :]
        return rest, b"", True

    @property
    def statuses(self):
        return [status for status, _, _ in self.all if status != 100]

    def __str__(self):
        return f"{self.statuses} {self.ended}{' torn' if self.torn else ''} {self.data[:300]!r}"


class Proxy:
    """The proxy's road in, with the certificate of a caller."""

    def __init__(self, host, port, certificate, key):
        self.address = (host, port)
        self.certificate, self.key = certificate, key

    def connect(self, alpn="http/1.1", certificate=None, key=None):
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.minimum_version = ssl.TLSVersion.TLSv1_3
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
        context.load_cert_chain(certificate or self.certificate, key or self.key)
        if alpn:
            context.set_alpn_protocols([alpn])
        plain = socket.create_connection(self.address, timeout=DEADLINE_SECONDS)
        plain.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return context.wrap_socket(plain)

    def say(self, *pieces, wait_for=None, methods=(), alpn="http/1.1", pause=0.05, end=None):
        """Sends the pieces and reads until `wait_for` answers are there, or the proxy closes."""
        end = end or self.connect(alpn)
        with end:
            return exchange(end, pieces, wait_for, methods, pause)


def finish(end):
    """Says that no more comes, as TLS says it."""
    try:
        end.unwrap()
    except (OSError, ssl.SSLError):
        pass


def exchange(end, pieces, wait_for, methods, pause):
    data, ended = b"", "open"
    try:
        for number, piece in enumerate(pieces):
            if number:
                time.sleep(pause)
            end.sendall(piece)
    except OSError:
        # Refused before all was sent; the answer may be there.
        pass
    deadline = time.monotonic() + DEADLINE_SECONDS
    while True:
        answers = Answers(data, ended, methods)
        if wait_for is not None and len(answers.statuses) >= wait_for and not answers.torn:
            return answers
        end.settimeout(max(deadline - time.monotonic(), 0.01))
        try:
            more = end.recv(65536)
        except ssl.SSLEOFError:
            return Answers(data, "cut", methods)
        except socket.timeout:
            return Answers(data, "silent", methods)
        except (OSError, ssl.SSLError) as error:
            return Answers(data, type(error).__name__, methods)
        if not more:
            return Answers(data, "closed", methods)
        data += more


class Table:
    """Cases by group; what failed is told, and how."""

    def __init__(self):
        self.groups = {}

    def group(self, function):
        self.groups[function.__name__] = function
        return function

    def run(self, site, names):
        failures = []
        for name in names or self.groups:
            print(f"{name}", flush=True)
            site.failures = []
            self.groups[name](site)
            failures += [f"{name}: {failure}" for failure in site.failures]
        for failure in failures:
            print(failure)
        sys.exit(bool(failures))


class Site:
    def __init__(self, arguments):
        host, port, certificate, key, app, pid = arguments
        self.pid = int(pid)
        self.proxy = Proxy(host, int(port), certificate, key)
        self.app = App(int(app))
        self.failures = []

    def check(self, holds, what, *seen):
        if not holds:
            self.failures.append(f"{what}: {' '.join(str(one) for one in seen)}")

    def memory(self):
        """The proxy's resident memory in MiB."""
        with open(f"/proc/{self.pid}/statm") as file:
            return int(file.read().split()[1]) * 4096 / 2**20

    def refused(self, what, *pieces, status=400, before=0, **more):
        """One answer of ours, then the end; the app saw only the `before` requests before it."""
        self.app.reset()
        answers = self.proxy.say(*pieces, **more)
        statuses = status if isinstance(status, (list, tuple)) else [status]
        good = (
            answers.statuses[:before] == [200] * before
            and len(answers.statuses) == before + 1
            and answers.statuses[-1] in statuses
            and not answers.torn
        )
        self.check(good, what, "answers", answers)
        self.check(answers.ended == "closed", what, "not closed", answers)
        self.check(len(self.app.heads()) == before, what, "the app saw", self.app.heads())
        self.works(what)

    def passes(self, what, *pieces, count=1, methods=(), answer=OK, **more):
        """Every request is answered, and the app saw each once."""
        self.app.reset(answer)
        answers = self.proxy.say(*pieces, wait_for=count, methods=methods, **more)
        self.check(len(answers.statuses) == count, what, "answers", answers)
        self.check(len(self.app.heads()) == count, what, "the app saw", self.app.heads())
        self.check(not self.app.wrong, what, "the app saw", self.app.wrong)
        self.works(what)
        return answers

    def works(self, what):
        """Another caller gets its answer."""
        self.app.answer = OK
        answers = self.proxy.say(get("/works"), wait_for=1)
        self.check(answers.statuses == [200], what, "afterwards", answers)


def get(path="/", *fields, method="GET", host="web.example", version="HTTP/1.1"):
    lines = [f"{method} {path} {version}", f"Host: {host}", *fields]
    return "\r\n".join(lines).encode("latin-1") + b"\r\n\r\n"


def post(*fields, body=b"", path="/"):
    return get(path, *fields, method="POST") + body


def is_field(head, name, value=None):
    found = parse_fields(head).get(name.encode(), [])
    return bool(found) if value is None else found == [value.encode()]
