"""Open the device that collections are searched on."""

import logging

from imagekin.errors import FailedPreconditionError, InvalidArgumentError
from imagekin.index.search.gpu.device_thread import DeviceThread

log = logging.getLogger("imagekin.index")

_DEVICES = ("auto", "cpu", "cuda")


def open_device(wanted: str) -> DeviceThread | None:
    """Open the device to search on; None for the processor.

    Args:
        wanted: `auto` for a GPU if FAISS can use one, `cuda` to require it, `cpu` for none.

    Raises:
        InvalidArgumentError: another value.
        FailedPreconditionError: `cuda` is wanted, and FAISS cannot use a GPU.
    """
    if wanted not in _DEVICES:
        raise InvalidArgumentError(f"the index's device must be {', '.join(_DEVICES)}", field="index_device")
    if wanted == "cpu":
        return None
    from imagekin.index.search.gpu import faiss_gpu

    try:
        return DeviceThread(faiss_gpu.open_gpu)
    except RuntimeError as error:
        if wanted == "cuda":
            raise FailedPreconditionError(
                f"no GPU can be searched on ({error}): check the driver and that the extra gpu is installed in"
                " place of cpu, or search on the processor with --index-device cpu"
            ) from None
        # Without GPU support in FAISS, this is expected.
        level = logging.INFO if faiss_gpu.is_built() else logging.DEBUG
        log.log(level, "collections are searched on the processor: %s", error)
        return None
