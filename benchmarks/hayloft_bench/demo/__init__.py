"""``hayloft demo``: makes a dataset, starts a store and the driver, reads as training does, and shows what it took.

Nothing of it is on the data path: the driver runs as a child process and is used as a kubelet and a training job use
it. The packages boto3, s3fs and pyarrow are imported here as the readers of somebody's training code would, to have
something to compare with.
"""
