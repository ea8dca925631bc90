"""Typed messages: request and reply classes, declared once. docs/howto/messages.md."""
