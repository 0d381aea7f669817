"""Asks every method that the socket serves, with and without the security header: header.py SOCKET

Prints whether there were as many methods as there must be, and those that ask for no header.
"""

import sys

import grpc
from google.protobuf.descriptor_pool import DescriptorPool
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase
from raw import HEADER, Raw, connect

SOCKET = sys.argv[1]
# Reflection does not tell of itself and of health everything in one pool; they are named here.
OWN = [
    "/grpc.health.v1.Health/Check",
    "/grpc.health.v1.Health/Watch",
    "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo",
    "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo",
]
INVALID_ARGUMENT = 3
WRONG = [[], [("workload.spiffe.io", "True")], HEADER * 2]


class WithHeader(grpc.StreamStreamClientInterceptor):
    def intercept_stream_stream(self, continuation, details, requests):
        return continuation(details._replace(metadata=tuple(HEADER)), requests)


def methods():
    channel = grpc.intercept_channel(grpc.insecure_channel(f"unix:{SOCKET}"), WithHeader())
    known = ProtoReflectionDescriptorDatabase(channel)
    pool = DescriptorPool(known)
    served = [name for name in known.get_services() if not name.startswith("grpc.")]
    for name in served:
        for method in pool.FindServiceByName(name).methods:
            yield f"/{name}/{method.name}"
    yield from OWN


def is_about_the_header(method, headers):
    raw = Raw(connect(SOCKET))
    raw.call(method, headers=headers)
    event = next(raw.events())
    # The text is told with `%20` for spaces.
    return event[:2] == ("status", INVALID_ARGUMENT) and "security" in str(event[2])


found = list(methods())
print("methods", len(found) >= 13)
for one in found:
    if is_about_the_header(one, HEADER):
        print("refused with it", one)
    if not all(is_about_the_header(one, headers) for headers in WRONG):
        print("without", one)
