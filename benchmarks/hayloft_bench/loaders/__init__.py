"""The loaders that training uses, as they run in the reader processes, timed where a trainer waits for them. The
latency of a *batch* is how long the trainer waited for it, whatever was prefetched; the latency of a *sample* is how
long its reader, usually a worker of the loader, took: each module says what its samples and batches are."""
