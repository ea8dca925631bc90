"""What people are told about statements: what was said, and that it ended this node's own certificate."""

from __future__ import annotations

from qnetpy.identity.certificate import Certificate, date
from qnetpy.identity.trust import Kind, Revoked, Statement


def ended(against: Statement, own: Certificate) -> str:
    """What to say when the statement *against* ended a node's own certificate."""
    subject = against.subject
    if isinstance(subject, Revoked) and subject.static_key != own.static_key:
        return (
            f"the certificate of this node is by node {subject.name}, which was revoked by {against.by} on {date(against.time)}, and was "
            "not known there: the others refuse it; "
            f"try: qnet invite --name {own.name} on a node that may, and here: qnet join CODE --replace"
        )
    return (
        f"this node was revoked by {against.by} on {date(against.time)}: the others refuse it; try: qnet leave --force, then qnet join CODE"
    )


def told(statement: Statement) -> str:
    """A statement as a sentence."""
    subject = statement.subject
    if isinstance(subject, Revoked):
        return f"node {subject.name} was revoked by {statement.by}"
    if statement.kind is Kind.ROOT:
        return "the cluster gets a new root; both count until every node has a certificate under the new one"
    return "the old root of the cluster was retired"
