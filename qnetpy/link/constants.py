"""Numbers of the link protocol: those of the specification (docs/protocol/link.md), and ours, which another implementation may change."""

from __future__ import annotations

from typing import Final

# Specification. Two nodes must agree on these.

VERSION: Final = 1
"""Of the handshake. In every handshake frame and in the transcript; another version is refused."""
TAG_SIZE: Final = 16
"""Of all three suites (RFC 5116 section 5.1, RFC 8439 section 2.8)."""
MAC_SIZE: Final = 16
STAMP_SIZE: Final = 4
COOKIE_SIZE: Final = 16
COOKIE_NONCE_SIZE: Final = 16
BOOT_ID_SIZE: Final = 16
SUITE_SLOTS: Final = 4
"""Suites that an INITIATION can offer."""
REPLAY_WINDOW: Final = 8192
"""Packet numbers per path and direction that may arrive late, as WireGuard's; must exceed what reorders between two interfaces."""
PACKET_NUMBER_MAX: Final = 2**62 - 1
"""As QUIC's (RFC 9000 section 12.3); no counter reaches it."""
HANDSHAKE_FRAME_MAX: Final = 1280
"""Longest handshake frame, so that one fits any path that carries IPv6 as well."""
GROUP = bytes.fromhex("03716e657400")
"""Station of a group that every node listens to: locally administered, then `qnet` and a zero. SOLICITATIONs are sent there."""

# Ours: handshake.

RETRY_FIRST: Final = 0.1
"""Seconds until an unanswered handshake frame is sent again. A LAN answers in under 1 ms, a busy daemon in 30."""
RETRY_STEADY: Final = 5
"""Waits of RETRY_FIRST before they begin to double. A handshake takes six frames, and where one in five is lost the same one is lost
three times in a row often enough; silence for half a second means more than loss."""
RETRY_FACTOR: Final = 2.0
RETRY_MAX: Final = 1.0
RETRY_JITTER: Final = 0.25
"""Part of each wait that is random, so that nodes that lost power together do not answer in step."""
HASTEN_LEAST: Final = 0.5
"""Seconds from one frame to the next that is sent because discovery has heard of the peer again: who says so all the time causes two frames
a second, and no more."""
ATTEMPT_TIMEOUT: Final = 8.0
"""Seconds after which an attempt is given up; the caller decides whether to begin another."""
RENEW_AFTER: Final = 3.0
"""Seconds for which one INITIATION is repeated before a new one is made. Less than HALF_OPEN_LIFETIME, so an answer is still open."""
PINNED_TRIES: Final = 2.0
"""Seconds for which IK is tried before XX: the peer may have a new key."""
JOIN_WAIT: Final = 0.5
"""Seconds for which our own INITIATION waits when the peer's is being answered."""
REFUSED_WAIT: Final = 0.5
"""Seconds for which a call at first contact goes on after an answer by somebody who is not accepted: whoever has the cluster secret, as a
node that was revoked has, can answer quicker than the node that is called."""
REFUSED_ANSWERS: Final = 8
"""Such answers to one call, each of which costs a Diffie-Hellman exchange and a look at a certificate; the last ends it."""
DONE_LIFETIME: Final = 15.0
"""Seconds for which a responder still answers a repeated FINAL. More than ATTEMPT_TIMEOUT."""
DESTINATIONS_MAX: Final = 4
"""Addresses tried at once for one peer. Stops discovery that announces one node everywhere from multiplying our frames."""
ATTEMPTS_MAX: Final = 1024
"""Attempts at once. Stops a flood of announcements."""
EVENTS_MAX: Final = 1024
"""Events not yet fetched. Stops strangers' failures from filling memory; the oldest failure goes first."""

# Ours: what strangers may make us keep and do (docs/protocol/link.md, "Under attack").

HALF_OPEN_LIFETIME: Final = 5.0
HALF_OPEN_MAX: Final = 256
"""Handshakes we answered that are not confirmed. Stops half-open floods; about 4 KiB each."""
HALF_OPEN_STRANGERS: Final = 192
"""Of these, for addresses from which no node was ever authenticated: the rest is the known peers' share."""
HALF_OPEN_PER_SOURCE: Final = 8
HALF_OPEN_PER_NAME: Final = 4
HALF_OPEN_LOAD: Final = 64
"""From this many on, everybody needs a cookie."""
SEEN_MAX: Final = 4096
"""INITIATIONs remembered so that a copy makes no second half-open entry."""
KNOWN_MAX: Final = 4096
"""Addresses remembered as a known peer's."""
SOURCES_MAX: Final = 1024
"""Token buckets of single sources. Stops a flood from many spoofed addresses; the longest unused is forgotten."""
SOURCE_RATE: Final = 20.0
"""INITIATIONs per second from one source, above a burst; WireGuard's figure."""
SOURCE_BURST: Final = 20.0
KNOWN_RATE: Final = 500.0
"""INITIATIONs and FINALs per second from all known peers together: 5 % of a core at 100 microseconds each."""
STRANGER_RATE: Final = 100.0
"""The same from strangers that proved their address by a cookie."""
COOKIE_RATE: Final = 1000.0
"""COOKIE frames per second in total; sealing one costs 10 microseconds."""
ANSWER_AGAIN: Final = 0.05
"""Seconds after which a copy of an INITIATION is answered again. A node repeats one after 0.1 s at the earliest."""
INDICES_AHEAD: Final = 32
"""Session indices that are drawn ahead, so that a driver's screen knows them before use and need not change for every handshake."""
BURST_SECONDS: Final = 0.5
"""The burst of a total budget is what it gets in this time."""
COOKIE_SECRET_LIFETIME: Final = 120.0
"""WireGuard's; a cookie is honoured until the secret after next, so for 120 to 240 s."""
NODES_MAX: Final = 65536
"""Nodes remembered (boot id, sequence, pinned key). Needs as many certificates; see also qnetpy.nodes."""

# Ours: sessions.

REKEY_AFTER: Final = 120.0
"""Seconds (WireGuard: 120)."""
REKEY_STAGGER: Final = 15.0
"""The responder of the last handshake waits this much longer, so that usually only one end begins."""
REKEY_PART: Final = 0.5
"""Part of a suite's limits at which new keys are due: the other half is for the handshake, under load."""
REKEY_FAILURES: Final = 2**20
"""Frames that failed authentication after which new keys are due, if the suite's limit is not less."""
REJECT_AFTER: Final = 600.0
"""Seconds after which a session seals nothing more: handshakes have failed for 8 minutes, and forward secrecy is promised by the rekey."""
COMING_MAX: Final = 2
"""Sessions of a peer that it called for and has not used. Each takes a handshake of its own; an older one opens for the grace time."""
OLDER_MAX: Final = 2
"""Sessions of a peer that open what was in flight when newer keys came."""
PREVIOUS_GRACE: Final = 10.0
"""Seconds for which the keys before the current ones still open what is in flight."""
