"""Define the encoders, and follow or normalise their weights."""
