"""The workload ``model-load``: how long until the tensors of a model are in a program."""
