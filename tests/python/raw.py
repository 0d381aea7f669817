"""gRPC over any socket, one frame at a time: for callers that no library would be."""

import socket
import struct
import time

import h2.config
import h2.connection
import h2.events
from spiffe._proto import workload_pb2

DEADLINE_SECONDS = 20
HEADER = [("workload.spiffe.io", "true")]
X509 = "/SpiffeWorkloadAPI/FetchX509SVID"


def connect(path):
    end = socket.socket(socket.AF_UNIX)
    end.connect(path)
    return end


class Raw:
    """One connection. `window` is how many bytes the peer may send before it is told more."""

    def __init__(self, end, window=None):
        self.end = end
        self.http = h2.connection.H2Connection(h2.config.H2Configuration())
        self.http.initiate_connection()
        if window is not None:
            setting = h2.settings.SettingCodes.INITIAL_WINDOW_SIZE
            self.http.update_settings({setting: window})
        self.flush()

    def flush(self):
        self.end.sendall(self.http.data_to_send())

    def call(self, method=X509, message=b"", headers=HEADER):
        """Opens a stream and tells its number."""
        stream = self.http.get_next_available_stream_id()
        request = [
            (":method", "POST"),
            (":scheme", "http"),
            (":path", method),
            (":authority", "localhost"),
            ("te", "trailers"),
            ("content-type", "application/grpc"),
        ]
        self.http.send_headers(stream, request + headers)
        self.http.send_data(stream, struct.pack("!BI", 0, len(message)) + message, end_stream=True)
        self.flush()
        return stream

    def events(self, take=True):
        """What happens, for ever: ("message", bytes), ("status", code), ("closed",)."""
        parts = {}
        end = time.monotonic() + DEADLINE_SECONDS
        while True:
            self.end.settimeout(max(end - time.monotonic(), 0.01))
            try:
                data = self.end.recv(65536)
            except (ConnectionError, socket.timeout) as error:
                yield ("closed", type(error).__name__)
                return
            if not data:
                yield ("closed", "end")
                return
            for event in self.http.receive_data(data):
                if isinstance(event, h2.events.DataReceived):
                    if take:
                        self.http.acknowledge_received_data(
                            event.flow_controlled_length, event.stream_id
                        )
                    part = parts.setdefault(event.stream_id, bytearray())
                    part += event.data
                    while len(part) >= 5:
                        length = struct.unpack("!I", part[1:5])[0]
                        if len(part) < 5 + length:
                            break
                        yield ("message", bytes(part[5 : 5 + length]))
                        del part[: 5 + length]
                elif isinstance(event, (h2.events.ResponseReceived, h2.events.TrailersReceived)):
                    fields = {name: value for name, value in event.headers}
                    status = fields.get(b"grpc-status", fields.get("grpc-status"))
                    if status is not None:
                        text = fields.get(b"grpc-message", fields.get("grpc-message", b""))
                        yield ("status", int(status), text)
                elif isinstance(event, h2.events.StreamReset):
                    yield ("reset", event.error_code)
                elif isinstance(event, h2.events.ConnectionTerminated):
                    yield ("closed", "goaway")
                    return
            self.flush()


def ids(message):
    """The identities of an answer."""
    answer = workload_pb2.X509SVIDResponse.FromString(message)
    return " ".join(svid.spiffe_id for svid in answer.svids)


def said(event):
    """An event in one line."""
    if event[0] == "message":
        return ids(event[1])
    if event[0] == "status":
        return f"status {event[1]}"
    return " ".join(str(part) for part in event)


def ask(end):
    """What the answer is on this connection."""
    raw = Raw(end)
    raw.call()
    return said(next(raw.events()))
