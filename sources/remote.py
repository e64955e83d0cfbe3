"""List the files below a URL, for storage that supports it: s3://, gs:// and others of fsspec."""

from collections.abc import Callable, Iterator

from imagekin.sources.formats.file_list import Listing
from imagekin.sources.patterns import fixed_part, has_wildcard
from imagekin.sources.places import Place, RemotePlace, file_system, first_line
from imagekin.sources.records import Record, SourceError, record_of


def remote_listing(url: str) -> tuple[Listing, Callable[[str], Place]]:
    """Return a function that lists the files below a URL or pattern, and one that returns their places.

    Raises:
        InvalidArgumentError: the URL's scheme is unknown.
        FailedPreconditionError: a package is missing.
    """
    system, path = file_system(url)
    root = fixed_part(path)[0] if has_wildcard(path) else path.rstrip("/")
    scheme = url.partition("://")[0]

    def listing() -> Iterator[str | Record]:
        try:
            found = sorted(system.glob(path)) if has_wildcard(path) else sorted(system.find(path))
        except Exception as error:  # file systems raise exceptions of their own
            yield record_of(root, SourceError(f"its files cannot be listed ({first_line(error)})"))
            return
        for one in found:
            yield one.removeprefix(root).lstrip("/") or one.rpartition("/")[2]

    return listing, lambda name: RemotePlace(f"{scheme}://{root.lstrip('/')}/{name}")
