"""The name by which Kubernetes knows the driver."""

DRIVER_NAME = "csi.hayloft.dev"
