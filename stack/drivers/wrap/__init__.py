"""Drivers around a driver, one file each."""
