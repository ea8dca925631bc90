"""Numbers of the transport: what the peer must agree on first, then what is ours alone. Seconds and bytes unless the name says so."""

from __future__ import annotations

from typing import Final

# Specification (docs/protocol/transport.md). Changing one of these is a new protocol version.

KIND_PADDING: Final = 0
KIND_PING: Final = 1
KIND_ACK: Final = 2
KIND_DATA: Final = 3
KIND_START: Final = 4
KIND_CREDIT: Final = 5
KIND_CLOSE: Final = 6
KIND_CHALLENGE: Final = 7
KIND_RESPONSE: Final = 8
KIND_PATH: Final = 9

URGENT: Final = 0x80
"""Bit of a packet's first byte: acknowledge at once."""

ACK_DELAY_UNIT: Final = 16e-6
MAX_ACK_DELAY: Final = 0.005
"""An acknowledgement is held back at most this long (RFC 9000 section 18.2 has 25 ms; a LAN answers sooner)."""
BASE_PAYLOAD: Final = 1200
"""Plaintext that every path must carry (BASE_PLPMTU of RFC 8899 section 5.1.2)."""
MAX_MESSAGE: Final = 64 << 20
"""Bytes of one message. Each end's receive window holds at least one of these."""
MESSAGE_COST: Final = 1024
"""Credit that each message costs beside its bytes: about what its records take, so that empty messages cannot fill memory."""
INITIAL_CREDIT: Final = 1 << 20
"""What may be sent before the peer's first CREDIT."""
PRIORITY_MAX: Final = 63
ROUTED: Final = 0x40
"""Bit of a START's priority: the route follows the head."""
TOKEN_SIZE: Final = 8
MAX_STATION: Final = 32
"""Bytes of an address in a CHALLENGE."""

# What stops a hostile peer that is authenticated.

MAX_ACK_RANGES: Final = 32
"""Ranges in one ACK that we send: bounds the peer's work per ACK. Older ranges were in earlier ACKs; what no ACK reached is sent again."""
MAX_RECEIVED_RANGES: Final = 128
"""Packet number ranges kept per path: stops a peer that skips numbers from growing the table."""
MAX_HOLES: Final = 65536
"""Separate byte ranges in all incomplete messages together: stops a peer that sends every second byte. An honest one has at most a
window's worth of packets missing."""
MAX_PATHS: Final = 64
"""Paths of one peer: stops a caller that adds one per address a peer makes up."""
MAX_RESPONSES: Final = 4
"""CHALLENGEs of one path that wait for their RESPONSE: stops a peer from making us remember tokens."""
MAX_REASON: Final = 128
"""Bytes of text in a CLOSE: it is shown to people."""

# Ours.

GRANULARITY: Final = 0.001
"""Timer granularity (kGranularity, RFC 9002 section 6.1.2)."""
PACKET_THRESHOLD: Final = 3
"""kPacketThreshold, RFC 9002 section 6.1.1: where the adaptive threshold starts."""
MAX_PACKET_THRESHOLD: Final = 256
"""Reordering beyond this many packets is taken for loss."""
PERSISTENT_THRESHOLD: Final = 3
"""kPersistentCongestionThreshold, RFC 9002 section 7.6.1."""
ACK_THRESHOLD: Final = 8
"""Packets after which an ACK no longer waits. TCP has 2; a sender that runs out of window asks by URGENT instead."""
SUSPECT_TIMEOUTS: Final = 3
"""Probe timeouts in a row after which a path is taken for dead and its data goes over another."""
HURRIED_TIMEOUT: Final = 0.06
HURRIED_TRIPS: Final = 3
"""A path that is not the only one asks after so many seconds or minimum round trips, whichever is more, though its round trips vary much:
after 60, 120 and 240 ms of silence others take over. One pause of 0.1 s at either end would make that a second and a half."""
CHALLENGE_FIRST: Final = 0.1
CHALLENGE_TRIES: Final = 5
"""A CHALLENGE is repeated after the first, each time twice as late, at most so often."""
COPIES_MAX: Final = 1024
"""Fragments of redundant messages that wait for the window of one path: what a slow path does not take in time it need not take."""
LOST_MEMORY: Final = 128
"""Runs declared lost that are remembered per path, to notice that they were only late."""

QUANTUM: Final = 64 << 10
"""Bytes that those who have waited while others went ahead may send then."""
TURN: Final = 1 << 20
"""Bytes that one large message sends before the next of its priority has its turn. The largest READs and WRITEs of files go in one: four
of them in turns of less would all be there at the end, and who waits for the first would ask for nothing meanwhile."""
LOWER_SHARE: Final = 16
"""Lower priorities together get one byte for so many of the highest; likewise large messages beside small ones, and the largest beside
shorter ones."""
SMALL_MESSAGE: Final = 16 << 10
"""Messages up to this size go ahead of larger ones of their priority, and may use the last of the credit."""
SMALL_RESERVE: Final = 1 << 20
"""Credit that large messages leave for small ones."""
MAX_ACTIVE: Final = 8
"""Large messages of one priority under way at once: more would only make all of them late."""
MIN_FRAGMENT: Final = 128
"""A packet's rest smaller than this is not filled with a piece of a message."""
