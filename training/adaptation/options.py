"""The command `imagekin adapt`."""

import json
import logging
import os
import sys
from pathlib import Path
from typing import Annotated

import typer

from imagekin import files
from imagekin.command_options import AsJson, with_options
from imagekin.counting import counted
from imagekin.training.adaptation.settings import AdaptSettings


@with_options
def adapt_command(
    model: Annotated[Path, typer.Argument(metavar="MODEL", help="The model artifact to adapt.", show_default=False)],
    data: Annotated[
        str,
        typer.Argument(metavar="DATA", help="Labelled images to adapt it to: as for train.", show_default=False),
    ],
    out: Annotated[
        Path, typer.Option("--out", "-o", metavar="FILE", help="The new artifact to write.", show_default=False)
    ],
    *,
    settings: AdaptSettings,
    as_json: AsJson = False,
) -> None:
    """Adapt a model to your classes in seconds to minutes, without training the encoder itself.

    Images and crops of them are embedded once; then a small head learns from the embeddings and becomes part of the
    new model. Its space is new: index the images again. It is only written if it helps on a fifth that is held out.
    """
    from imagekin.encoder.artifact import read_metadata
    from imagekin.training.adaptation.adapt import adapt
    from imagekin.training.data.arrays import Split
    from imagekin.training.data.images import has_split, load_images
    from imagekin.training.data.published import resolve_data
    from imagekin.training.data.storage import Storage

    files.check_no_folder(out)
    logging.basicConfig(format="imagekin adapt: %(message)s", level=logging.WARNING, stream=sys.stderr)
    root = os.environ.get("IMAGEKIN_DATA_ROOT")
    spec = resolve_data(data, Path(root) if root else None)
    preprocess = read_metadata(model).preprocess
    split: Split = "train" if has_split(spec) else "all"
    images = load_images(spec, split=split, preprocess=preprocess, storage=Storage("auto"))
    report = adapt(model, images, out, settings)
    if as_json:
        print(json.dumps(report.to_json()))
        return
    print(f"{report.model} written: space {report.space} (checked: max |Δ| {report.max_abs_diff:.1e})")
    print(
        f"kNN accuracy     {report.knn_before:.2%} before, {report.knn_after:.2%} after, of "
        f"{report.held_out_count:,} held-out images\n"
        f"linear accuracy  {report.linear_before:.2%} before, {report.linear_after:.2%} after\n"
        f"time             {report.embed_seconds:.0f} s to embed {counted(report.image_count, 'image')}, "
        f"{report.head_seconds:.0f} s for the head\n"
        f"next             imagekin index NAME IMAGES --model {report.model} (a new collection: its space is new)"
    )
