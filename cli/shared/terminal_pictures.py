"""Draw small pictures in a terminal that can show them: by kitty's protocol, by iTerm2's, or in sixels.

Which one a terminal has is told by its environment, because asking it would mean reading its answer from the keyboard.
Inside tmux and screen, which do not pass pictures on, nothing is drawn.
"""

import io
import itertools
from base64 import b64encode
from collections.abc import Iterable, Mapping, Sequence
from typing import Literal, TypeAlias

from PIL import Image, UnidentifiedImageError

Protocol: TypeAlias = Literal["kitty", "iterm2", "sixel"]

HEIGHT = 96
_GAP = 8
_MOST_PIXELS = 1_000_000
# Of one escape sequence of kitty's protocol, see https://sw.kovidgoyal.net/kitty/graphics-protocol/.
_KITTY_CHARACTERS = 4096
_SIXEL_COLOURS = 128
_BAND = 6


def protocol(environment: Mapping[str, str]) -> Protocol | None:
    """Return how the terminal of an environment shows pictures, None where it is not known to."""
    term, program = environment.get("TERM", ""), environment.get("TERM_PROGRAM", "")
    if "TMUX" in environment or term.startswith(("screen", "tmux")):
        return None
    if "KITTY_WINDOW_ID" in environment or term in ("xterm-kitty", "xterm-ghostty"):
        return "kitty"
    if program in ("iTerm.app", "WezTerm", "mintty"):
        return "iterm2"
    if "sixel" in term or term.startswith(("foot", "mlterm", "contour")):
        return "sixel"
    return None


def strip(jpegs: Sequence[bytes], most_columns: int) -> Image.Image | None:
    """Put pictures side by side, each of the same height, as many as fit; None where there is none.

    Args:
        jpegs: JPEG files; what is none, or larger than a thumbnail may be, is left out.
        most_columns: pixels that the strip may be wide; the first picture is shown in any case.
    """
    shown: list[Image.Image] = []
    width = 0
    for jpeg in jpegs:
        picture = _read(jpeg)
        if picture is None:
            continue
        if shown and width + picture.width > most_columns:
            break
        shown.append(picture)
        width += picture.width + _GAP
    if not shown:
        return None
    whole = Image.new("RGB", (width - _GAP, HEIGHT))
    left = 0
    for picture in shown:
        whole.paste(picture, (left, 0))
        left += picture.width + _GAP
    return whole


def drawn(picture: Image.Image, by: Protocol) -> str:
    """Return the characters that draw a picture where the cursor is."""
    if by == "sixel":
        return _sixels(picture)
    file = io.BytesIO()
    picture.save(file, "PNG")
    data = b64encode(file.getvalue()).decode()
    if by == "iterm2":
        return f"\x1b]1337;File=inline=1;size={file.tell()}:{data}\x07"
    parts = [data[at : at + _KITTY_CHARACTERS] for at in range(0, len(data), _KITTY_CHARACTERS)]
    last = len(parts) - 1
    return "".join(
        f"\x1b_G{'a=T,f=100,q=2,' if number == 0 else ''}m={int(number < last)};{part}\x1b\\"
        for number, part in enumerate(parts)
    )


def _read(jpeg: bytes) -> Image.Image | None:
    try:
        with Image.open(io.BytesIO(jpeg), formats=["JPEG"]) as picture:
            if picture.width * picture.height > _MOST_PIXELS:
                return None
            width = max(1, round(picture.width * HEIGHT / picture.height))
            return picture.convert("RGB").resize((width, HEIGHT), Image.Resampling.BICUBIC)
    except (UnidentifiedImageError, OSError, ValueError):
        return None


def _sixels(picture: Image.Image) -> str:
    """Write a picture in sixels: bands of six rows, in each band one line for every colour that is in it.

    See https://vt100.net/docs/vt3xx-gp/chapter14.html; a colour's parts are percentages.
    """
    few = picture.quantize(_SIXEL_COLOURS)
    palette = few.getpalette("RGB") or []
    pixels, width = few.tobytes(), few.width
    parts = [f'\x1bPq"1;1;{width};{few.height}']
    for colour in sorted(set(pixels)):
        red, green, blue = (round(value / 2.55) for value in palette[3 * colour : 3 * colour + 3])
        parts.append(f"#{colour};2;{red};{green};{blue}")
    for top in range(0, few.height, _BAND):
        rows = [pixels[width * row : width * (row + 1)] for row in range(top, min(top + _BAND, few.height))]
        for colour in sorted(set(b"".join(rows))):
            columns = (
                sum((row[column] == colour) << place for place, row in enumerate(rows)) for column in range(width)
            )
            parts.append(f"#{colour}{_runs(columns)}$")
        parts.append("-")
    return "".join([*parts, "\x1b\\"])


def _runs(columns: Iterable[int]) -> str:
    """Write the columns of a band, each with a bit for each of its rows, equal ones as a count."""
    return "".join(
        f"!{count}{chr(63 + value)}" if count > 3 else chr(63 + value) * count
        for value, count in ((value, sum(1 for _ in run)) for value, run in itertools.groupby(columns))
    )
