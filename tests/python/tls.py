"""Two ends of a mutual TLS connection, each with an identity of the agent, by the package spiffe-tls.

The server takes one identity alone; the second client has another one, chosen by its name.
"""

import os
import socket
import sys
import threading

from cryptography import x509
from OpenSSL import SSL
from spiffe import X509Source
from spiffetls import ListenOptions, dial, listen
from spiffetls.mode import ServerTlsMode

os.environ["SPIFFE_ENDPOINT_SOCKET"] = sys.argv[1]


def source(name):
    wanted = f"spiffe://example.org/{name}"
    return X509Source(
        svid_picker=lambda svids: next(one for one in svids if str(one.spiffe_id) == wanted)
    )


def is_frontend(certificate):
    names = certificate.to_cryptography().extensions.get_extension_for_class(
        x509.SubjectAlternativeName
    )
    ids = names.value.get_values_for_type(x509.UniformResourceIdentifier)
    return ids == ["spiffe://example.org/frontend"]


def serve(server):
    while True:
        try:
            connection, _ = server.accept()
        except (SSL.Error, OSError):
            return
        try:
            connection.do_handshake()
            connection.sendall(b"hello")
            connection.shutdown()
        except SSL.Error:
            pass
        connection.close()


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


address = f"127.0.0.1:{free_port()}"
options = ListenOptions(tls_mode=ServerTlsMode.MTLS, authorize_fn=is_frontend)
server = listen(address, source("backend"), options)
threading.Thread(target=serve, args=(server,), daemon=True).start()
for name in ["frontend", "backend"]:
    connection = dial(address, source(name))
    try:
        # In TLS 1.3 a client hears of a refusal when it reads.
        print(name, connection.recv(16).decode())
    except SSL.Error:
        print(name, "refused")
