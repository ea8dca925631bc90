"""What a frame is, and whose memory it lies in.

A `Frame` is a whole Ethernet frame from destination address to the end of the payload, without the frame check sequence. It may carry
802.1Q tags and may be padded to 60 bytes: both are the receiver's to tolerate.

Ownership, the same for every driver:

- A received frame is valid until the callback that it was given to returns. It may lie in a ring that the kernel fills again right after.
  Who wants to keep bytes of it copies them.
- A transmitted frame is borrowed until `transmit` (or `Stack.output`) returns. Who cannot send at once copies.

Frames travel as batches, `list[Frame]`. A batch belongs to whoever made it; the receiver does not change the list.
"""

from __future__ import annotations

from resmgr.errors import BadMessage

Frame = bytes | bytearray | memoryview


class BadFrame(BadMessage):
    """A frame from the wire does not parse. Says which field, never holds the bytes."""
