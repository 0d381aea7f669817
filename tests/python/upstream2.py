"""An upstream of HTTP/2 behind mutual TLS.

    upstream2.py ADDRESS PORT CERTIFICATE KEY BUNDLE

Answers every request after the time that its path says (`/wait/0.2`), and counts. After `/deaf` it
reads nothing more on that connection, not even PING. `/goaway` answers and then sends GOAWAY.
Prints one JSON line for each connection and each request.
"""

import json
import socket
import ssl
import sys
import threading
import time

import h2.config
import h2.connection
import h2.events
import h2.exceptions

PRINTING = threading.Lock()


def tell(event, **facts):
    with PRINTING:
        print(json.dumps({"event": event, **facts}), flush=True)


class Connection:
    """One thread reads and writes: two must not use one TLS stream at a time."""

    def __init__(self, stream, number):
        self.stream, self.number = stream, number
        self.waiting = []  # (when, stream), of answers
        self.http = h2.connection.H2Connection(h2.config.H2Configuration(client_side=False))

    def flush(self):
        data = self.http.data_to_send()
        if data:
            self.stream.sendall(data)

    def answer(self, stream):
        try:
            self.http.send_headers(stream, [(":status", "200")])
            self.http.send_data(stream, b"hello\n", end_stream=True)
        except h2.exceptions.ProtocolError as error:
            tell("late", error=type(error).__name__)

    def answer_due(self):
        now = time.monotonic()
        due = [stream for when, stream in self.waiting if when <= now]
        self.waiting = [one for one in self.waiting if one[0] > now]
        for stream in due:
            self.answer(stream)
        self.flush()

    def serve(self):
        self.http.initiate_connection()
        self.flush()
        self.stream.settimeout(0.02)
        while True:
            try:
                data = self.stream.recv(65536)
                if not data:
                    return
            except TimeoutError:
                self.answer_due()
                continue
            for event in self.http.receive_data(data):
                if isinstance(event, h2.events.RequestReceived):
                    self.request(event)
                if isinstance(event, h2.events.StreamReset):
                    tell("reset", stream=event.stream_id)
            self.answer_due()

    def request(self, event):
        fields = {bytes(name).decode(): bytes(value).decode() for name, value in event.headers}
        path = fields[":path"]
        tell("request", path=path, method=fields[":method"], connection=self.number)
        if path.startswith("/wait/"):
            after = float(path.split("?")[0].split("/")[2])
            self.waiting.append((time.monotonic() + after, event.stream_id))
            return
        self.answer(event.stream_id)
        if path == "/goaway":
            self.http.close_connection()
        self.flush()
        if path == "/deaf":
            time.sleep(600)


def one(raw, context, number):
    try:
        stream = context.wrap_socket(raw, server_side=True)
        tell("handshake", connection=number, alpn=stream.selected_alpn_protocol())
        Connection(stream, number).serve()
    except OSError as error:
        tell("broken", error=type(error).__name__)
    tell("ended", connection=number)


def main():
    address, port, certificate, key, bundle = sys.argv[1:6]
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.num_tickets = 0
    context.load_cert_chain(certificate, key)
    context.load_verify_locations(bundle)
    context.verify_mode = ssl.CERT_REQUIRED
    context.set_alpn_protocols(["h2"])
    listener = socket.create_server((address, int(port)), backlog=1024)
    tell("listening")
    number = 0
    while True:
        raw, _ = listener.accept()
        number += 1
        threading.Thread(target=one, args=(raw, context, number), daemon=True).start()


main()
