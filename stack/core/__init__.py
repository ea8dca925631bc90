"""The network manager itself: the Stack object, interfaces, modules and their loader, hooks, statistics."""
