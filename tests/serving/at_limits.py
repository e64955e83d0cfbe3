"""The largest requests that each method of the server takes, and some that are far beyond."""

import json
from collections.abc import Callable, Iterator

import numpy as np
from google.protobuf.message import Message

from imagekin.kserve import inference_pb2
from imagekin.serving.settings import Limits
from imagekin.v1 import collections_pb2, common_pb2, embedder_pb2, searcher_pb2
from tests.serving.abuse import bomb
from tests.serving.running import png, vector

LIMITS = Limits()
DIM = 1280
SPACE = "random"
# With vectors they are twice as large as an answer may be.
ITEMS = 12_000
_BATCH = 256
_COLLECTIONS, _SEARCHER = "/imagekin.v1.Collections", "/imagekin.v1.Searcher"
_INFER = "/inference.GRPCInferenceService/ModelInfer"

# Method, what is special, and the request's bytes.
Request = tuple[str, str, bytes]
Send = Callable[[str, bytes], object]


def fill(send: Send, count: int = ITEMS) -> None:
    """Make a collection `big` of random vectors with labels and payloads, and an empty one for pictures, `shop`."""
    create = collections_pb2.CreateCollectionRequest
    send(f"{_COLLECTIONS}/CreateCollection", create(name="big", space=SPACE, dim=DIM).SerializeToString())
    send(f"{_COLLECTIONS}/CreateCollection", create(name="shop").SerializeToString())
    rng = np.random.default_rng(0)
    for first in range(0, count, _BATCH):
        items = [
            common_pb2.Item(
                key=_key(number),
                label=f"label {number % 5000}",
                vector=vector(rng.normal(size=DIM)),
                payload_json=json.dumps({"n": number, "text": "x" * 200}),
            )
            for number in range(first, min(first + _BATCH, count))
        ]
        upsert = collections_pb2.UpsertRequest(collection="big", items=items)
        send(f"{_COLLECTIONS}/Upsert", upsert.SerializeToString())


def requests() -> Iterator[Request]:
    """Yield the requests."""
    for name, message in _messages():
        method, _, special = name.partition(" ")
        yield method, special, message.SerializeToString()
    # Fields in fields, as many as fit.
    for method in (f"{_SEARCHER}/Search", f"{_COLLECTIONS}/Upsert", f"{_SEARCHER}/Classify", _INFER):
        yield method, "60 MiB of empty fields", b"\x12\x00" * (15 * 2**20)
    yield "/imagekin.v1.Embedder/Embed", "60 MiB of empty images", b"\x0a\x00" * (15 * 2**20)
    yield f"{_COLLECTIONS}/Count", "a tree of half a million comparisons", _tree(500_000).SerializeToString()
    yield f"{_SEARCHER}/Search", "a tree of half a million comparisons", _searched(_tree(500_000)).SerializeToString()
    # Packed numbers: millions of integers in few fields.
    numbers = inference_pb2.InferTensorContents(uint_contents=[1] * 8_000_000)
    tensor = inference_pb2.ModelInferRequest.InferInputTensor(name="pixels", datatype="UINT8", contents=numbers)
    yield _INFER, "8 million numbers", inference_pb2.ModelInferRequest(inputs=[tensor]).SerializeToString()


def _messages() -> Iterator[tuple[str, Message]]:
    images = [common_pb2.Image(data=png(number)) for number in range(LIMITS.max_batch_items)]
    large = [common_pb2.Image(data=b"no picture" * 12_000)] * 250
    yield "/imagekin.v1.Embedder/Embed 256 images", embedder_pb2.EmbedRequest(images=images)
    yield "/imagekin.v1.Embedder/Embed 30 MB", embedder_pb2.EmbedRequest(images=large)
    bombs = [common_pb2.Image(data=bomb(20_000))] * 256
    yield "/imagekin.v1.Embedder/Embed bombs", embedder_pb2.EmbedRequest(images=bombs)
    yield (
        "/imagekin.v1.Embedder/Embed a long name",
        embedder_pb2.EmbedRequest(images=images[:1], model="m" * 30_000_000),
    )
    yield from _searches()
    yield from _reads()
    yield from _writes()
    raw = b"".join(len(each.data).to_bytes(4, "little") + each.data for each in large)
    tensor = inference_pb2.ModelInferRequest.InferInputTensor(name="image", datatype="BYTES", shape=[250])
    yield f"{_INFER} 30 MB", inference_pb2.ModelInferRequest(inputs=[tensor], raw_input_contents=[raw])


def _searches() -> Iterator[tuple[str, Message]]:
    keys = [common_pb2.Query(key=_key(number)) for number in range(LIMITS.max_batch_items)]
    rng = np.random.default_rng(1)
    vectors = [common_pb2.Query(vector=vector(rng.normal(size=DIM))) for _ in range(LIMITS.max_batch_items)]
    examples = common_pb2.Examples(positive_keys=[_key(number) for number in range(1000)])
    examples_of_vectors = common_pb2.Examples(positive_vectors=[query.vector for query in vectors])
    search, classify = searcher_pb2.SearchRequest, searcher_pb2.ClassifyRequest
    yield f"{_SEARCHER}/Search 256 keys", search(collection="big", queries=keys, k=390)
    yield f"{_SEARCHER}/Search 256 vectors", search(collection="big", queries=vectors, k=390, with_payload=True)
    yield (
        f"{_SEARCHER}/Search 10,000 neighbours each",
        search(collection="big", queries=vectors[:10], k=10_000, with_payload=True),
    )
    yield f"{_SEARCHER}/Search with vectors", search(collection="big", queries=vectors[:1], k=6_000, with_vector=True)
    yield (
        f"{_SEARCHER}/Search within a similarity",
        search(collection="big", queries=vectors[:1], k=100_000, min_similarity=-1, with_payload=True),
    )
    yield (
        f"{_SEARCHER}/Search groups",
        search(collection="big", queries=vectors[:16], k=1000, group_by="label", group_size=5),
    )
    yield f"{_SEARCHER}/Search diverse", search(collection="big", queries=vectors[:16], k=200, diversity=0.5)
    yield (
        f"{_SEARCHER}/Search examples",
        search(collection="big", queries=[common_pb2.Query(examples=examples)] * 50, k=10),
    )
    yield (
        f"{_SEARCHER}/Search examples that are vectors",
        search(collection="big", queries=[common_pb2.Query(examples=examples_of_vectors)] * 15, k=10),
    )
    yield f"{_SEARCHER}/Search a tree", _searched(_tree(990))
    yield f"{_SEARCHER}/Search a list", _searched(_list(1000))
    yield f"{_SEARCHER}/Search a text", search(collection="big", queries=keys, filter=_text())
    for method in (1, 2, 3):
        yield (
            f"{_SEARCHER}/Classify method {method}",
            classify(
                collection="big",
                queries=vectors,
                k=10_000,
                leave_one_out=True,
                method=method,  # type: ignore[arg-type]
            ),
        )


def _reads() -> Iterator[tuple[str, Message]]:
    keys = [_key(number) for number in range(LIMITS.max_keys)]
    missing = [f"{'x' * 500}{number}" for number in range(LIMITS.max_keys)]
    yield f"{_COLLECTIONS}/Get 10,000 keys", collections_pb2.GetRequest(collection="big", keys=keys, with_vector=True)
    yield f"{_COLLECTIONS}/Get 10,000 missing", collections_pb2.GetRequest(collection="big", keys=missing)
    yield (
        f"{_COLLECTIONS}/Scroll 10,000 items",
        collections_pb2.ScrollRequest(collection="big", page_size=10_000, with_vector=True),
    )
    for name, given in (("tree", _tree(990)), ("list", _list(1000)), ("text", _text())):
        yield f"{_COLLECTIONS}/Scroll a {name}", collections_pb2.ScrollRequest(collection="big", filter=given)
        yield f"{_COLLECTIONS}/Count a {name}", collections_pb2.CountRequest(collection="big", filter=given)
        yield (
            f"{_COLLECTIONS}/Facet a {name}",
            collections_pb2.FacetRequest(collection="big", field="label", filter=given),
        )
    yield (
        f"{_COLLECTIONS}/Facet all labels",
        collections_pb2.FacetRequest(collection="big", field="label", limit=10_000),
    )
    yield (
        f"{_COLLECTIONS}/Facet all numbers",
        collections_pb2.FacetRequest(collection="big", field="payload.n", limit=10_000),
    )
    yield f"{_COLLECTIONS}/ListCollections ", collections_pb2.ListCollectionsRequest()
    yield f"{_COLLECTIONS}/DescribeCollection a long name", collections_pb2.DescribeCollectionRequest(name="n" * 60_000)


def _writes() -> Iterator[tuple[str, Message]]:
    flat = json.dumps({f"key {number}": number for number in range(3_000)})
    nested = '{"a":' + "[" * 30 + ",".join("[[]]" for _ in range(10_000)) + "]" * 30 + "}"
    for name, payload in (("flat", flat), ("nested", nested)):
        items = [
            common_pb2.Item(key=f"p{number}", payload_json=payload, vector=vector([1.0] * DIM)) for number in range(256)
        ]
        yield f"{_COLLECTIONS}/Upsert {name} payloads", collections_pb2.UpsertRequest(collection="big", items=items)
        updates = [collections_pb2.ItemUpdate(key=_key(number), payload_json=payload) for number in range(256)]
        yield f"{_COLLECTIONS}/Update {name} payloads", collections_pb2.UpdateRequest(collection="big", updates=updates)
    wide = vector(np.ones(30_000))
    items = [common_pb2.Item(key=f"w{number}", vector=wide) for number in range(256)]
    yield f"{_COLLECTIONS}/Upsert wide vectors", collections_pb2.UpsertRequest(collection="big", items=items)
    pictures = [common_pb2.Item(key=f"s{number}", image=common_pb2.Image(data=png(number))) for number in range(256)]
    yield f"{_COLLECTIONS}/Upsert 256 images", collections_pb2.UpsertRequest(collection="shop", items=pictures)
    yield (
        f"{_COLLECTIONS}/Delete 10,000 missing",
        collections_pb2.DeleteRequest(
            collection="big", keys=[f"{'x' * 500}{number}" for number in range(LIMITS.max_keys)]
        ),
    )
    yield f"{_COLLECTIONS}/Delete a tree", collections_pb2.DeleteRequest(collection="big", filter=_tree(990))
    yield f"{_COLLECTIONS}/Snapshot ", collections_pb2.SnapshotRequest(collection="big")
    yield (
        f"{_COLLECTIONS}/Delete 5,000 keys",
        collections_pb2.DeleteRequest(collection="big", keys=[_key(number) for number in range(5000)]),
    )


def _key(number: int) -> str:
    return f"item {number:06d}"


def _searched(given: common_pb2.Filter) -> searcher_pb2.SearchRequest:
    return searcher_pb2.SearchRequest(collection="big", queries=[common_pb2.Query(key=_key(0))], filter=given)


def _tree(parts: int) -> common_pb2.Filter:
    comparison = common_pb2.Comparison(
        field="payload.n",
        operator=common_pb2.Comparison.Operator.OPERATOR_NOT_EQUAL,
        values=[common_pb2.Value(int_value=-1)],
    )
    tree = common_pb2.Filter()
    tree.condition.any.parts.extend([common_pb2.Condition(comparison=comparison)] * parts)
    return tree


def _list(values: int) -> common_pb2.Filter:
    comparison = common_pb2.Comparison(
        field="key",
        operator=common_pb2.Comparison.Operator.OPERATOR_IN,
        values=[common_pb2.Value(string_value=f"{'x' * 500}{number}") for number in range(values)],
    )
    return common_pb2.Filter(condition=common_pb2.Condition(comparison=comparison))


def _text() -> common_pb2.Filter:
    return common_pb2.Filter(text=" OR ".join(f"payload.n = {number}" for number in range(700)))
