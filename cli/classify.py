"""`imagekin classify`."""

import time
from typing import TYPE_CHECKING, Annotated, Any

import typer

from imagekin.cli.shared import options
from imagekin.command_options import AsJson, with_options
from imagekin.counting import counted

if TYPE_CHECKING:
    from imagekin.types import Method


@with_options
def classify(
    images: options.Sources,
    collection: options.CollectionName,
    method: Annotated[
        str, typer.Option("--method", metavar="knn|prototype|linear", help="Where a class comes from.")
    ] = "knn",
    k: Annotated[
        int, typer.Option("--k", "-k", help="Neighbours that vote; 0 is the server's 20.", min=0, max=10_000)
    ] = 0,
    temperature: Annotated[
        float, typer.Option("--temperature", help="Softmax temperature; 0 is the server's.", min=0)
    ] = 0.0,
    min_similarity: Annotated[
        float | None, typer.Option("--min-similarity", help="Unknown when nothing is so similar.", min=-1, max=1)
    ] = None,
    min_confidence: Annotated[
        float, typer.Option("--min-confidence", help="Unknown when the class is less sure.", min=0, max=1)
    ] = 0.0,
    condition: options.Filter = None,
    leave_one_out: Annotated[
        bool, typer.Option("--leave-one-out", help="An indexed image does not vote for itself.")
    ] = False,
    *,
    label_from: options.LabelFrom = "folder",
    server: options.ServerOrFolder,
    timeout: options.Timeout = 60.0,
    as_json: AsJson = False,
) -> None:
    """Classify images; report the accuracy when they lie in folders named after their classes."""
    from imagekin.cli.shared import console
    from imagekin.cli.shared.empty_answers import why_all_is_unknown
    from imagekin.cli.shared.image_sources import Tally, answered, reading
    from imagekin.client.calls import ClassifyParameters
    from imagekin.client.conversions import classify_method

    server.check_model()
    chosen: Method = method  # type: ignore[assignment]  # checked on the next line
    classify_method(chosen)
    asked = ClassifyParameters(
        collection, chosen, k, temperature, min_similarity, min_confidence, condition, leave_one_out
    )
    tally = Tally()
    kept: list[dict[str, Any]] = []
    labelled = correct = unknown = 0
    folders: set[str] = set()
    classes: set[str] = set()
    started = time.perf_counter()
    with (
        server.connect(timeout) as client,
        reading(images, "classify", tally, label_from) as (records, advance),
        console.Rows(["key", "class", "confidence", "similarity"], silent=as_json) as rows,
    ):
        for named, found in answered(records, lambda i: client.iter_classify(i, asked), tally, advance):
            unknown += found.label is None
            labelled += named.label is not None
            correct += named.label is not None and named.label == found.label
            folders.update([named.label] if named.label is not None else [])
            classes.update(label for label, _ in found.votes)
            rows.add(named.key, found.label or "(unknown)", found.confidence, found.nearest_similarity)
            if as_json:
                kept.append(
                    {
                        "key": named.key,
                        "label": found.label,
                        "confidence": found.confidence,
                        "nearest_similarity": found.nearest_similarity,
                    }
                )
        if tally.served and unknown == tally.served and (reason := why_all_is_unknown(client, collection)):
            console.say(f"imagekin: {reason}")
    seconds = time.perf_counter() - started
    console.list_failures(tally.failed, tally.failed_count)
    console.say_ignored(tally.ignored)
    # Unless one of the folders bears the name of a class, the folders' names are no labels.
    accuracy = correct / labelled if folders & classes else None
    if as_json:
        figures = {"accuracy": accuracy, "correct": correct, "labelled": labelled, "unknown": unknown}
        console.print_json({"predictions": kept, **figures, **console.totals(tally, seconds)})
    else:
        if accuracy is not None:
            console.say(
                f"accuracy {accuracy:.4f} ({correct:,} of {counted(labelled, 'image')} whose folder names their class)"
            )
        console.say(console.summary("classified", tally, seconds))
    console.fail_if_nothing(tally, images)
