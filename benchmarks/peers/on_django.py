"""What the backends of Django's tasks share.

Owns their way in. Never loads Django before `prepare` does: the tool reads the adapters, too.
"""

from .sql import SqlPeer

PSYCOPG = "psycopg[binary,pool]==3.3.9"
DJANGO = "Django==6.1.3"

# Connections that stay open between tasks, where a worker asks Django to close old ones.
PERSISTENT = {"CONN_MAX_AGE": None}
POOLED = {"CONN_OPTIONS": {"pool": True}}


class DjangoPeer(SqlPeer):
    """A backend of `TASKS`."""

    table = ""
    ends = "SELECT finished_at AS at FROM {table} WHERE status = 'SUCCESSFUL'"
    waiting = "SELECT FROM {table} WHERE status IN ('READY', 'RUNNING')"

    def __init_subclass__(cls) -> None:
        """Put the table into the queries."""
        cls.tables = cls.tables or (cls.table,)
        cls.ends = cls.ends.format(table=cls.table)
        cls.waiting = cls.waiting.format(table=cls.table)

    def prepare(self) -> None:
        import django
        from django.core.management import call_command

        django.setup()
        call_command("migrate", verbosity=0)
        from .django_tasks import noop

        self.noop = noop

    def enqueue(self, number: int = 0) -> None:
        self.noop.enqueue(number)

    def copy(self, count: int) -> None:
        fresh = {"id": "gen_random_uuid()", "enqueued_at": "enqueued_at + n * interval '1 us'"}
        self.multiply(self.table, count, fresh)
