"""Backends on PyTorch: `torch:cpu`, `torch:cuda`, and every chip with a PyTorch adapter. Importing this is cheap."""
