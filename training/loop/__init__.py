"""Train: the loop, its checkpoints, devices and processes."""
