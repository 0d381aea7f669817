"""A kubelet as far as an agent sees it: GET /pods over TLS, for whoever shows the token.

kubelet.py ADDRESS PORT CERTIFICATE KEY TOKEN PODS: the list is read from a file at every question.
"""

import hmac
import ssl
import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

ADDRESS, PORT, CERTIFICATE, KEY, TOKEN, PODS = sys.argv[1:]


class Kubelet(BaseHTTPRequestHandler):
    def do_GET(self):
        shown = self.headers.get("authorization", "")
        if not hmac.compare_digest(shown, f"Bearer {TOKEN}"):
            self.answer(401, b"Unauthorized")
        elif self.path != "/pods":
            self.answer(404, b"404 page not found")
        else:
            self.answer(200, Path(PODS).read_bytes())

    def answer(self, status, body):
        self.send_response(status)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


server = ThreadingHTTPServer((ADDRESS, int(PORT)), Kubelet)
context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
context.load_cert_chain(CERTIFICATE, KEY)
server.socket = context.wrap_socket(server.socket, server_side=True)
server.serve_forever()
