"""A shaped path to the store (``--network 25gbit,5ms``): rate and round trip of a data centre instead of loopback. The
path is made in a network namespace, measured before it is used, and removed afterwards."""
