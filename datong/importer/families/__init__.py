"""What is known of each model family besides how to read it: who makes it, which models, what was compared."""
