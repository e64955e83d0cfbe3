"""Generate the Python stubs of the contract: `python protos/generate.py [OUT]`.

Every `.proto` of `imagekin/` becomes `_pb2.py`, `_pb2_grpc.py` and their type stubs at the same relative path below
OUT (default: the project's root, where they are checked in). `google/rpc/status.proto` lies
beside them as googleapis publishes it (Apache 2.0), so that generators of other languages need this folder alone;
Python has its stubs from googleapis-common-protos. `tests/imagekin/test_contract.py` runs it and compares.
"""

import sys
from importlib import resources
from pathlib import Path

import grpc_tools  # type: ignore[import-untyped]
from grpc_tools import protoc

PROTOS = Path(__file__).resolve().parent
BIN = Path(sys.executable).parent


def generate(out: Path) -> None:
    """Write the stubs of every `.proto` of `imagekin/` into `out`.

    Raises:
        RuntimeError: when the compiler refuses a file; its own message is on standard error.
    """
    sources = sorted(str(path.relative_to(PROTOS)) for path in (PROTOS / "imagekin").rglob("*.proto"))
    well_known = resources.files(grpc_tools) / "_proto"
    arguments = ["protoc", f"-I{PROTOS}", f"-I{well_known}"]
    # The plugins lie beside the interpreter, which need not be on the PATH.
    arguments += [f"--plugin=protoc-gen-{kind}={BIN}/protoc-gen-{kind}" for kind in ("mypy", "mypy_grpc")]
    arguments += [f"--{kind}_out={out}" for kind in ("python", "grpc_python", "mypy", "mypy_grpc")]
    if protoc.main([*arguments, *sources]) != 0:
        raise RuntimeError("protoc refused a file, see above")


if __name__ == "__main__":
    generate(Path(sys.argv[1]) if len(sys.argv) > 1 else PROTOS.parent)
