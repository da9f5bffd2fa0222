"""Datong: one package, one operator set, one backend interface between language models and AI chips."""

__version__ = "0.1.0"
