"""Who executes a program: one folder per backend, each behind the protocol of spec/backend.py."""
