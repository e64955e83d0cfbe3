"""Add the generated pages to the site, and copies of the repository's files that pages link to.

MkDocs calls these functions, named in `mkdocs.yml`.
"""

import posixpath
import re
import sys
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

ROOT = Path(__file__).resolve().parents[1]

_LINK = re.compile(r"\[([^\]]*)\]\((?!https?:|mailto:|#|<)([^)\s#]+)(#[^)\s]*)?\)")
_FENCE = re.compile(r"^```.*?^```$", re.MULTILINE | re.DOTALL)


def on_config(config: Any) -> Any:
    """List the pages of the commands in the navigation, in the order of the command's help."""
    # Not when this file is loaded: MkDocs puts the path back after that.
    sys.path.insert(0, str(ROOT))
    from reference.commands import command_names, page_name
    from reference.pages import FOLDER

    pages = [f"{FOLDER}/index.md", *({f"imagekin {name}": f"{FOLDER}/{page_name(name)}"} for name in command_names())]
    for section in config.nav:
        if entries := section.get("Reference") if isinstance(section, dict) else None:
            entries.insert(0, {"Commands": pages})
    return config


def on_files(files: Files, config: Any) -> Files:
    """Add the generated pages, and the files outside `docs/` that pages link to, as they are."""
    from reference.pages import generated_pages
    from reference.performance import plots

    for path, text in generated_pages().items():
        files.append(File.generated(config, path, content=text))
    for path, drawing in plots().items():
        files.append(File.generated(config, path, content=drawing))
    for page in list(files.documentation_pages()):
        for target in _outside(page.content_string, page.src_uri):
            place = _copy_of(target)
            if target_is_file(target) and files.get_file_from_path(place) is None:
                files.append(File.generated(config, place, content=(ROOT / target).read_bytes()))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Lead links to files of the repository to their copies; folders and its own pages are named, not linked."""

    def replaced(match: re.Match[str]) -> str:
        text, link, _anchor = match[1], match[2], match[3]
        target = _resolved(link, page.file.src_uri)
        if target is None:
            return match[0]
        if not target_is_file(target):
            return text if "`" in text or "/" not in target.as_posix() else f"{text} (`{target.as_posix()}`)"
        return f"[{text}]({posixpath.relpath(_copy_of(target), posixpath.dirname(page.file.src_uri) or '.')})"

    pieces = []
    at = 0
    for fence in _FENCE.finditer(markdown):
        pieces += [_LINK.sub(replaced, markdown[at : fence.start()]), fence[0]]
        at = fence.end()
    return "".join([*pieces, _LINK.sub(replaced, markdown[at:])])


def on_post_page(output: str, page: Any, **_: Any) -> str:
    """Take from the site itself what the theme would load from unpkg.com, for searching from a folder."""
    up = posixpath.relpath(".", posixpath.dirname(page.file.dest_uri) or ".")
    return output.replace("https://unpkg.com/iframe-worker/shim", f"{up}/assets/iframe-worker.js")


def on_post_template(output_content: str, **_: Any) -> str:
    """Do the same for the page of addresses that lead nowhere."""
    return output_content.replace("https://unpkg.com/iframe-worker/shim", "assets/iframe-worker.js")


def target_is_file(target: Path) -> bool:
    """Return whether a target is shown as a copy: files are, except pages of Markdown."""
    return (ROOT / target).is_file() and target.suffix != ".md"


def _copy_of(target: Path) -> str:
    """Return the place in the site of a file's copy: a text to be read there, but a notebook to be saved."""
    return f"repository/{target.as_posix()}{'' if target.suffix == '.ipynb' else '.txt'}"


def _outside(markdown: str, source: str) -> set[Path]:
    """Return the targets of a page's links that lie in the repository but outside `docs/`."""
    found = {_resolved(match[2], source) for match in _LINK.finditer(_FENCE.sub("", markdown))}
    return {target for target in found if target is not None}


def _resolved(link: str, source: str) -> Path | None:
    """Return a link's target relative to the repository, None within the site or where there is no such file."""
    target = posixpath.normpath(posixpath.join("docs", posixpath.dirname(source), link))
    if target.startswith(("docs/", "..")) or not (ROOT / target).exists():
        return None
    return Path(target)
