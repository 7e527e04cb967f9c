"""The laboratory: an S3 server, an emulated kubelet, an in-memory store and bucket creation, which only tests and
benchmarks need. It is part of the distribution ``hayloft-bench``; the driver and its image do without it."""
