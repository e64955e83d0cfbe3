"""The suffixes of archives, tables and lists, and the splits that their names state."""

import posixpath

from imagekin.sources.splits import Split, splits_among

TAR_SUFFIXES = (".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tbz2", ".tbz", ".tar.xz", ".txz", ".tar.zst", ".tzst")
ZIP_SUFFIXES = (".zip",)
ARCHIVE_SUFFIXES = (*TAR_SUFFIXES, *ZIP_SUFFIXES)
ARROW_SUFFIXES = (".arrow",)
PARQUET_SUFFIXES = (".parquet", ".pq", *ARROW_SUFFIXES)
TABLE_SUFFIXES = (".csv", ".tsv", ".jsonl", ".ndjson")
MANIFEST_SUFFIXES = (*TABLE_SUFFIXES, ".json")
LIST_SUFFIX = ".txt"


def splits_of_files(names: list[str]) -> dict[str, Split]:
    """Return the splits that files of the same folder state in their names, such as `test-00000-of-00002.parquet`."""
    found: dict[str, Split] = {}
    for folder in {posixpath.dirname(name) for name in names}:
        stems = {name: stem_of(posixpath.basename(name)) for name in names if posixpath.dirname(name) == folder}
        splits = splits_among(set(stems.values()))
        found |= {name: splits[stem] for name, stem in stems.items() if stem in splits}
    return found


def stem_of(name: str) -> str:
    """Return a file's name without the suffix of an archive, a table or a list."""
    suffixes = (*ARCHIVE_SUFFIXES, *PARQUET_SUFFIXES, *MANIFEST_SUFFIXES, LIST_SUFFIX)
    return next(
        (name[: -len(end)] for end in sorted(suffixes, key=len, reverse=True) if name.lower().endswith(end)), name
    )
