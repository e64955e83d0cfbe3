"""The contract: the checked-in stubs are those of protos/, and every part of it is explained."""

import shutil
import subprocess
import sys
from pathlib import Path

import google.rpc
import pytest
from google.protobuf import descriptor_pb2
from grpc_tools import protoc  # type: ignore[import-untyped]

ROOT = Path(__file__).resolve().parents[2]
PROTOS = sorted((ROOT / "protos" / "imagekin").rglob("*.proto"))
SUFFIXES = ("_pb2.py", "_pb2.pyi", "_pb2_grpc.py", "_pb2_grpc.pyi")


def test_the_checked_in_stubs_are_what_protos_generates(tmp_path: Path) -> None:
    generate = [sys.executable, str(ROOT / "protos" / "generate.py"), str(tmp_path)]
    subprocess.run(generate, check=True, capture_output=True, timeout=120)
    generated = {path.relative_to(tmp_path) for path in tmp_path.rglob("*") if path.is_file()}
    checked_in = {
        path.relative_to(ROOT)
        for folder in ("v1", "kserve")
        for path in (ROOT / "imagekin" / folder).rglob("*")
        if path.name.endswith(SUFFIXES)
    }
    assert generated == checked_in, "run `make proto`"
    for relative in sorted(generated):
        assert (ROOT / relative).read_bytes() == (tmp_path / relative).read_bytes(), f"{relative}: run `make proto`"


def test_a_generator_of_another_language_needs_the_folder_alone(tmp_path: Path) -> None:
    import grpc_tools

    # Every generator brings google/protobuf itself, and nothing else.
    known = tmp_path / "known"
    shutil.copytree(Path(grpc_tools.__path__[0]) / "_proto" / "google" / "protobuf", known / "google" / "protobuf")
    folder = shutil.copytree(ROOT / "protos", tmp_path / "protos")
    arguments = [f"-I{folder}", f"-I{known}", "--include_imports", f"--descriptor_set_out={tmp_path / 'set.bin'}"]
    compiler = [sys.executable, "-c", "import sys; from grpc_tools import protoc; sys.exit(protoc.main(sys.argv))"]
    sources = [str(path.relative_to(ROOT / "protos")) for path in PROTOS]
    done = subprocess.run([*compiler, *arguments, *sources], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    files = descriptor_pb2.FileDescriptorSet.FromString((tmp_path / "set.bin").read_bytes()).file
    assert "google/rpc/status.proto" in {file.name for file in files}


def test_the_status_is_the_one_that_python_has() -> None:
    published = Path(next(iter(google.rpc.__path__))) / "status.proto"
    assert (ROOT / "protos" / "google" / "rpc" / "status.proto").read_bytes() == published.read_bytes()


def described(path: Path, out: Path) -> descriptor_pb2.FileDescriptorProto:
    """Compile one file with its comments kept."""
    import grpc_tools

    includes = [ROOT / "protos", Path(grpc_tools.__path__[0]) / "_proto"]
    target = out / "set.bin"
    arguments = [f"-I{include}" for include in includes]
    arguments += ["--include_source_info", f"--descriptor_set_out={target}", str(path.relative_to(ROOT / "protos"))]
    assert protoc.main(["protoc", *arguments]) == 0
    (file,) = descriptor_pb2.FileDescriptorSet.FromString(target.read_bytes()).file
    return file


@pytest.mark.parametrize("path", PROTOS, ids=lambda path: path.stem)
def test_every_message_field_and_rpc_has_a_comment(path: Path, tmp_path: Path) -> None:
    file = described(path, tmp_path)
    commented = {tuple(place.path) for place in file.source_code_info.location if place.leading_comments.strip()}
    missing = [name for name, place in declarations(file) if place not in commented]
    assert not missing, f"{path.name}: no comment on {', '.join(missing)}"


def declarations(file: descriptor_pb2.FileDescriptorProto) -> list[tuple[str, tuple[int, ...]]]:
    """Return the name and the source path (descriptor.proto, SourceCodeInfo) of everything that needs a comment."""
    found: list[tuple[str, tuple[int, ...]]] = []

    def enum(kind: descriptor_pb2.EnumDescriptorProto, place: tuple[int, ...]) -> None:
        found.append((kind.name, place))
        found.extend((value.name, (*place, 2, number)) for number, value in enumerate(kind.value))

    def message(kind: descriptor_pb2.DescriptorProto, place: tuple[int, ...]) -> None:
        found.append((kind.name, place))
        found.extend((f"{kind.name}.{field.name}", (*place, 2, number)) for number, field in enumerate(kind.field))
        for number, nested in enumerate(kind.nested_type):
            if not nested.options.map_entry:
                message(nested, (*place, 3, number))
        for number, nested_enum in enumerate(kind.enum_type):
            enum(nested_enum, (*place, 4, number))

    for number, kind in enumerate(file.message_type):
        message(kind, (4, number))
    for number, kind_enum in enumerate(file.enum_type):
        enum(kind_enum, (5, number))
    for number, service in enumerate(file.service):
        found.append((service.name, (6, number)))
        found.extend((method.name, (6, number, 2, at)) for at, method in enumerate(service.method))
    return found
