"""huey on Redis.

Owns its adapter. Never tunes the default.
"""

from . import body
from .peer import URL, Setting
from .redis import RedisPeer

if URL:
    from huey import RedisHuey

    app = RedisHuey("dbtasksbench", url=URL)

    @app.task()
    def noop(number: int = 0) -> None:
        """Do nothing."""
        body.noop(number)


class Huey(RedisPeer):
    """Messages, gone as soon as a worker has read them."""

    name = "huey"
    requirements = ("huey==3.5.4", "redis==8.1.0")
    queue = "huey.redis.dbtasksbench"
    keys = ("huey.*.dbtasksbench*",)
    default = Setting(("huey_consumer", "peers.huey.app"), "as documented: one thread")
    best = Setting(
        ("huey_consumer", "peers.huey.app", "-k", "process", "-w", "4", "-q"),
        "4 processes, quiet",
    )

    def prepare(self) -> None:
        self.clear()

    def enqueue(self, number: int = 0) -> None:
        noop(number)

    def message(self) -> bytes:
        return bytes(app.serialize_task(noop.s()))


PEER = Huey()
