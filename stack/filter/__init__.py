"""Deciding about frames."""
