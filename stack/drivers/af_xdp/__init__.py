"""Parts of the `xdp` driver: rings and memory shared with the kernel, and the program that puts frames there."""
