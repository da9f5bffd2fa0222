"""The engine: from a program and requests to tokens. `load.py` opens a model, `engine.py` is the loop."""
