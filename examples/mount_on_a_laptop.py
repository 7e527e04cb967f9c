"""Mounts a dataset on this machine without Kubernetes, until Ctrl-C:

    python examples/mount_on_a_laptop.py s3://my-bucket/train region=eu-central-1

Starts `hayloft all-in-one` and calls it as kubelet would. What follows the URL are parameters of the volume
(docs/parameters.md). The keys are those of the environment: AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY. The directory
HAYLOFT_LAPTOP, /var/tmp/hayloft-laptop without it, has the cache, the log and `data`, which leads to the dataset. Needs
root, and the package hayloft-bench.
"""

from __future__ import annotations

import os
import signal
import sys
from contextlib import suppress
from pathlib import Path

from hayloft_lab.driver import Driver, DriverFailed, unmount_below
from hayloft_lab.emulated_kubelet import CallRefused, EmulatedKubelet

SECRET = {"AWS_ACCESS_KEY_ID": "access_key_id", "AWS_SECRET_ACCESS_KEY": "secret_access_key"}


def say(text: object) -> None:
    """On standard output, at once."""
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


def main() -> int:
    """Returns the exit code."""
    if len(sys.argv) < 2 or "://" not in sys.argv[1]:
        say(__doc__)
        return 2
    parameters = {"url": sys.argv[1], **dict(word.partition("=")[::2] for word in sys.argv[2:])}
    secrets = {key: os.environ[name] for name, key in SECRET.items() if os.environ.get(name)}
    directory = Path(os.environ.get("HAYLOFT_LAPTOP", "/var/tmp/hayloft-laptop"))  # noqa: S108  # cache, kept on purpose
    directory.mkdir(parents=True, exist_ok=True)
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # as Ctrl-C: the volume is unmounted first
    link = directory / "data"
    driver = Driver(directory)
    driver.start()
    kubelet = EmulatedKubelet(driver.endpoint, directory / "kubelet")
    try:
        driver.wait_until_ready(kubelet)
        volume = kubelet.create("data", parameters, secrets)
        kubelet.stage(volume)
        link.unlink(missing_ok=True)
        link.symlink_to(kubelet.publish(volume))
        say(f"mounted at {link}")
        with suppress(KeyboardInterrupt):
            signal.pause()
        kubelet.unpublish(volume)
        kubelet.unstage(volume)
    except (CallRefused, DriverFailed) as error:
        say(error)
        return 1
    finally:
        link.unlink(missing_ok=True)
        kubelet.close()
        driver.stop()
        unmount_below(directory / "kubelet")
    return 0


if __name__ == "__main__":
    sys.exit(main())
