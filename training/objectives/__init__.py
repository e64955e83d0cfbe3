"""Objectives of pretraining, one a file, all with the interface in `base`."""
