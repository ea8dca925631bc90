"""`/dev/crypto` for programs: the bytes of its requests, and the client. Imports nothing of the stack itself."""
