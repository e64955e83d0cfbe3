"""Plant copies among photos and have a review find them.

    python bench/review/near_duplicates.py --model MODEL.onnx --out FOLDER ARCHIVE…

Of 200 photos of the archives (tar, label/photo.jpg) a copy is added: a third made smaller (60 % of each side), a third
packed as JPEG of quality 50, a third cropped by 5 % at each side. All are indexed with thumbnails and reviewed. Found
is a copy that stands in one group with its original; falsely listed is an original in a group without a copy.
"""

import argparse
import random
import subprocess
import sys
import tarfile
import time
from pathlib import Path

if __package__ in (None, ""):
    sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from PIL import Image

from imagekin import Client
from imagekin.cli.review.driver import run
from imagekin.index.review.review import Found, Options

COPIES = 200
HOW = ("smaller", "jpeg50", "cropped")


def lay_out(archives: list[Path], folder: Path) -> None:
    """Unpack the photos and plant the copies, as label/photo.jpg and label/HOW--photo.jpg."""
    for archive in archives:
        with tarfile.open(archive) as tar:
            tar.extractall(folder, filter="data")
    photos = sorted(folder.rglob("*.jpg"))
    for number, photo in enumerate(random.Random(5).sample(photos, COPIES)):  # noqa: S311 (no secret)
        image = Image.open(photo).convert("RGB")
        width, height = image.size
        how = HOW[number % len(HOW)]
        if how == "smaller":
            image = image.resize((width * 6 // 10, height * 6 // 10), Image.Resampling.BICUBIC)
        elif how == "cropped":
            image = image.crop((width // 20, height // 20, width - width // 20, height - height // 20))
        image.save(photo.with_name(f"{how}--{photo.name}"), quality=50 if how == "jpeg50" else 90)


def judge(found: Found) -> tuple[int, int]:
    """Return how many copies stand in a group with their original, and how many originals in one without a copy."""
    groups: dict[int, set[str]] = {}
    for one in found.duplicates:
        groups.setdefault(one.group, set()).add(one.key)
    hits = false = 0
    for group in groups.values():
        copies = {key for key in group if "--" in key}
        for key in copies:
            folder, _, name = key.rpartition("/")
            original = f"{folder}/{name.partition('--')[2]}"
            hits += original in group
        false += 0 if copies else len(group)
    return hits, false


def main() -> None:
    """Run the measurement."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True, help="empty or new folder")
    parser.add_argument("archives", type=Path, nargs="+")
    given = parser.parse_args()
    photos, data = given.out / "photos", given.out / "data"
    if not data.exists():
        lay_out(given.archives, photos)
        command = (sys.executable, "-m", "imagekin", "index", "planted", str(photos), "--data-dir", str(data))
        subprocess.run([*command, "--model", str(given.model)], check=True)
    with Client.local(data, read_only=True) as client:
        originals = client.count("planted") - COPIES
        began, cpu = time.monotonic(), time.process_time()
        found = run(client, "planted", Options(limit=10**9))
        print(f"{time.monotonic() - began:.1f} s, {time.process_time() - cpu:.1f} CPU s")
    hits, false = judge(found)
    print(f"found {hits} of {COPIES} copies; {false} of {originals} originals in groups without a copy")
    print(f"{found.by_pixels} pairs by pixels, {found.by_embeddings} by embeddings")


if __name__ == "__main__":
    main()
