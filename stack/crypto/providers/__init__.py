"""Providers of the crypto API, one file each."""
