"""Default handlers that a resource manager is composed of, after QNX's iofunc layer.

`manager` receives messages, finds handles and calls the handler of a table; `handle` keeps handles per client and reaps them;
`permission` is the access check; `node` turns objects with a few methods into a served tree; `static` is a read-only tree of callables.
"""
