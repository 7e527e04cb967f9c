"""Benchmarks of one part each, without a store or a cluster, run by hand as ``python -m hayloft_bench.micro.NAME``.
They print their figures; with ``--output FILE`` all but ``record_opens`` write them as JSON, too:

=====================  ================================================================
``catalog_scale``      listing, building, opening and searching a manifest of N objects
``eviction_policies``  hit ratios of eviction policies on the recorded traces
``record_opens``       records the traces in ``traces/`` (package data) anew
``view_build``         building, removing and reading a materialised view
=====================  ================================================================
"""
