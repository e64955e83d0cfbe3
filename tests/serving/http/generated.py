"""Generates clients from `openapi.json` with stock generators, and uses them against a real server.

    python -m tests.serving.http.generated [--python] [--typescript]

Installs `openapi-python-client` with pip, and `openapi-typescript`, `openapi-fetch` and `typescript` with npm, into a
temporary folder, and so needs their registries. A warning of a generator is a failure, and so is what TypeScript's
compiler says about the small program that uses the types.
"""

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from imagekin.serving.settings import Settings
from tests.artifacts import tiny_artifact
from tests.serving.running import running
from tests.sources.pictures import png

DOCUMENT = Path(__file__).resolve().parents[3] / "serving" / "http" / "openapi.json"
PYTHON_GENERATOR = "openapi-python-client==0.29.1"
TYPESCRIPT = ("openapi-typescript@7.13.0", "openapi-fetch@0.17.0", "typescript@5.9.3", "@types/node@20")
TOKEN = "everything-0123456789abcdef"
_SECONDS = 300.0
# Thumbnails are JPEG files, and a review is lines of JSON; the generator knows bytes and texts of any kind.
_CONFIGURATION = "content_type_overrides: {image/jpeg: application/octet-stream, application/x-ndjson: text/plain}"

PYTHON = """
import io, sys
from imagekin_client import AuthenticatedClient
from imagekin_client.api.collections import create_collection, delete_by_key, get_by_key, scroll, thumbnail, upsert
from imagekin_client.api.embedder import embed, list_models
from imagekin_client.api.searcher import search, search_by_key
from imagekin_client.models import *
from imagekin_client.types import File

address, token, picture = sys.argv[1:]
client = AuthenticatedClient(base_url=address, token=token)
data = open(picture, "rb").read()
(model,) = list_models.sync(client=client).models
made = create_collection.sync(client=client, body=CreateCollectionRequest(name="py", thumbnail_size=32))
assert made.collection.dim == model.dim, made
again = create_collection.sync_detailed(client=client, body=CreateCollectionRequest(name="py"))
assert (again.status_code, again.parsed.code) == (409, ErrorCode.ALREADY_EXISTS), again
items = [Item(key="v", vector=[1.0] * model.dim, label="a", payload=ItemPayload.from_dict({"price": 3}))]
assert upsert.sync("py", client=client, body=UpsertRequest(items=items)).results[0].outcome == "inserted"
stored = upsert.sync("py", client=client, body=File(io.BytesIO(data)), key="one/1", payload='{"price": 5}')
assert stored.results[0].outcome == UpsertResultOutcome.INSERTED, stored
files = ImageFiles(image=[File(io.BytesIO(data), "b.png", "image/png"), File(io.BytesIO(data), "c.png", "image/png")])
assert len(upsert.sync("py", client=client, body=files, label="both").results) == 2
(result,) = search.sync("py", client=client, body=File(io.BytesIO(data)), k=2, with_payload=True).results
assert [one.key for one in result.neighbours][0] in ("one/1", "b.png", "c.png"), result
query = SearchRequest(queries=[Query(vector=[1.0] * model.dim)], k=1, filter_="payload.price < 4")
(result,) = search.sync("py", client=client, body=query).results
assert [one.key for one in result.neighbours] == ["v"], result
assert len(search_by_key.sync("py", client=client, key="one/1", k=3).results[0].neighbours) == 3
(item, other) = get_by_key.sync("py", client=client, key=["one/1", "v"], with_vector=True).items
assert item.payload.additional_properties == {"price": 5} and len(other.vector) == model.dim
assert embed.sync(client=client, body=File(io.BytesIO(data)), vectors=VectorForm.BASE64).results[0].vector
assert thumbnail.sync("py", client=client, key="one/1").payload.read()[:2] == b"\\xff\\xd8"
condition = Condition(comparison=Comparison(field="label", operator=ComparisonOperator.EQUAL, values=["both"]))
page = scroll.sync("py", client=client, body=ScrollRequest(filter_=condition))
assert [one.key for one in page.items] == ["b.png", "c.png"]
assert delete_by_key.sync("py", client=client, key=["v", "b.png"]).deleted == 2
missing = get_by_key.sync_detailed("none", client=client, key=["v"])
assert missing.status_code == 404 and missing.parsed.code == ErrorCode.NOT_FOUND and missing.parsed.message, missing
wrong = search_by_key.sync("py", client=client, key="one/1", k=-1)
assert wrong.code == ErrorCode.INVALID_ARGUMENT and wrong.field == "k", wrong
refused = list_models.sync_detailed(client=AuthenticatedClient(base_url=address, token="wrong"))
assert refused.parsed.code == ErrorCode.UNAUTHENTICATED, refused
print("done")
"""

PROGRAM = """
import createClient from "openapi-fetch";
import { readFileSync } from "node:fs";
import type { components, paths } from "./imagekin";

const [address, token, picture] = process.argv.slice(2);
const client = createClient<paths>({ baseUrl: address, headers: { Authorization: `Bearer ${token}` } });
function check(what: unknown, said: unknown): asserts what {
  if (!what) throw new Error(JSON.stringify(said));
}
const models = await client.GET("/v1/models");
const dim = models.data?.models?.[0]?.dim;
check(dim, models.error);
const made = await client.POST("/v1/collections", { body: { name: "ts", thumbnail_size: 32 } });
check(made.data?.collection?.dim === dim, made.error);
const again = await client.POST("/v1/collections", { body: { name: "ts" } });
check(again.error?.code === "ALREADY_EXISTS" && again.response.status === 409, again);
const of = { path: { collection: "ts" } };
type Item = components["schemas"]["Item"];
const items: Item[] = [{ key: "v/1", vector: Array(dim).fill(1), label: "a", payload: { price: 3 } }];
const stored = await client.POST("/v1/collections/{collection}/items", { params: of, body: { items } });
check(stored.data?.results?.[0]?.outcome === "inserted", stored.error);
const file = await client.POST("/v1/collections/{collection}/items", {
  params: { ...of, query: { key: "p" } },
  body: readFileSync(picture) as unknown as string,
  bodySerializer: (body: unknown) => body,
  headers: { "Content-Type": "application/octet-stream" },
});
check(file.data?.results?.[0]?.outcome === "inserted", file.error);
const found = await client.GET("/v1/collections/{collection}/search", { params: { ...of, query: { key: "p", k: 1 } } });
check(found.data?.results?.[0]?.neighbours?.[0]?.key === "v/1", found.error);
const got = await client.GET("/v1/collections/{collection}/items", { params: { ...of, query: { key: ["v/1", "p"] } } });
check(got.data?.items?.length === 2, got.error);
const shown = await client.GET("/v1/collections/{collection}/thumbnail", {
  params: { ...of, query: { key: "p" } },
  parseAs: "blob",
});
check(shown.data, shown.error);
const missing = await client.GET("/v1/collections/{name}", { params: { path: { name: "none" } } });
check(missing.error?.code === "NOT_FOUND", missing);
console.log("done");
"""


def run(*command: object, folder: Path) -> str:
    """Run a command; raise AssertionError with its output when it fails."""
    ended = subprocess.run(
        [str(one) for one in command], cwd=folder, capture_output=True, text=True, timeout=_SECONDS, check=False
    )
    assert ended.returncode == 0, f"{command[0]}: {ended.stdout}{ended.stderr}"
    return ended.stdout


def use_python(folder: Path, generator: Path, python: Path, address: str, picture: Path) -> None:
    """Generate a Python client and use it.

    Args:
        folder: an empty folder.
        generator: the command `openapi-python-client`.
        python: an interpreter that has httpx and attrs.
        address: where the server listens.
        picture: an image file.
    """
    (folder / "configuration.yaml").write_text(_CONFIGURATION)
    options = ["--path", DOCUMENT, "--output-path", "made", "--meta", "none", "--config", "configuration.yaml"]
    run(generator, "generate", *options, "--fail-on-warning", folder=folder)
    (folder / "made").rename(folder / "imagekin_client")
    (folder / "use.py").write_text(PYTHON)
    assert run(python, "use.py", address, TOKEN, picture, folder=folder) == "done\n"


def use_typescript(folder: Path, address: str, picture: Path) -> None:
    """Generate types for TypeScript, check a program with them, and run it with Node.

    Args:
        folder: an empty folder.
        address: where the server listens.
        picture: an image file.
    """
    (folder / "package.json").write_text(json.dumps({"type": "module", "private": True}))
    (folder / "use.ts").write_text(PROGRAM)
    run("npm", "install", "--no-audit", "--no-fund", "--ignore-scripts", *TYPESCRIPT, folder=folder)
    run("npx", "openapi-typescript", DOCUMENT, "-o", "imagekin.d.ts", folder=folder)
    how = [
        "--strict",
        "--target",
        "es2022",
        "--module",
        "es2022",
        "--moduleResolution",
        "bundler",
        "--skipLibCheck",
        "--types",
        "node",
    ]
    run("npx", "tsc", *how, "use.ts", folder=folder)
    assert run("node", "use.js", address, TOKEN, picture, folder=folder) == "done\n"


@contextmanager
def serving(folder: Path) -> Iterator[tuple[str, Path]]:
    """Run a server that asks for a token, with its files in a folder; give its address and an image file."""
    picture, tokens = folder / "picture.png", folder / "tokens.toml"
    picture.write_bytes(png(1, 48))
    tokens.touch(0o600)
    tokens.write_text(f'[[token]]\nname = "all"\nscope = "admin"\ntoken = "{TOKEN}"\n')
    settings = Settings(
        address="127.0.0.1:0",
        http_address="127.0.0.1:0",
        models=(("tiny", tiny_artifact(folder / "tiny.onnx")),),
        data_dir=folder / "data",
        tokens_file=tokens,
    )
    with running(settings) as server:
        yield f"http://127.0.0.1:{server.server.http_port}", picture


def main() -> None:
    """Install the generators and use what they make."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--python", action="store_true", help="only Python")
    parser.add_argument("--typescript", action="store_true", help="only TypeScript")
    options = parser.parse_args()
    both = options.python == options.typescript
    with tempfile.TemporaryDirectory() as name, serving(folder := Path(name)) as (address, picture):
        if both or options.python:
            run(sys.executable, "-m", "venv", "venv", folder=folder)
            run("venv/bin/pip", "install", "--quiet", PYTHON_GENERATOR, folder=folder)
            (folder / "python").mkdir()
            scripts = folder / "venv" / "bin"
            use_python(folder / "python", scripts / "openapi-python-client", scripts / "python", address, picture)
            print("Python: done")
        if both or options.typescript:
            assert shutil.which("npm"), "npm is missing: install Node"
            (folder / "typescript").mkdir()
            use_typescript(folder / "typescript", address, picture)
            print("TypeScript: done")


if __name__ == "__main__":
    main()
