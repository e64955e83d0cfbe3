"""Return the version of the installed distribution, and the command that installs its extras."""

from importlib import metadata

_DISTRIBUTION = "imagekin"


def installed_version() -> str:
    """Return the distribution's version, or `0+source` if it is not installed."""
    try:
        return metadata.version(_DISTRIBUTION)
    except metadata.PackageNotFoundError:
        return "0+source"


def install_command(extras: str) -> str:
    """Return the command that installs extras from the source of this installation: a checkout or a package index.

    Args:
        extras: names joined by commas, for example `cpu,train`.
    """
    try:
        # PEP 610: pip records the source of the installation here, unless it was an index.
        origin = metadata.distribution(_DISTRIBUTION).read_text("direct_url.json")
    except metadata.PackageNotFoundError:
        origin = "a checkout that is not installed"
    if origin is None:
        return f"pip install '{_DISTRIBUTION}[{extras}]'"
    return f"pip install '.[{extras}]' in the checkout of {_DISTRIBUTION}"


VERSION = installed_version()
