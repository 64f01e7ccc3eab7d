"""The shell that makes rooms a node: group drivers, the shared durable log, routing, and the talk between nodes."""
