"""What runs in the reader processes: the loaders that training uses, timed where a trainer would wait for them.

The latency of a *batch* is how long the trainer waited for it, with everything that was prefetched meanwhile. The
latency of a *sample* is how long it took whoever read it, usually a worker of the loader. Each module says what its
samples and batches are.
"""
