"""The workload ``warm``: Hayloft's warmup beside programs that copy a bucket to the disk."""
