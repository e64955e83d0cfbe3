"""Writes the reference pages of the documentation from what they describe: commands, contract, HTTP, errors.

The pages exist in the built site only (`make docs`); the pages that people write lie in `docs/`.
"""
