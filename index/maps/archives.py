"""Read and write named arrays as one file, in NumPy's own form, with a checksum for each."""

import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from imagekin import files
from imagekin.errors import DataLossError

# What NumPy and zipfile raise for the bytes of a damaged file; a flag of ZIP that Python does not know is one of them.
_DAMAGE = (
    OSError,
    EOFError,
    ValueError,
    KeyError,
    TypeError,
    NotImplementedError,
    zipfile.BadZipFile,
    zlib.error,
)

Arrays = Mapping[str, NDArray[Any]]


def read_arrays(path: Path, kinds: Mapping[str, type[np.generic]]) -> Arrays:
    """Return the arrays of a file by name; nothing that is pickled is loaded.

    Args:
        path: the file.
        kinds: the arrays that it must have, with their dtypes.

    Raises:
        FileNotFoundError: there is no such file.
        DataLossError: it is damaged.
    """
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as held:
            found = {name: held[name] for name in kinds}
    except FileNotFoundError:
        raise
    except _DAMAGE as error:
        raise DataLossError(f"{path.name} is damaged ({error}): `imagekin map` makes it again") from None
    if any(found[name].dtype != kind for name, kind in kinds.items()):
        raise DataLossError(f"{path.name} is damaged: `imagekin map` makes it again")
    return found


def write_arrays(path: Path, arrays: Arrays) -> None:
    """Write a file of arrays whole, or leave what is there; raises as `imagekin.files.replacing` does."""
    with files.replacing(path) as temporary, zipfile.ZipFile(temporary, "w") as archive:
        for name, array in arrays.items():
            with archive.open(f"{name}.npy", "w", force_zip64=True) as member:
                np.lib.format.write_array(member, np.ascontiguousarray(array), allow_pickle=False)
