"""Simulated chips."""
