"""One benchmark run on several nodes: ranks that begin every measurement together, and their merged results. Rank 0
coordinates; torchrun or an Indexed Job of Kubernetes starts the ranks."""
