"""Does a backend tell the truth? Levels, cases and the report; shipped, so that a chip vendor runs it as it is."""
