"""Define the encoders, and what follows or normalises their weights."""
