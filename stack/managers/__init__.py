"""Resource managers of the stack: what other programs ask it, and the files that it shows in the pathname space."""
