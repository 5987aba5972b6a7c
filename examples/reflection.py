"""What grpcurl does, in Python: ask a server what it offers and call it without our stubs.

    python reflection.py ADDRESS list
    python reflection.py ADDRESS describe inference.ModelInferRequest
    python reflection.py ADDRESS call inference.GRPCInferenceService/ModelReady '{"name": "model"}'

The server must be started with `--reflection`.
"""

import sys
from collections.abc import Callable

import grpc
from google.protobuf import json_format, message_factory
from google.protobuf.descriptor_pool import DescriptorPool
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import (
    ProtoReflectionDescriptorDatabase,
)


def services(channel: grpc.Channel) -> str:
    """Return the services and methods the server offers, one per line."""
    database = ProtoReflectionDescriptorDatabase(channel)
    pool = DescriptorPool(database)
    lines = []
    for name in sorted(database.get_services()):
        lines.append(name)
        lines += [f"  {method.name}" for method in pool.FindServiceByName(name).methods]
    return "\n".join(lines)


def describe(channel: grpc.Channel, message: str) -> str:
    """Return a message's fields, one per line."""
    pool = DescriptorPool(ProtoReflectionDescriptorDatabase(channel))
    fields = pool.FindMessageTypeByName(message).fields
    kinds = {field.number: field.message_type for field in fields}
    return "\n".join(
        f"{field.number} {field.name}"
        + (f": {kind.full_name}" if (kind := kinds[field.number]) else "")
        for field in fields
    )


def call(channel: grpc.Channel, method: str, request: str) -> str:
    """Return the answer to a unary call; both as JSON."""
    pool = DescriptorPool(ProtoReflectionDescriptorDatabase(channel))
    service, _, name = method.rpartition("/")
    found = pool.FindServiceByName(service).FindMethodByName(name)
    given = message_factory.GetMessageClass(found.input_type)()
    answer_class = message_factory.GetMessageClass(found.output_type)
    answer = channel.unary_unary(
        f"/{method}",
        request_serializer=lambda message: message.SerializeToString(),
        response_deserializer=answer_class.FromString,
    )(json_format.Parse(request, given), timeout=10)
    return json_format.MessageToJson(answer, indent=None)


def main(address: str, what: str, *words: str) -> None:
    """List, describe or call."""
    with grpc.insecure_channel(address) as channel:
        actions: dict[str, Callable[..., str]] = {
            "list": services,
            "describe": describe,
            "call": call,
        }
        print(actions[what](channel, *words))


if __name__ == "__main__":
    main(*sys.argv[1:])
