"""Resource managers of the stack: what programs open below /dev."""
