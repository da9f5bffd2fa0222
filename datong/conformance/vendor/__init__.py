"""Are the vendor's operators called as the vendor ships them? Checked against its wheel, which need not be installed.

wheel.py    what a wheel says of itself: name, version, registered schemas, meta functions; no PyTorch needed
schemas.py  `check(path)`: every fused call of ours, run through the dispatcher of PyTorch under those schemas
dry_run.py  the process that does it: the wheel's schemas and meta functions, our lowering, and no device
"""
