"""Which other nodes there are, and what happens to them: `board` is the daemon's side, `client` and `aio` what programs call."""
