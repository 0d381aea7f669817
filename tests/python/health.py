"""Asks the agent's socket how it is, by the health protocol of gRPC, and what it serves.

health.py ADDRESS crowd: holds open as many of these streams as are given, and says what is refused then.
"""

import os
import sys
import threading

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2
from spiffe._proto import workload_pb2, workload_pb2_grpc

HEADER = (("workload.spiffe.io", "true"),)
SERVICES = [
    "SpiffeWorkloadAPI",
    "envoy.service.secret.v3.SecretDiscoveryService",
    "postern.control.v1.Control",
]


def questions(channel, requests, metadata):
    # The newer protocol has the same messages under another name.
    stub = channel.stream_stream(
        "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo",
        request_serializer=reflection_pb2.ServerReflectionRequest.SerializeToString,
        response_deserializer=reflection_pb2.ServerReflectionResponse.FromString,
    )
    return stub(requests, metadata=metadata, timeout=60)


def reflect(channel, metadata):
    question = reflection_pb2.ServerReflectionRequest(list_services="")
    answer = next(iter(questions(channel, iter([question]), metadata)))
    return {service.name for service in answer.list_services_response.service}


def code(ask):
    """How a question ends: OK as soon as there is an answer."""
    try:
        ask()
        return "OK"
    except grpc.RpcError as error:
        return error.code().name


def crowd(address):
    """One channel has 256 streams at most, so there are some, each a connection of its own."""
    options = [("grpc.use_local_subchannel_pool", 1)]
    channels = [grpc.insecure_channel(address, options) for _ in range(4)]
    question = health_pb2.HealthCheckRequest()
    watches, reflections, asked_for_ever = [], [], threading.Event()

    def endless():
        yield reflection_pb2.ServerReflectionRequest(list_services="")
        asked_for_ever.wait()

    def watch(channel):
        held = health_pb2_grpc.HealthStub(channel).Watch(question, metadata=HEADER)
        next(held)
        watches.append(held)

    def reflection(channel):
        held = questions(channel, endless(), HEADER)
        next(held)
        reflections.append(held)

    def x509(channel):
        stub = workload_pb2_grpc.SpiffeWorkloadAPIStub(channel)
        request = workload_pb2.X509SVIDRequest()
        next(stub.FetchX509SVID(request, metadata=HEADER, timeout=10))

    def check(channel):
        health_pb2_grpc.HealthStub(channel).Check(question, metadata=HEADER, timeout=10)

    print("watches", code(lambda: [watch(channels[0]) for _ in range(200)]))
    print("reflections", code(lambda: [reflection(channels[1]) for _ in range(56)]))
    for name, ask in [("watch", watch), ("reflection", reflection), ("check", check), ("x509", x509)]:
        print(name, code(lambda: ask(channels[2])))
    # One place is enough for one.
    watches.pop().cancel()
    while code(lambda: check(channels[2])) != "OK":
        pass
    for name, ask in [("x509", x509), ("reflection", reflection), ("watch", watch)]:
        print(name, code(lambda: ask(channels[3])))
    print("held", all(held.is_active() for held in watches + reflections))
    asked_for_ever.set()
    for channel in channels:
        channel.close()
    # All is said. Now and then the library's own threads keep the interpreter from ending for ever,
    # after so many streams.
    sys.stdout.flush()
    os._exit(0)


def answers(address):
    with grpc.insecure_channel(address) as channel:
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
                said = code(ask)
                print(said if said != "OK" else f"answered {metadata}")


match sys.argv[1:]:
    case [address]:
        answers(address)
    case [address, "crowd"]:
        crowd(address)
