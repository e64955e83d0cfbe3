"""Run the tests of the bridges in a fresh environment with the libraries that they lead to, as pip finds them today.

    python -m tests.client.bridges [FOLDER]

FOLDER keeps the environment for the next time; without it, a temporary one is made.
"""

import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[3]
LIBRARIES = ("datasets", "fiftyone", "langchain-core", "llama-index-core")
# FiftyOne keeps its samples in MongoDB; mongomock takes the server's place.
FOR_TESTS = ("hypothesis", "mongomock", "onnx", "pytest")


def main(folder: Path) -> int:
    """Run the tests and return their status."""
    python = folder / "bin" / "python"
    if not python.exists():
        subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
    install = [str(python), "-m", "pip", "install", "--quiet", "--editable", ".[cpu]", *LIBRARIES, *FOR_TESTS]
    subprocess.run(install, cwd=ROOT, check=True)
    listed = subprocess.run(
        [str(python), "-m", "pip", "list", "--format", "freeze"], capture_output=True, text=True, check=True
    )
    print(*(line for line in listed.stdout.splitlines() if line.split("==")[0] in LIBRARIES), sep="\n", flush=True)
    # The libraries' own warnings are not ours to heed.
    tests = [str(python), "-m", "pytest", "-W", "default", "--disable-warnings", "-q", "tests/client/bridges"]
    return subprocess.run(tests, cwd=ROOT).returncode


if __name__ == "__main__":
    if len(sys.argv) > 1:
        sys.exit(main(Path(sys.argv[1]).absolute()))
    with tempfile.TemporaryDirectory() as temporary:
        sys.exit(main(Path(temporary) / "venv"))
