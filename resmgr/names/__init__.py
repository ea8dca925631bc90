"""Names of servers: name_attach and name_open (QNX). `manager` is the daemon's side, `client` what programs call."""
