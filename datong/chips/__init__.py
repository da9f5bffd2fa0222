"""What is known about chips: one descriptor per stack, each fact with its source and grade. No code knows a vendor."""
