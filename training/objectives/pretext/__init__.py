"""Pretext tasks: objectives whose labels are made from the images."""
