"""The Noise Protocol Framework (revision 34), as far as the link handshake needs it. Sans-IO: messages and randomness are arguments."""
