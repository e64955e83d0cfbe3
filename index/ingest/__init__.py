"""Embed the images of a source and write them to a collection, again and again without loss."""
