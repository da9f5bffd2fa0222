"""A model on disk: written (`writer`), opened (`reader`), sealed, verified, described, and found by name (`store`)."""
