"""Files of frames for the driver `pcap` and the wrapper `pcap`: one that is written while frames pass, one that is replayed."""
