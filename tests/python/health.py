"""Asks the agent's socket how it is, by the health protocol of gRPC, and what it serves."""

import sys

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

HEADER = (("workload.spiffe.io", "true"),)
SERVICES = [
    "SpiffeWorkloadAPI",
    "envoy.service.secret.v3.SecretDiscoveryService",
    "postern.control.v1.Control",
]


def reflect(channel, metadata):
    # The newer protocol has the same messages under another name.
    stub = channel.stream_stream(
        "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo",
        request_serializer=reflection_pb2.ServerReflectionRequest.SerializeToString,
        response_deserializer=reflection_pb2.ServerReflectionResponse.FromString,
    )
    question = reflection_pb2.ServerReflectionRequest(list_services="")
    answer = next(iter(stub(iter([question]), metadata=metadata, timeout=10)))
    return {service.name for service in answer.list_services_response.service}


with grpc.insecure_channel(sys.argv[1]) as channel:
    stub = health_pb2_grpc.HealthStub(channel)
    for service in ["", "SpiffeWorkloadAPI"]:
        question = health_pb2.HealthCheckRequest(service=service)
        answer = stub.Check(question, metadata=HEADER, timeout=10)
        print(health_pb2.HealthCheckResponse.ServingStatus.Name(answer.status))
    print("served:", all(name in reflect(channel, HEADER) for name in SERVICES))
    for metadata in [(), (("workload.spiffe.io", "True"),), HEADER * 2]:
        for ask in [
            lambda: stub.Check(health_pb2.HealthCheckRequest(), metadata=metadata, timeout=10),
            lambda: reflect(channel, metadata),
        ]:
            try:
                ask()
                print("answered", metadata)
            except grpc.RpcError as error:
                print(error.code().name)
