"""Know the installed distribution: its version, and the command that installs an extra of it."""

from importlib import metadata

_DISTRIBUTION = "imagekin"


def installed_version() -> str:
    """Return the distribution's version, or `0+source` when the code runs without being installed."""
    try:
        return metadata.version(_DISTRIBUTION)
    except metadata.PackageNotFoundError:
        return "0+source"


def install_command(extras: str) -> str:
    """Return the command that installs extras the way this installation was made: from a checkout or from an index.

    Args:
        extras: names joined by commas, for example `cpu,train`.
    """
    try:
        # PEP 610: pip notes here where it installed from, unless that was an index.
        origin = metadata.distribution(_DISTRIBUTION).read_text("direct_url.json")
    except metadata.PackageNotFoundError:
        origin = "a checkout that is not installed"
    if origin is None:
        return f"pip install '{_DISTRIBUTION}[{extras}]'"
    return f"pip install '.[{extras}]' in the checkout of {_DISTRIBUTION}"


VERSION = installed_version()
