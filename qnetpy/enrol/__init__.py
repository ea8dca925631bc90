"""Enrolment: how a machine becomes a node by one code. Specification: docs/protocol/enrolment.md."""
