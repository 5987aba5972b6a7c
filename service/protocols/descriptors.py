"""Our message classes, in a descriptor pool of our own.

The global pool can hold one `inference.ServerLiveRequest` only, and tritonclient, kserve and
mlserver each bring theirs. A private pool lets all of them live in one process with us.
"""

from functools import cache
from importlib import resources

from google.protobuf.descriptor_pb2 import FileDescriptorSet
from google.protobuf.descriptor_pool import DescriptorPool
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass

__all__ = ["message_class", "pool"]

_FILES = ("reluguard_v1.binpb", "open_inference.binpb")


@cache
def pool() -> DescriptorPool:
    """Return the pool that holds both of our protocols."""
    descriptors = DescriptorPool()
    for name in _FILES:
        data = (resources.files("reluguard.service.protocols") / "pb" / name).read_bytes()
        for file in FileDescriptorSet.FromString(data).file:
            descriptors.Add(file)
    return descriptors


def message_class(name: str) -> type[Message]:
    """Return the class of the message with this full name.

    Raises:
        KeyError: neither protocol declares it.
    """
    descriptor = pool().FindMessageTypeByName(name)
    return GetMessageClass(descriptor)
