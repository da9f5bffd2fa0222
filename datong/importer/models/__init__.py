"""One file per `model_type`: the names and flags in which a family differs, and the traps it has set before."""
