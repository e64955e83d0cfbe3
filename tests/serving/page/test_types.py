"""The page's scripts pass the type checker: every name is there, every call has the arguments that it needs."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

TYPESCRIPT = "typescript@5.9.3"
SETTINGS = Path(__file__).with_name("tsconfig.json")
# Generous limits that end what hangs.
INSTALL_SECONDS, CHECK_SECONDS = 120, 120


def test_the_scripts_pass_the_type_checker(tmp_path_factory: pytest.TempPathFactory) -> None:
    npm, node = shutil.which("npm"), shutil.which("node")
    if npm is None or node is None:
        pytest.skip("no node and npm here: the page's scripts are not type-checked")
    folder = tmp_path_factory.mktemp("typescript")
    install = [npm, "install", "--no-audit", "--no-fund", "--ignore-scripts", "--prefix", str(folder), TYPESCRIPT]
    quiet = {**os.environ, "npm_config_fetch_retries": "0", "npm_config_update_notifier": "false"}
    try:
        got = subprocess.run(install, cwd=folder, env=quiet, capture_output=True, text=True, timeout=INSTALL_SECONDS)
    except subprocess.TimeoutExpired:
        pytest.skip(f"npm does not give {TYPESCRIPT} in time: the page's scripts are not type-checked")
    if got.returncode:
        pytest.skip(f"npm does not give {TYPESCRIPT} here: {got.stderr.strip()[-300:]}")
    compiler = folder / "node_modules" / "typescript" / "bin" / "tsc"
    done = subprocess.run(
        [node, str(compiler), "--project", str(SETTINGS)], capture_output=True, text=True, timeout=CHECK_SECONDS
    )
    shutil.rmtree(folder)
    assert done.returncode == 0, done.stdout
