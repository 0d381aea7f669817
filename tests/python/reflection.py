"""Asks the agent's socket what it serves, as a client of gRPC does that knows nothing of it: reflection.py ADDRESS"""

import sys

import grpc
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase
from google.protobuf.descriptor_pool import DescriptorPool

HEADER = "workload.spiffe.io"


class WithHeader(grpc.StreamStreamClientInterceptor):
    """The library asks without metadata of its own."""

    def intercept_stream_stream(self, continuation, details, requests):
        return continuation(details._replace(metadata=((HEADER, "true"),)), requests)


with grpc.insecure_channel(sys.argv[1]) as plain:
    try:
        print(ProtoReflectionDescriptorDatabase(plain).get_services())
    except grpc.RpcError as error:
        print(error.code().name)
    channel = grpc.intercept_channel(plain, WithHeader())
    known = ProtoReflectionDescriptorDatabase(channel)
    print("SpiffeWorkloadAPI" in known.get_services())
    api = DescriptorPool(known).FindServiceByName("SpiffeWorkloadAPI")
    print("FetchX509SVID" in api.methods_by_name)
