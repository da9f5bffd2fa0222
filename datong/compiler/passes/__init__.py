"""The passes, one file each. `pipeline.py` holds their order; each docstring says what a pass requires and ensures."""
