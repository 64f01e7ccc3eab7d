"""The commands: each module is one, thin; `sbin/` and `python -m iotdb_cluster.tools.<name>` start them."""
