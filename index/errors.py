"""What the parts of the index raise among themselves; what callers see is in `encoder.errors`."""


class StoppedError(Exception):
    """Work in the background was called off."""
