"""List the generated pages: their place in the site and their Markdown text."""

from collections.abc import Callable
from functools import partial

from reference.commands import command_names, command_page, commands_page, page_name
from reference.errors import errors_page
from reference.grpc_services import grpc_page
from reference.http_routes import http_page
from reference.notebooks import FOLDER as NOTEBOOKS
from reference.notebooks import notebook_page, scripts
from reference.performance import PAGE, performance_page

FOLDER = "reference/commands"


def generated_pages() -> dict[str, str]:
    """Return the text of each generated page by its path below `docs/`."""
    return {path: write() for path, write in _writers().items()}


def generated_paths() -> set[str]:
    """Return the paths of the generated pages below `docs/`, without writing them."""
    return set(_writers())


def _writers() -> dict[str, Callable[[], str]]:
    return {
        f"{FOLDER}/index.md": commands_page,
        **{f"{FOLDER}/{page_name(name)}": partial(command_page, name) for name in command_names()},
        **{f"{NOTEBOOKS}/{script.stem}.md": partial(notebook_page, script) for script in scripts()},
        PAGE: performance_page,
        "reference/errors.md": errors_page,
        "reference/grpc.md": grpc_page,
        "reference/http-routes.md": http_page,
    }
