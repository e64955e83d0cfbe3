"""Tests of the project as a whole: layers, contract, image, installation, README."""
