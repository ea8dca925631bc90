"""The FUSE front end: mounts any manager for unmodified programs by speaking the kernel's protocol over /dev/fuse directly.

Reading order: formats (bytes of the kernel), inode (what the kernel knows by number), core (one request, its message, its answer), names,
files, directory, attributes (the operations), machine (table and entry point), session (the descriptor), mount (mount(2)). What is believed
of what servers say: changes, then leases, owned and delegated.
"""
