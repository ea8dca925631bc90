"""The forwarding engines: `fastpath` is what a bridge holds; below it a carrier, in the kernel or in threads. docs/stack/forwarding.md."""
