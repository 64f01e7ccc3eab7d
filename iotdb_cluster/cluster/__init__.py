"""The shell that makes rooms a node: group drivers, the shared durable log, routing, and what nodes say to each other."""
