"""Turn the bytes of an image file into pixels: the one decoder of the whole project."""
