"""What tests of tiers share: a client of the Redis beside the tier's own."""

import pytest
import redis


@pytest.fixture
def client(redis_server):
    client = redis.Redis.from_url(redis_server.url)
    yield client
    client.close()
