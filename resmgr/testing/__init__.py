"""Public test kit. Import the file you need.

`virtual`: a dispatch under virtual time. `memory`: a carrier that reorders between streams. `ioclient`: a client of resource managers.
`hostdir`, `memfs`: a served directory, of Linux or in memory. `fuserig`, `fusemount`: the FUSE machine by hand, and real mounts.
"""
