"""Imports run one way: serving → index → sources → encoder, training → sources; kindred composes them."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]

# What the modules below each folder may import of the project. The longest matching folder counts.
ALLOWED = {
    "encoder": {"encoder"},
    "sources": {"encoder", "sources"},
    "training": {"encoder", "sources", "training"},
    "index": {"encoder", "index", "sources"},
    "serving": {"encoder", "index", "kindred.kserve", "kindred.v1", "serving"},
    "kindred": {"encoder", "index", "kindred", "serving", "sources", "training"},
    "kindred/v1": {"kindred.v1"},
    "kindred/kserve": {"kindred.kserve"},
}
PACKAGES = ("encoder", "index", "kindred", "serving", "sources", "training")


def imported_modules(path: Path) -> set[str]:
    """Return the absolute names of all modules that a file imports, at any depth of its code."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative imports hide where things come from"
            module = node.module or ""
            # `from kindred import v1` reaches kindred.v1, not all of kindred.
            names.update(f"{module}.{alias.name}" for alias in node.names)
    return names


def rule_for(relative: str) -> set[str]:
    """Return what the file may import, by the longest folder that matches."""
    folder = max((name for name in ALLOWED if relative.startswith(name + "/")), key=len)
    return ALLOWED[folder]


def source_files() -> list[str]:
    """Return every Python file of the packages, relative to the project's root."""
    return sorted(str(path.relative_to(ROOT)) for name in PACKAGES for path in (ROOT / name).rglob("*.py"))


@pytest.mark.parametrize("relative", source_files())
def test_a_module_imports_only_what_lies_below_it(relative: str) -> None:
    allowed = rule_for(relative)
    for module in imported_modules(ROOT / relative):
        if module.split(".")[0] not in PACKAGES:
            continue
        assert any(module == name or module.startswith(name + ".") for name in allowed), f"{relative} imports {module}"


def loaded_by(statement: str) -> set[str]:
    """Run a statement in a fresh interpreter and return the top-level modules that it loaded."""
    code = f"import sys\n{statement}\nprint(' '.join({{name.split('.')[0] for name in sys.modules}}))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=120)
    return set(done.stdout.splitlines()[-1].split())


@pytest.mark.parametrize(
    ("statement", "unwanted"),
    [
        ("from kindred import Client, AsyncClient", {"torch", "faiss", "onnxruntime", "sklearn", "onnx"}),
        ("import kindred.cli", {"torch", "faiss", "onnxruntime", "sklearn", "onnx", "grpc"}),
        ("import serving.server", {"torch", "sklearn", "onnx"}),
        ("import index.batch, index.catalog", {"torch", "sklearn", "onnx", "grpc"}),
        ("import encoder.images, encoder.metadata, encoder.errors", {"torch", "faiss", "onnxruntime", "onnx", "grpc"}),
        ("import sources.opening", {"torch", "faiss", "onnxruntime", "sklearn", "onnx", "grpc", "pyarrow", "fsspec"}),
        ("import index.types", {"faiss", "torch", "onnxruntime"}),
    ],
)
def test_a_light_import_loads_nothing_heavy(statement: str, unwanted: set[str]) -> None:
    assert not loaded_by(statement) & unwanted
