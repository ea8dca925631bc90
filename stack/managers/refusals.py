"""What it may cost to refuse requests: one that makes no sense, is not the sender's to ask, or has no place is read before it is refused,
and that can take a hundred times as long as to refuse it unread.

All refusals but root's together have a share of the dispatch's time. While it is used up, whose requests were refused is not read any more:
he gets a bare EAGAIN. Others are served as always.
"""

from __future__ import annotations

from stack.managers.requestline import ROOT
from stack.managers.share import Share

SHARE = 0.02
"""Of all time, and `stack.managers.share.BURST` ahead: some hundred refusals at once."""
User = tuple[int, int]
"""As `stack.managers.requestline.user_of`."""


class Refusals:
    """See the head of this file. *share*: of the time. `unread` counts."""

    def __init__(self, share: Share) -> None:
        self._share = share
        self._users: set[User] = set()
        """Whose requests were refused since there was time last."""
        self.unread = 0

    def leave_unread(self, user: User) -> bool:
        """A request of *user* is not to be looked at; it is counted. Else it begins to be."""
        if self._share.wait() == 0.0:
            self._users.clear()
        elif user in self._users:
            self.unread += 1
            return True
        self._share.begin()
        return False

    def refused(self, user: User) -> None:
        """What began was refused."""
        if user != ROOT:
            self._share.end()
            self._users.add(user)
