"""``hayloft demo``: a small run of the benchmark, shown as one table, two sentences and one picture."""
