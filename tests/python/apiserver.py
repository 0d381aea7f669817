"""An API server of Kubernetes as far as an agent sees it: lists in pages and watches, over TLS.

apiserver.py ADDRESS PORT CERTIFICATE KEY STATE CONTROL: tests write and delete objects, and say what goes
wrong, by POST to the port CONTROL (`control` below); what is kept in the file STATE outlives a kill.

Versions, bookmarks, `410 Gone`, `continue` and the words of refusals are those of Kubernetes' own server:
API concepts, "Efficient detection of changes" and "Retrieving large results sets in chunks".
"""

import base64
import json
import ssl
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

ADDRESS, PORT, CERTIFICATE, KEY, STATE, CONTROL = sys.argv[1:]

GROUPS = {
    "pods": ("", "Pod"),
    "serviceaccounts": ("", "ServiceAccount"),
    "namespaces": ("", "Namespace"),
    "networkpolicies": ("networking.k8s.io", "NetworkPolicy"),
    "peerauthentications": ("security.istio.io", "PeerAuthentication"),
    "authorizationpolicies": ("security.istio.io", "AuthorizationPolicy"),
    "requestauthentications": ("security.istio.io", "RequestAuthentication"),
}


class Cluster:
    def __init__(self):
        self.lock = threading.Condition()
        self.version = 100
        self.objects = {name: {} for name in GROUPS}
        self.history = []
        self.snapshots = {}
        self.tokens = ["good-token"]
        self.forbidden = []
        # The versions in which the kinds of Istio are served.
        self.istio = ["v1"]
        self.requests = []
        # Every change of it ends all watches; what is said last goes to each.
        self.epoch = 0
        self.last_words = None
        self.bookmarks = 0
        self.page = None
        if Path(STATE).exists():
            kept = json.loads(Path(STATE).read_text())
            self.version, self.objects = kept["version"], kept["objects"]
        # What was before a restart is not remembered.
        self.compacted = self.version

    def keep(self):
        text = json.dumps({"version": self.version, "objects": self.objects})
        Path(STATE).write_text(text)

    def happened(self, what, resource, item):
        self.history.append((self.version, resource, what, item))
        self.keep()
        self.lock.notify_all()

    def put(self, resource, item):
        self.version += 1
        head = item["metadata"]
        key = f"{head.get('namespace', '')}/{head['name']}"
        before = self.objects[resource].get(key)
        head.setdefault("uid", before["metadata"]["uid"] if before else f"uid-{self.version}")
        head["resourceVersion"] = str(self.version)
        head.setdefault("creationTimestamp", "2026-11-01T10:00:00Z")
        head["managedFields"] = [{"manager": "kubectl", "operation": "Apply"}]
        self.objects[resource][key] = item
        self.happened("MODIFIED" if before else "ADDED", resource, item)

    def delete(self, resource, key):
        self.version += 1
        item = json.loads(json.dumps(self.objects[resource].pop(key)))
        item["metadata"]["resourceVersion"] = str(self.version)
        self.happened("DELETED", resource, item)


cluster = Cluster()


def failure(code, reason, message):
    return {
        "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure",
        "message": message, "reason": reason, "code": code,
    }


class Api(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        pass

    def answer(self, code, body):
        cluster.requests.append([code, self.path])
        text = json.dumps(body).encode()
        self.send_response(code)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)

    def do_GET(self):
        url = urlsplit(self.path)
        query = {name: values[0] for name, values in parse_qs(url.query).items()}
        parts = url.path.strip("/").split("/")
        resource, version = parts[-1], parts[-2]
        group = "" if parts[0] == "api" else parts[1]
        with cluster.lock:
            shown = self.headers.get("authorization", "")
            if shown not in [f"Bearer {token}" for token in cluster.tokens]:
                return self.answer(401, failure(401, "Unauthorized", "Unauthorized"))
            served = cluster.istio if group == "security.istio.io" else ["v1"]
            known = GROUPS.get(resource, (None, None))[0] == group and version in served
            if not known:
                text = "the server could not find the requested resource"
                return self.answer(404, failure(404, "NotFound", text))
            verb = "watch" if "watch" in query else "list"
            if resource in cluster.forbidden:
                text = (
                    f'{resource}{"." + group if group else ""} is forbidden: User '
                    f'"system:serviceaccount:postern-system:postern-agent" cannot {verb} resource '
                    f'"{resource}" in API group "{group}" at the cluster scope'
                )
                return self.answer(403, failure(403, "Forbidden", text))
        if verb == "watch":
            self.watch(resource, query)
        else:
            self.list(resource, version, group, query)

    def list(self, resource, version, group, query):
        with cluster.lock:
            limit = int(query.get("limit", 0)) or None
            if limit and cluster.page:
                limit = min(limit, cluster.page)
            start, at = 0, cluster.version
            if "continue" in query:
                token = json.loads(base64.urlsafe_b64decode(query["continue"]))
                start, at = token["start"], token["rv"]
                if at < cluster.compacted or (at, resource) not in cluster.snapshots:
                    text = "The provided continue parameter is too old"
                    return self.answer(410, failure(410, "Expired", text))
            else:
                items = [cluster.objects[resource][key] for key in sorted(cluster.objects[resource])]
                cluster.snapshots[(at, resource)] = items
            items = cluster.snapshots[(at, resource)]
            end = start + limit if limit else len(items)
            metadata = {"resourceVersion": str(at)}
            if end < len(items):
                token = json.dumps({"start": end, "rv": at}).encode()
                metadata["continue"] = base64.urlsafe_b64encode(token).decode()
                metadata["remainingItemCount"] = len(items) - end
            kind = GROUPS[resource][1]
            body = {
                "kind": f"{kind}List", "apiVersion": f"{group}/{version}" if group else version,
                "metadata": metadata, "items": items[start:end],
            }
        self.answer(200, body)

    def watch(self, resource, query):
        with cluster.lock:
            seen = int(query["resourceVersion"])
            if seen < cluster.compacted:
                text = f"too old resource version: {seen} ({cluster.compacted})"
                return self.answer(410, failure(410, "Expired", text))
            cluster.requests.append([200, self.path])
            epoch, bookmarks = cluster.epoch, cluster.bookmarks
        self.send_response(200)
        self.send_header("content-type", "application/json")
        self.send_header("transfer-encoding", "chunked")
        self.end_headers()
        self.wfile.flush()
        end = time.monotonic() + int(query.get("timeoutSeconds", 1800))
        place = 0
        try:
            while time.monotonic() < end:
                with cluster.lock:
                    news = [one for one in cluster.history[place:] if one[0] > seen]
                    place = len(cluster.history)
                    is_ended, last = cluster.epoch != epoch, cluster.last_words
                    wanted = cluster.bookmarks != bookmarks
                    bookmarks, version = cluster.bookmarks, cluster.version
                    if not (news or is_ended or wanted):
                        cluster.lock.wait(1)
                        continue
                for _, of, what, item in news:
                    if of == resource:
                        self.event(what, item)
                if wanted and query.get("allowWatchBookmarks"):
                    kind = GROUPS[resource][1]
                    head = {"resourceVersion": str(version), "creationTimestamp": None}
                    self.event("BOOKMARK", {"kind": kind, "apiVersion": "v1", "metadata": head})
                if is_ended:
                    if last:
                        self.event("ERROR", last)
                    break
            self.chunk(b"")
        except OSError:
            pass

    def event(self, what, item):
        line = json.dumps({"type": what, "object": item}).encode() + b"\n"
        # Cut where nobody expects it.
        for start in range(0, len(line), 65521):
            self.chunk(line[start:start + 65521])

    def chunk(self, data):
        self.wfile.write(f"{len(data):x}\r\n".encode() + data + b"\r\n")
        self.wfile.flush()


class Control(BaseHTTPRequestHandler):
    def log_message(self, *_):
        pass

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["content-length"])) or b"null")
        with cluster.lock:
            told = control(self.path, body)
            cluster.lock.notify_all()
        text = json.dumps(told).encode()
        self.send_response(200)
        self.send_header("content-length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)


def control(path, body):
    match path:
        case "/put":
            resource = next(name for name, (_, kind) in GROUPS.items() if kind == body["kind"])
            cluster.put(resource, body)
        case "/delete":
            cluster.delete(*body)
        # Nothing before this moment is remembered.
        case "/compact":
            cluster.version += 1
            cluster.compacted = cluster.version
            cluster.snapshots.clear()
        case "/end-watches":
            cluster.last_words = body
            cluster.epoch += 1
        case "/bookmark":
            cluster.version += 1
            cluster.bookmarks += 1
        case "/set":
            for name, value in body.items():
                setattr(cluster, name, value)
        case "/requests":
            return cluster.requests
    return None


class Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 64

    def finish_request(self, request, client_address):
        # The handshake is done on the connection's own thread.
        super().finish_request(CONTEXT.wrap_socket(request, server_side=True), client_address)

    def handle_error(self, request, client_address):
        print("a connection failed:", sys.exc_info()[1], file=sys.stderr)


CONTEXT = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
CONTEXT.load_cert_chain(CERTIFICATE, KEY)
steered = ThreadingHTTPServer((ADDRESS, int(CONTROL)), Control)
threading.Thread(target=steered.serve_forever, daemon=True).start()
Server((ADDRESS, int(PORT)), Api).serve_forever()
