"""Search and Classify: the right neighbours by image, vector and key; the right class; every wrong question refused."""

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc
import numpy as np
import pytest

from imagekin.index.types import EvaluateOptions
from imagekin.v1 import collections_pb2, common_pb2, embedder_pb2
from imagekin.v1 import searcher_pb2 as pb
from imagekin.v1.common_pb2 import Image, Item, Query
from tests.serving.conftest import CLASSES
from tests.serving.running import Running, details, fields, image, png, vector

Method = pb.ClassifyRequest.Method
LABELS = ("cat", "dog")


@pytest.fixture(scope="module")
def shop(server: Running) -> Iterator[Running]:
    """A server with the collection `shop`: images 0 to 19, the even ones cats, the odd ones dogs."""
    stub = server.collections
    stub.CreateCollection(collections_pb2.CreateCollectionRequest(name="shop"))
    items = [
        Item(key=f"i{seed}", image=image(seed), label=LABELS[seed % 2], payload_json=f'{{"seed":{seed}}}')
        for seed in range(20)
    ]
    stub.Upsert(collections_pb2.UpsertRequest(collection="shop", items=items))
    stub.CreateCollection(collections_pb2.CreateCollectionRequest(name="foreign", space="elsewhere", dim=16))
    stub.Upsert(
        collections_pb2.UpsertRequest(
            collection="foreign", items=[Item(key="a", vector=vector(np.eye(16)[0]), label="x")]
        )
    )
    stub.CreateCollection(collections_pb2.CreateCollectionRequest(name="heads", model="other"))
    stub.CreateCollection(collections_pb2.CreateCollectionRequest(name="empty"))
    yield server
    for name in ("shop", "foreign", "heads", "empty"):
        stub.DropCollection(collections_pb2.DropCollectionRequest(name=name))


def search(server: Running, *queries: Query, collection: str = "shop", **parts: Any) -> list[pb.SearchResult]:
    request = pb.SearchRequest(collection=collection, queries=queries, **parts)
    return list(server.searcher.Search(request, timeout=20).results)


def classify(server: Running, *queries: Query, collection: str = "shop", **parts: Any) -> list[pb.ClassifyResult]:
    request = pb.ClassifyRequest(collection=collection, queries=queries, **parts)
    return list(server.searcher.Classify(request, timeout=20).results)


def keys(result: pb.SearchResult) -> list[str]:
    return [neighbour.key for neighbour in result.neighbours]


def embedding(server: Running, seed: int) -> common_pb2.Vector:
    response = server.embedder.Embed(embedder_pb2.EmbedRequest(images=[image(seed)]))
    return common_pb2.Vector(data=response.results[0].vector, dim=response.dim)


def refused(call: Callable[[], object], code: grpc.StatusCode) -> Any:
    with pytest.raises(grpc.RpcError) as failed:
        call()
    status = details(failed.value)
    assert status.code == code.value[0], status.message
    return status


def test_image_vector_and_key_ask_the_same_question(shop: Running) -> None:
    by_image, by_vector, by_key = search(
        shop, Query(image=image(3)), Query(vector=embedding(shop, 3)), Query(key="i3"), k=6
    )
    assert keys(by_image)[0] == "i3"
    assert by_image.neighbours[0].similarity == pytest.approx(1, abs=1e-5)
    assert keys(by_image) == keys(by_vector)
    assert "i3" not in keys(by_key)
    assert keys(by_key)[:5] == keys(by_image)[1:]
    assert len(by_key.neighbours) == 6
    similarities = [neighbour.similarity for neighbour in by_image.neighbours]
    assert similarities == sorted(similarities, reverse=True)


def test_k_of_zero_means_ten_and_fewer_come_only_when_fewer_exist(shop: Running) -> None:
    assert len(search(shop, Query(key="i0"))[0].neighbours) == 10
    assert len(search(shop, Query(image=image(0)), k=10_000)[0].neighbours) == 20
    assert len(search(shop, Query(key="i0"), k=10_000)[0].neighbours) == 19
    assert keys(search(shop, Query(image=image(0)), collection="empty")[0]) == []


def test_payloads_and_vectors_come_when_asked_for(shop: Running) -> None:
    plain = search(shop, Query(image=image(3)), k=1)[0].neighbours[0]
    assert (plain.label, plain.payload_json, plain.HasField("vector")) == ("dog", "", False)
    full = search(shop, Query(image=image(3)), k=1, with_payload=True, with_vector=True)[0].neighbours[0]
    assert full.payload_json == '{"seed":3}'
    np.testing.assert_allclose(
        np.frombuffer(full.vector.data, "<f4"), np.frombuffer(embedding(shop, 3).data, "<f4"), atol=1e-5
    )


def test_a_bound_on_similarity_leaves_out_the_rest(shop: Running) -> None:
    everything = search(shop, Query(image=image(3)), k=20)[0].neighbours
    bound = everything[4].similarity
    kept = search(shop, Query(image=image(3)), k=20, min_similarity=bound)[0].neighbours
    assert 4 <= len(kept) <= 5
    assert search(shop, Query(image=image(3)), k=20, min_similarity=-1)[0].neighbours == everything


def test_a_bad_query_is_an_error_in_its_place(shop: Running) -> None:
    bad = [
        (Query(image=Image(data=b"no image")), grpc.StatusCode.INVALID_ARGUMENT),
        (Query(key="none"), grpc.StatusCode.NOT_FOUND),
        (Query(vector=vector([1.0, 2.0])), grpc.StatusCode.INVALID_ARGUMENT),
        (Query(vector=vector([float("nan")] * 16)), grpc.StatusCode.INVALID_ARGUMENT),
        (Query(vector=common_pb2.Vector(data=b"abc", dim=16)), grpc.StatusCode.INVALID_ARGUMENT),
        (Query(), grpc.StatusCode.INVALID_ARGUMENT),
        (Query(examples=common_pb2.Examples()), grpc.StatusCode.INVALID_ARGUMENT),
        (Query(examples=common_pb2.Examples(positive_keys=["none"])), grpc.StatusCode.NOT_FOUND),
        (Query(examples=common_pb2.Examples(positive_vectors=[vector([1.0])])), grpc.StatusCode.INVALID_ARGUMENT),
        (
            Query(examples=common_pb2.Examples(positive_keys=["i1"], negative_keys=["i1"])),
            grpc.StatusCode.INVALID_ARGUMENT,
        ),
        (
            Query(examples=common_pb2.Examples(positive_keys=[f"k{number}" for number in range(1001)])),
            grpc.StatusCode.INVALID_ARGUMENT,
        ),
    ]
    queries = [query for query, _ in bad]
    for results in (
        search(shop, Query(key="i1"), *queries, Query(image=image(2))),
        classify(shop, Query(key="i1"), *queries, Query(image=image(2))),
    ):
        assert not results[0].HasField("error")
        assert not results[-1].HasField("error")
        assert [result.error.status.code for result in results[1:-1]] == [code.value[0] for _, code in bad]
    assert keys(search(shop, *queries, Query(image=image(2)), k=1)[-1]) == ["i2"]
    assert all(result.HasField("error") for result in search(shop, *queries))


@pytest.mark.parametrize(
    ("parts", "field"),
    [
        ({"k": 10_001}, "k"),
        ({"min_similarity": 1.5}, "min_similarity"),
        ({"min_similarity": float("nan")}, "min_similarity"),
    ],
)
def test_a_wrong_option_is_named(shop: Running, parts: dict[str, Any], field: str) -> None:
    for ask in (search, classify):
        status = refused(lambda ask=ask: ask(shop, Query(key="i1"), **parts), grpc.StatusCode.INVALID_ARGUMENT)  # type: ignore[misc]
        assert fields(status) == [field]


def test_an_answer_that_would_be_huge_is_refused_before_the_search(shop: Running) -> None:
    many = [Query(key="i1")] * 11
    assert fields(refused(lambda: search(shop, *many, k=10_000), grpc.StatusCode.INVALID_ARGUMENT)) == ["k"]


def test_with_a_bound_k_may_be_large_and_finds_everything_so_similar(shop: Running) -> None:
    (every,) = search(shop, Query(key="i1"), k=10_000)
    bound = every.neighbours[len(every.neighbours) // 2].similarity
    (within,) = search(shop, Query(key="i1"), k=100_000, min_similarity=bound)
    assert keys(within) == [one.key for one in every.neighbours if one.similarity >= bound]
    assert len(keys(within)) > 1
    for parts in ({"k": 100_001}, {"k": 10_001, "group_by": "label"}):
        status = refused(
            lambda parts=parts: search(shop, Query(key="i1"), min_similarity=bound, **parts),  # type: ignore[misc]
            grpc.StatusCode.INVALID_ARGUMENT,
        )
        assert fields(status) == ["k"]


def test_batches_of_a_wrong_size_are_refused(shop: Running) -> None:
    for ask in (search, classify):
        for queries in ([], [Query(key="i1")] * 257):
            status = refused(lambda ask=ask, queries=queries: ask(shop, *queries), grpc.StatusCode.INVALID_ARGUMENT)  # type: ignore[misc]
            assert fields(status) == ["queries"]


def test_an_unknown_collection_is_not_found(shop: Running) -> None:
    for ask in (search, classify):
        refused(lambda ask=ask: ask(shop, Query(key="a"), collection="none"), grpc.StatusCode.NOT_FOUND)  # type: ignore[misc]


def test_a_foreign_space_serves_vectors_and_keys_but_no_images(shop: Running) -> None:
    by_vector, by_image = search(shop, Query(vector=vector(np.eye(16)[0])), Query(image=image(1)), collection="foreign")
    assert keys(by_vector) == ["a"]
    assert by_image.error.status.code == grpc.StatusCode.FAILED_PRECONDITION.value[0]
    status = refused(
        lambda: search(shop, Query(image=image(1)), collection="foreign"), grpc.StatusCode.FAILED_PRECONDITION
    )
    assert "elsewhere" in status.message
    item = Item(key="b", image=image(1))
    refused(
        lambda: shop.collections.Upsert(collections_pb2.UpsertRequest(collection="foreign", items=[item])),
        grpc.StatusCode.FAILED_PRECONDITION,
    )


def test_concurrent_single_queries_get_their_own_answers(shop: Running) -> None:
    def nearest(seed: int) -> str:
        return keys(search(shop, Query(image=image(seed)), k=1)[0])[0]

    seeds = [seed % 20 for seed in range(200)]
    with ThreadPoolExecutor(16) as pool:
        assert list(pool.map(nearest, seeds)) == [f"i{seed}" for seed in seeds]


def test_an_indexed_image_is_classified_by_itself_or_by_the_others(shop: Running) -> None:
    (with_itself,) = classify(shop, Query(image=image(4)), k=1)
    assert with_itself.prediction.label == "cat"
    assert with_itself.prediction.confidence == pytest.approx(1)
    assert with_itself.prediction.nearest_similarity == pytest.approx(1, abs=1e-5)
    (without,) = classify(shop, Query(image=image(4)), k=1, leave_one_out=True)
    (by_key,) = classify(shop, Query(key="i4"), k=1)
    assert without.prediction.nearest_similarity < 0.999
    assert without.prediction == by_key.prediction
    votes = classify(shop, Query(image=image(4)))[0].prediction.votes
    assert sum(vote.share for vote in votes) == pytest.approx(1, abs=1e-5)


def test_thresholds_answer_unknown_and_still_state_the_confidence(shop: Running) -> None:
    sure = classify(shop, Query(image=image(4)), k=20)[0].prediction
    unsure = classify(shop, Query(image=image(4)), k=20, temperature=1.0, min_confidence=0.99)[0].prediction
    assert not unsure.HasField("label")
    assert 0 < unsure.confidence < sure.confidence
    far = classify(shop, Query(key="i4"), min_similarity=0.9999)[0].prediction
    assert not far.HasField("label")
    assert not classify(shop, Query(image=image(4)), collection="empty")[0].prediction.HasField("label")


def test_prototypes_classify_too(shop: Running) -> None:
    prediction = classify(shop, Query(image=image(4)), method=Method.METHOD_PROTOTYPE)[0].prediction
    assert prediction.label in LABELS
    assert [vote.share for vote in prediction.votes] == sorted((vote.share for vote in prediction.votes), reverse=True)


def test_a_linear_head_classifies_images_only(shop: Running) -> None:
    good, by_vector = classify(
        shop,
        Query(image=image(4)),
        Query(vector=vector(np.eye(16)[0])),
        collection="heads",
        method=Method.METHOD_LINEAR,
    )
    assert good.prediction.label == good.prediction.votes[0].label
    assert sorted(vote.label for vote in good.prediction.votes) == sorted(CLASSES)
    assert sum(vote.share for vote in good.prediction.votes) == pytest.approx(1, abs=1e-5)
    assert by_vector.error.status.code == grpc.StatusCode.INVALID_ARGUMENT.value[0]
    (unknown,) = classify(
        shop, Query(image=image(4)), collection="heads", method=Method.METHOD_LINEAR, min_confidence=1.0
    )
    assert not unknown.prediction.HasField("label")


def test_a_model_without_a_head_refuses_linear(shop: Running) -> None:
    status = refused(
        lambda: classify(shop, Query(image=image(4)), method=Method.METHOD_LINEAR),
        grpc.StatusCode.FAILED_PRECONDITION,
    )
    assert fields(status) == ["method"]


@pytest.mark.parametrize(
    ("parts", "field"),
    [
        ({"temperature": -1.0}, "temperature"),
        ({"temperature": float("nan")}, "temperature"),
        ({"temperature": float("inf")}, "temperature"),
        ({"min_confidence": 1.5}, "min_confidence"),
        ({"min_confidence": float("nan")}, "min_confidence"),
        ({"method": 17}, "method"),
    ],
)
def test_a_wrong_classification_option_is_named(shop: Running, parts: dict[str, Any], field: str) -> None:
    status = refused(lambda: classify(shop, Query(key="i1"), **parts), grpc.StatusCode.INVALID_ARGUMENT)
    assert fields(status) == [field]


def test_the_smallest_temperature_still_gives_numbers(shop: Running) -> None:
    for method, collection in ((Method.METHOD_KNN, "shop"), (Method.METHOD_LINEAR, "heads")):
        (result,) = classify(
            shop, Query(image=Image(data=png(4))), method=method, collection=collection, temperature=1e-40
        )
        assert result.prediction.confidence == pytest.approx(1)


def test_a_filter_as_text_and_as_a_tree_is_pushed_into_the_search(shop: Running) -> None:
    condition = common_pb2.Condition(
        all=common_pb2.Conditions(
            parts=[
                comparison("label", "OPERATOR_EQUAL", common_pb2.Value(string_value="cat")),
                comparison("payload.seed", "OPERATOR_LESS", common_pb2.Value(double_value=9.5)),
            ]
        )
    )
    text = common_pb2.Filter(text='label = "cat" AND payload.seed < 9.5')
    for form in (text, common_pb2.Filter(condition=condition)):
        (found,) = search(shop, Query(image=image(3)), k=20, filter=form)
        assert sorted(keys(found)) == ["i0", "i2", "i4", "i6", "i8"]
        (result,) = classify(shop, Query(image=image(3)), filter=form)
        assert result.prediction.label == "cat"
        assert result.prediction.confidence == 1


def test_filters_that_only_python_takes_for_equal_are_asked_apart(shop: Running) -> None:
    """1 and true are equal in Python: questions that come together must not be joined on that ground."""
    conditions = ["payload.seed = 1", "payload.seed = true"] * 20
    with ThreadPoolExecutor(8) as pool:
        answers = list(
            pool.map(
                lambda text: search(shop, Query(key="i5"), k=3, filter=common_pb2.Filter(text=text))[0], conditions
            )
        )
    assert [keys(answer) for answer in answers] == [["i1"], []] * 20


def comparison(field: str, operator: str, *values: common_pb2.Value) -> common_pb2.Condition:
    kind = common_pb2.Comparison.Operator.Value(operator)
    return common_pb2.Condition(comparison=common_pb2.Comparison(field=field, operator=kind, values=values))


def _levels(count: int) -> common_pb2.Condition:
    node = comparison("label", "OPERATOR_EXISTS")
    for _ in range(count - 1):
        above = common_pb2.Condition()
        getattr(above, "not").CopyFrom(node)
        node = above
    return node


@pytest.mark.parametrize(
    "wrong",
    [
        common_pb2.Filter(),
        common_pb2.Filter(text=""),
        common_pb2.Filter(text="price < 3"),
        common_pb2.Filter(text="(" * 9000),
        common_pb2.Filter(condition=common_pb2.Condition()),
        common_pb2.Filter(condition=common_pb2.Condition(all=common_pb2.Conditions())),
        common_pb2.Filter(condition=_levels(17)),
        common_pb2.Filter(condition=comparison("label", "OPERATOR_UNSPECIFIED")),
        common_pb2.Filter(condition=comparison("label", "OPERATOR_EQUAL", common_pb2.Value())),
        common_pb2.Filter(condition=comparison("payload.a", "OPERATOR_LESS", common_pb2.Value(bool_value=True))),
        common_pb2.Filter(condition=comparison("price", "OPERATOR_EXISTS")),
    ],
)
def test_a_filter_that_cannot_be_used_is_refused(shop: Running, wrong: common_pb2.Filter) -> None:
    for call in (
        lambda: search(shop, Query(key="i1"), filter=wrong),
        lambda: classify(shop, Query(key="i1"), filter=wrong),
        lambda: shop.collections.Count(collections_pb2.CountRequest(collection="shop", filter=wrong)),
        lambda: shop.collections.Scroll(collections_pb2.ScrollRequest(collection="shop", filter=wrong)),
        lambda: shop.collections.Delete(collections_pb2.DeleteRequest(collection="shop", filter=wrong)),
        lambda: shop.collections.Facet(collections_pb2.FacetRequest(collection="shop", field="label", filter=wrong)),
    ):
        with pytest.raises(grpc.RpcError) as failed:
            call()
        status = details(failed.value)
        assert status.code == grpc.StatusCode.INVALID_ARGUMENT.value[0]
        assert fields(status) == ["filter"]


def test_groups_and_diversity(shop: Running) -> None:
    (grouped,) = search(shop, Query(key="i3"), k=20, group_by="label", group_size=2)
    assert sorted(neighbour.label for neighbour in grouped.neighbours) == ["cat", "cat", "dog", "dog"]
    assert "i3" not in keys(grouped)
    (plain,) = search(shop, Query(key="i3"), k=5)
    (diverse,) = search(shop, Query(key="i3"), k=5, diversity=0.9)
    assert keys(diverse)[0] == keys(plain)[0]
    assert set(keys(diverse)) != set(keys(plain))
    for parts, field in (
        ({"group_by": "price"}, "group_by"),
        ({"group_size": 2}, "group_size"),
        ({"group_by": "label", "group_size": 101}, "group_size"),
        ({"diversity": 1.5}, "diversity"),
        ({"diversity": float("nan")}, "diversity"),
    ):
        with pytest.raises(grpc.RpcError) as failed:
            search(shop, Query(key="i3"), **parts)
        assert fields(details(failed.value)) == [field]


def test_more_like_these_and_less_like_those(shop: Running) -> None:
    examples = common_pb2.Examples(
        positive_keys=["i1"], positive_vectors=[embedding(shop, 3)], negative_keys=["i2"], negative_vectors=[]
    )
    (found,) = search(shop, Query(examples=examples), k=20)
    assert not {"i1", "i2"} & set(keys(found))
    assert len(found.neighbours) == 18
    vectors = {seed: np.frombuffer(embedding(shop, seed).data, "<f4") for seed in range(4)}
    mixed = (vectors[1] + vectors[3]) / 2 - vectors[2]
    best = next(neighbour for neighbour in found.neighbours if neighbour.key == "i3")
    assert best.similarity == pytest.approx(float(mixed / np.linalg.norm(mixed) @ vectors[3]), abs=1e-5)
    (classified,) = classify(shop, Query(examples=examples))
    assert classified.prediction.label == "dog"


def test_a_calibrated_collection_answers_with_its_own_temperature_and_bound(shop: Running) -> None:
    seen = vector(np.random.default_rng(8).standard_normal(16))
    (plain,) = classify(shop, Query(vector=seen))
    assert plain.prediction.label in LABELS
    entry = shop.run(shop.server.store.get("shop"))
    found = entry.collection.calibrate(EvaluateOptions(k=5, true_positive_rate=1.0))
    try:
        (own,) = classify(shop, Query(vector=seen))
        (told,) = classify(shop, Query(vector=seen), temperature=found.temperature, min_similarity=-1)
        assert own.prediction.confidence == told.prediction.confidence
        assert own.prediction.nearest_similarity < found.min_similarity
        assert not own.prediction.HasField("label")
        assert told.prediction.label in LABELS
        (same,) = classify(shop, Query(vector=seen), temperature=0.07, min_similarity=-1)
        assert same.prediction.confidence == plain.prediction.confidence
    finally:
        entry.collection._store.write(
            lambda transaction: (
                transaction.connection.execute("DELETE FROM meta WHERE name LIKE 'calibration%'").rowcount
            )
        )
