"""``python -m csi_driver.cli``."""

from csi_driver.cli import main

main()
