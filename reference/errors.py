"""Write the table of errors from `imagekin.errors`."""

import inspect

from imagekin.errors import ImagekinError
from reference.markdown import code, prose, table


def errors_page() -> str:
    """Return the page of errors, statuses and exit statuses."""
    rows = [
        (code(kind.__name__), code(kind.code), str(kind.http_status), str(kind.exit_status), prose(_meaning(kind)))
        for kind in _classes(ImagekinError)
    ]
    return (
        "# Errors\n\nOne definition, `imagekin.errors`, for Python, gRPC, HTTP and the command. A message is one line"
        " that says what to do.\n\n"
        + table(("class", "gRPC status", "HTTP status", "exit status", "meaning"), rows)
        + "\n## Exit statuses of the command\n\n"
        + table(
            ("status", "meaning"),
            [
                ("0", "done"),
                ("1", "failed"),
                ("2", "wrong use: an option, an argument or a settings file"),
                ("130", "stopped by Ctrl-C"),
                ("141", "the reader of standard output has gone"),
            ],
        )
        + "\nWith `--json` the last line of standard output is one JSON object, on failure"
        ' `{"error": {"code": "NOT_FOUND", "message": "…"}}`.\n'
    )


def _classes(base: type[ImagekinError]) -> list[type[ImagekinError]]:
    """Return a class and all below it, from the top down."""
    return [base, *(found for kind in base.__subclasses__() for found in _classes(kind))]


def _meaning(kind: type[ImagekinError]) -> str:
    return inspect.cleandoc(kind.__doc__ or "").split("\n\n")[0]
