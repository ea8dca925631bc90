"""The Linux file system as a resource manager.

`manager` is the served channel; `operations` the system calls behind each message, run inline or in a worker thread; `objects` what handles
are; `directory` directory streams; `device` what is known of each mounted file system; `identity` acting as the mapped user; `watching`
and `delegating` what clients are told of others' changes, after and before them; `locks` locks; `syscalls` what Python's os module lacks.
"""
