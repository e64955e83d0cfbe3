"""Settings of a map."""

from dataclasses import dataclass

from imagekin.settings import check, option


@dataclass(frozen=True, slots=True)
class MapSettings:
    """Settings of a map; the names are those of UMAP (McInnes, Healy and Melville 2018).

    Raises:
        InvalidArgumentError: a value is out of its range.
    """

    neighbours: int = option(
        15, "Neighbours of an item that shape the map: fewer show detail, more the whole.", least=2, most=200
    )
    min_distance: float = option(
        0.1, "Least distance of points: lower packs clusters more tightly.", least=0.0, most=1.0
    )
    landmarks: int = option(100_000, "Items above this number are placed by their neighbours among so many.", least=100)
    seed: int = option(0, "The same seed and the same items give the same map.", least=0, most=2**32 - 1)

    def __post_init__(self) -> None:
        check(self)
