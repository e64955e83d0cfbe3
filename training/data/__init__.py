"""Read and cache the images that a run trains on."""
