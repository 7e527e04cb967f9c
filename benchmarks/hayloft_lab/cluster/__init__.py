"""A real Kubernetes cluster of one node, in namespaces of its own, from the programs that ``.ci/cluster`` makes."""
