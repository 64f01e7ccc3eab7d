"""A distributed time-series database server: one asyncio process a node. Start reading at docs/design/README.md."""
