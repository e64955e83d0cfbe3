"""What pretraining minimises: one objective a file, all behind the interface in `base`."""
