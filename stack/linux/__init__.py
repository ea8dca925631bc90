"""What Linux gives for frames, links and network namespaces, as several drivers and the forwarding engines use it. Knows no module."""
