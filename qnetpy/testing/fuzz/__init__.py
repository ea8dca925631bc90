"""Everything that takes bytes from others, as targets for a fuzzer."""
