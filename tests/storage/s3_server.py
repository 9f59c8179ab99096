"""A local S3 server (moto's), with a bucket of its own for each test."""

import itertools
from collections.abc import Iterator
from contextlib import contextmanager

import boto3
import pytest
from moto.server import ThreadedMotoServer

from storage.s3 import Bucket

CREDENTIALS = {
    "AWS_ACCESS_KEY_ID": "tests",
    "AWS_SECRET_ACCESS_KEY": "tests",
    "AWS_EC2_METADATA_DISABLED": "true",
}
REGION = "us-east-1"
_numbers = itertools.count(1)


@contextmanager
def running_s3() -> Iterator[str]:
    """Give the endpoint URL of a running server."""
    server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    with pytest.MonkeyPatch.context() as environment:
        for name, value in CREDENTIALS.items():
            environment.setenv(name, value)
        server.start()
        try:
            host, port = server.get_host_and_port()
            yield f"http://{host}:{port}"
        finally:
            server.stop()


def make_bucket(endpoint_url: str, **changes: object) -> Bucket:
    """Make an empty bucket."""
    name = f"part10-{next(_numbers)}"
    client = boto3.client("s3", endpoint_url=endpoint_url, region_name=REGION)
    client.create_bucket(Bucket=name)
    client.close()
    return Bucket(name, **{"prefix": "node/", "endpoint_url": endpoint_url, "region": REGION, **changes})
