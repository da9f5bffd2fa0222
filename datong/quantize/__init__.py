"""A package with 8- or 4-bit weights made of one with wider ones. `make.py` has the whole of it."""
