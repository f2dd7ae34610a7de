"""SQS as moto plays it, and the events that Lambda makes of its messages."""

import json
import logging
import os
from collections.abc import Callable
from importlib.util import find_spec
from typing import Any
from unittest import SkipTest, TestCase, mock
from uuid import uuid4

REGION = "eu-west-1"
CREDENTIALS = {"AWS_ACCESS_KEY_ID": "none", "AWS_SECRET_ACCESS_KEY": "none"}


class SQSTestCase(TestCase):
    """A server for all tests of the class; each test has queues of its own."""

    @classmethod
    def setUpClass(cls) -> None:
        if find_spec("moto") is None or find_spec("boto3") is None:
            raise SkipTest("moto or boto3 is not installed.")
        super().setUpClass()
        from moto.server import ThreadedMotoServer

        # It logs each request.
        log = logging.getLogger("werkzeug")
        cls.addClassCleanup(log.setLevel, log.level)
        log.setLevel(logging.ERROR)
        server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
        server.start()
        cls.addClassCleanup(server.stop)
        host, port = server.get_host_and_port()
        cls.endpoint = f"http://{host}:{port}"

    def setUp(self) -> None:
        super().setUp()
        self.enterContext(mock.patch.dict(os.environ, CREDENTIALS))
        import boto3.session

        session = boto3.session.Session()
        self.sqs: Any = session.client("sqs", region_name=REGION, endpoint_url=self.endpoint)
        self.prefix = uuid4().hex[:8]
        for name in ("default", "mail"):
            self.sqs.create_queue(QueueName=f"{self.prefix}-{name}")
        self.url = f"https://sqs.{REGION}.amazonaws.com/123456789012/{self.prefix}-{{queue}}"

    def delivered(self, queue_name: str = "default") -> dict[str, Any]:
        """Return the event that Lambda would make of the messages that are there; take them out."""
        url = self.url.replace("{queue}", queue_name)
        records: list[dict[str, Any]] = []
        while found := self.sqs.receive_message(QueueUrl=url, MaxNumberOfMessages=10).get(
            "Messages"
        ):
            for message in found:
                self.sqs.delete_message(QueueUrl=url, ReceiptHandle=message["ReceiptHandle"])
                records.append(record(message["Body"], message["MessageId"]))
        return {"Records": records}

    def delayed(self, queue_name: str = "default") -> int:
        """Return how many messages wait for their time."""
        name = "ApproximateNumberOfMessagesDelayed"
        url = self.url.replace("{queue}", queue_name)
        found = self.sqs.get_queue_attributes(QueueUrl=url, AttributeNames=[name])
        return int(found["Attributes"][name])


def record(body: str, id: str | None = None) -> dict[str, Any]:
    """Return one message as Lambda passes it on."""
    return {
        "messageId": id or str(uuid4()),
        "receiptHandle": "AQEB",
        "body": body,
        "attributes": {"ApproximateReceiveCount": "1", "SentTimestamp": "1763700000000"},
        "messageAttributes": {},
        "eventSource": "aws:sqs",
        "eventSourceARN": f"arn:aws:sqs:{REGION}:123456789012:default",
        "awsRegion": REGION,
    }


def batch(*bodies: Any) -> dict[str, Any]:
    """Return an event with those bodies."""
    return {"Records": [record(b if isinstance(b, str) else json.dumps(b)) for b in bodies]}


class LambdaContext:
    """The second argument of a Lambda function, whose time is what the test says."""

    def __init__(self, seconds: Callable[[], float] = lambda: 300.0) -> None:
        self._seconds = seconds

    def get_remaining_time_in_millis(self) -> int:
        """Return the milliseconds until the function is killed."""
        return int(self._seconds() * 1000)
