"""Regenerates service/protocols/pb from the .proto files: `python proto/generate.py [FOLDER]`.

The messages live in a private descriptor pool, read from a serialised FileDescriptorSet, so that
tritonclient, kserve and mlserver, which register the same `inference.*` names in the global pool,
can be imported into the same process. Nothing generated carries a protobuf version.
"""

import sys
import tempfile
from importlib import resources
from pathlib import Path

from google.protobuf.descriptor_pb2 import FileDescriptorSet
from grpc_tools import protoc

HERE = Path(__file__).parent
OURS = HERE.parent / "service" / "protocols" / "pb"
PROTOS = {
    "reluguard_v1": "reluguard/v1/reluguard.proto",
    "open_inference": "open_inference.proto",
}
INIT = '"""Made by proto/generate.py. Don\'t edit."""\n'
MODULE = '''\
"""Made by proto/generate.py from {source}. Don't edit."""

from reluguard.service.protocols.descriptors import message_class

{names}
'''


def generate(target: Path) -> None:
    """Write every generated file into `target`.

    Raises:
        SystemExit: protoc refused a file; its own message stands above.
    """
    target.mkdir(parents=True, exist_ok=True)
    (target / "__init__.py").write_text(INIT, encoding="utf-8")
    with tempfile.TemporaryDirectory() as scratch:
        for module, source in PROTOS.items():
            descriptors = target / f"{module}.binpb"
            _protoc(source, f"--descriptor_set_out={descriptors}", f"--pyi_out={scratch}")
            stub = (Path(scratch) / source).with_name(f"{Path(source).stem}_pb2.pyi")
            (target / f"{module}.pyi").write_text(
                stub.read_text(encoding="utf-8"), encoding="utf-8"
            )
            (file,) = FileDescriptorSet.FromString(descriptors.read_bytes()).file
            names = [
                f'{message.name} = message_class("{file.package}.{message.name}")'
                for message in file.message_type
            ]
            names += [
                f"{value.name} = {value.number}" for enum in file.enum_type for value in enum.value
            ]
            text = MODULE.format(source=source, names="\n".join(names))
            (target / f"{module}.py").write_text(text, encoding="utf-8")


def _protoc(source: str, *arguments: str) -> None:
    google = resources.files("grpc_tools") / "_proto"
    if protoc.main(["protoc", f"-I{HERE}", f"-I{google}", *arguments, source]) != 0:
        raise SystemExit(f"protoc failed on {source}")


if __name__ == "__main__":
    generate(Path(sys.argv[1]) if len(sys.argv) > 1 else OURS)
