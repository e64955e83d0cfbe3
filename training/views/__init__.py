"""Draw random views (augmentations) of images."""
