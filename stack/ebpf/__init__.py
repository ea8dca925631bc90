"""eBPF without a compiler: an assembler, and programs, maps and links as objects over the bpf system call. Knows no frame and no bridge.

Everything is owned by a descriptor of this process and pinned nowhere: what is closed, or whose process dies, is gone.
"""
