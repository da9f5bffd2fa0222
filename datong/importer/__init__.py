"""Stage 1: a checkpoint of somebody else's making becomes a graph and a map of where its weights lie."""
