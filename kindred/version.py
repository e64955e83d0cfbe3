"""The version of the installed distribution."""

from importlib import metadata


def installed_version() -> str:
    """Return the distribution's version, or `0+source` when the code runs without being installed."""
    try:
        return metadata.version("kindred")
    except metadata.PackageNotFoundError:
        return "0+source"


VERSION = installed_version()
