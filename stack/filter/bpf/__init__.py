"""Classic BPF: numbers, an assembler, and a machine that runs it where no kernel does."""
