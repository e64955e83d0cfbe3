"""Return the version of the installed distribution, and the command that installs its extras."""

from importlib import metadata
from pathlib import Path

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
    if _comes_from_a_checkout():
        return f"pip install '.[{extras}]' in the checkout of {_DISTRIBUTION}"
    return f"pip install '{_DISTRIBUTION}[{extras}]'"


def _comes_from_a_checkout() -> bool:
    # An editable installation runs the checkout's own files. Its metadata cannot tell: from within the checkout,
    # Python finds the egg-info that the build left there, and that has no origin.
    if (Path(__file__).parents[1] / "pyproject.toml").is_file():
        return True
    try:
        # PEP 610: pip records the source of the installation here, unless it was an index.
        return metadata.distribution(_DISTRIBUTION).read_text("direct_url.json") is not None
    except metadata.PackageNotFoundError:
        return True


VERSION = installed_version()
