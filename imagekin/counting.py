"""Count things in sentences: one image, two images."""

_ENDS_OF_ES = ("s", "x", "ch", "sh")


def counted(count: int, noun: str) -> str:
    """Return a number with its noun, in the plural unless it is one: `1 image`, `2,936 images`, `0 classes`."""
    if count == 1:
        return f"1 {noun}"
    if noun.endswith(_ENDS_OF_ES) and not noun.endswith("epoch"):
        return f"{count:,} {noun}es"
    if noun.endswith("y") and noun[-2:-1] not in "aeiou":
        return f"{count:,} {noun[:-1]}ies"
    return f"{count:,} {noun}s"
