"""Drivers, one file each: `-d NAME` loads `MODULE` of `stack.drivers.NAME`. See docs/howto/driver.md."""
