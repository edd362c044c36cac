"""Compute packages: what clients are given to run, in an archive that all generations of them unpack."""
