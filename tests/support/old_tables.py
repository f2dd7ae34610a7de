"""The tables that other packages leave behind, as their own migrations make them.

The statements were taken from databases on which the real packages were installed. The models write
rows as those packages do: they have the same fields.
"""

from collections.abc import Sequence
from typing import Any
from uuid import uuid4

from django.apps.registry import Apps
from django.db import connection, models

# django-dbtasks: the migrations of each version, and the columns that it does not have yet.
VERSIONS: dict[str, tuple[Sequence[str], set[str]]] = {
    "0.3.1": (("0001_initial",), {"delete_after", "worker_id"}),
    "0.4.0": (("0001_initial", "0002_scheduledtask_delete_after"), {"worker_id"}),
    "0.5.0": (
        (
            "0001_initial",
            "0002_scheduledtask_delete_after",
            "0003_worker_alter_scheduledtask_backend_and_more",
        ),
        set(),
    ),
}
_JSON = {
    "sqlite": 'text {null} CHECK ((JSON_VALID("{name}") OR "{name}" IS NULL))',
    "postgresql": "jsonb {null}",
    "mysql": "longtext CHARACTER SET utf8mb4 COLLATE utf8mb4_bin {null} CHECK (json_valid({name}))",
}
_TIME = {
    "sqlite": "datetime {null}",
    "postgresql": "timestamp with time zone {null}",
    "mysql": "datetime(6) {null}",
}
_TEXT = {"sqlite": "text {null}", "postgresql": "text {null}", "mysql": "longtext {null}"}
_BOOL = {"sqlite": "bool {null}", "postgresql": "boolean {null}", "mysql": "tinyint(1) {null}"}


def _uuid() -> str:
    native = connection.features.has_native_uuid_field
    return "uuid NOT NULL PRIMARY KEY" if native else "char(32) NOT NULL PRIMARY KEY"


def _column(name: str, kind: Any, null: str = "NOT NULL") -> str:
    text = kind[connection.vendor] if isinstance(kind, dict) else f"{kind} {{null}}"
    return f"{name} {text.format(null=null, name=name)}"


def _create(table: str, columns: Sequence[str]) -> None:
    with connection.cursor() as cursor:
        cursor.execute(f"CREATE TABLE {table} ({', '.join(columns)})")


def make_django_dbtasks(version: str) -> None:
    """Create the tables of that version of django-dbtasks."""
    _, lacks = VERSIONS[version]
    if "worker_id" not in lacks:
        names = [_column("backend", "varchar(32)"), _column("first_seen", _TIME)]
        last = _column("last_seen", _TIME)
        _create("dbtasks_worker", ["id varchar(200) NOT NULL PRIMARY KEY", *names, last])
    columns = {
        "id": f"id {_uuid()}",
        "status": _column("status", "varchar(10)"),
        "enqueued_at": _column("enqueued_at", _TIME),
        "started_at": _column("started_at", _TIME, "NULL"),
        "finished_at": _column("finished_at", _TIME, "NULL"),
        "args": _column("args", _JSON),
        "kwargs": _column("kwargs", _JSON),
        "task_path": _column("task_path", _TEXT),
        "priority": _column("priority", "integer"),
        "queue": _column("queue", "varchar(32)"),
        "backend": _column("backend", "varchar(32)"),
        "run_after": _column("run_after", _TIME, "NULL"),
        "periodic": _column("periodic", _BOOL),
        "worker_ids": _column("worker_ids", _JSON),
        "return_value": _column("return_value", _JSON, "NULL"),
        "exception_path": _column("exception_path", _TEXT),
        "traceback": _column("traceback", _TEXT),
        "delete_after": _column("delete_after", _TIME, "NULL"),
        "worker_id": _column("worker_id", "varchar(200)", "NULL"),
    }
    key = "FOREIGN KEY (worker_id) REFERENCES dbtasks_worker (id)"
    key = f"CONSTRAINT dbtasks_scheduledtask_worker_id_8e1b7943_fk_dbtasks_worker_id {key}"
    if connection.vendor != "mysql":
        key += " DEFERRABLE INITIALLY DEFERRED"
    there = [column for name, column in columns.items() if name not in lacks]
    _create("dbtasks_scheduledtask", there if "worker_id" in lacks else [*there, key])
    with connection.cursor() as cursor:
        if connection.vendor != "mysql":  # which has no index on expressions, so Django makes none
            cursor.execute(
                "CREATE INDEX idx_dbtasks_scheduledtask ON dbtasks_scheduledtask "
                "(status, backend, queue, run_after)"
            )


def _model(table: str, key: models.Field, fields: dict[str, models.Field]) -> Any:
    options = {"app_label": "old", "apps": Apps(), "db_table": table, "managed": False}
    names = {"__module__": __name__, "Meta": type("Meta", (), options), "id": key}
    return type("Old", (models.Model,), names | fields)


def old_task(version: str) -> Any:
    """Return the model ScheduledTask of that version of django-dbtasks."""
    fields: dict[str, models.Field] = {
        "status": models.CharField(default="READY", max_length=10),
        "enqueued_at": models.DateTimeField(),
        "started_at": models.DateTimeField(null=True),
        "finished_at": models.DateTimeField(null=True),
        "args": models.JSONField(default=list),
        "kwargs": models.JSONField(default=dict),
        "task_path": models.TextField(default="tests.tasks.add"),
        "priority": models.IntegerField(default=0),
        "queue": models.CharField(max_length=32, default="default"),
        "backend": models.CharField(max_length=32, default="default"),
        "run_after": models.DateTimeField(null=True),
        "delete_after": models.DateTimeField(null=True),
        "periodic": models.BooleanField(default=False),
        "worker_id": models.CharField(max_length=200, null=True),
        "worker_ids": models.JSONField(default=list),
        "return_value": models.JSONField(default=None, null=True),
        "exception_path": models.TextField(default=""),
        "traceback": models.TextField(default=""),
    }
    there = {name: field for name, field in fields.items() if name not in VERSIONS[version][1]}
    return _model("dbtasks_scheduledtask", models.UUIDField(primary_key=True), there)


def old_worker() -> Any:
    """Return the model Worker of django-dbtasks 0.5."""
    fields: dict[str, models.Field] = {
        "backend": models.CharField(max_length=32, default="default"),
        "first_seen": models.DateTimeField(),
        "last_seen": models.DateTimeField(),
    }
    key: Any = models.CharField(max_length=200, primary_key=True)
    return _model("dbtasks_worker", key, fields)


def make_django_tasks_db() -> Any:
    """Create the table of django-tasks-db 0.13; return its model DBTaskResult."""
    table = "django_tasks_database_dbtaskresult"
    columns = [
        f"id {_uuid()}",
        *(_column(name, "varchar(32)") for name in ("queue_name", "backend_name")),
        _column("status", "varchar(10)"),
        _column("enqueued_at", _TIME),
        *(_column(name, _TIME, "NULL") for name in ("started_at", "finished_at")),
        _column("args_kwargs", _JSON),
        _column("priority", "integer"),
        _column("task_path", _TEXT),
        _column("worker_ids", _JSON),
        _column("run_after", _TIME),
        _column("return_value", _JSON, "NULL"),
        *(_column(name, _TEXT) for name in ("exception_class_path", "traceback")),
    ]
    _create(table, columns)
    fields: dict[str, models.Field] = {
        "status": models.CharField(default="READY", max_length=10),
        "enqueued_at": models.DateTimeField(auto_now_add=True),
        "started_at": models.DateTimeField(null=True),
        "finished_at": models.DateTimeField(null=True),
        "args_kwargs": models.JSONField(),
        "priority": models.IntegerField(default=0),
        "task_path": models.TextField(default="tests.tasks.add"),
        "worker_ids": models.JSONField(default=list),
        "queue_name": models.CharField(default="default", max_length=32),
        "backend_name": models.CharField(default="default", max_length=32),
        "run_after": models.DateTimeField(),
        "return_value": models.JSONField(default=None, null=True),
        "exception_class_path": models.TextField(default=""),
        "traceback": models.TextField(default=""),
    }
    return _model(table, models.UUIDField(primary_key=True, default=uuid4), fields)


def make_django_database_task() -> Any:
    """Create the table of django-database-task 0.6; return its model DatabaseTask."""
    table = "django_database_task_databasetask"
    times = ("run_after", "started_at", "finished_at", "last_attempted_at")
    columns = [
        f"id {_uuid()}",
        _column("task_path", "varchar(512)"),
        *(_column(name, "varchar(255)") for name in ("queue_name", "backend_name")),
        _column("priority", "integer"),
        *(_column(name, _JSON) for name in ("args_json", "kwargs_json")),
        *(_column(name, _JSON) for name in ("errors_json", "worker_ids_json")),
        _column("return_value_json", _JSON, "NULL"),
        _column("status", "varchar(20)"),
        *(_column(name, _TIME, "NULL") for name in times),
        *(_column(name, _TIME) for name in ("enqueued_at", "created_at", "updated_at")),
    ]
    _create(table, columns)
    fields: dict[str, models.Field] = {
        "task_path": models.CharField(max_length=512, default="tests.tasks.add"),
        "queue_name": models.CharField(max_length=255, default="default"),
        "backend_name": models.CharField(max_length=255, default="default"),
        "priority": models.IntegerField(default=0),
        "args_json": models.JSONField(default=list),
        "kwargs_json": models.JSONField(default=dict),
        "errors_json": models.JSONField(default=list),
        "worker_ids_json": models.JSONField(default=list),
        "return_value_json": models.JSONField(null=True),
        "status": models.CharField(max_length=20, default="READY"),
        **{name: models.DateTimeField(null=True) for name in times},
        "enqueued_at": models.DateTimeField(auto_now_add=True),
        "created_at": models.DateTimeField(auto_now_add=True),
        "updated_at": models.DateTimeField(auto_now=True),
    }
    return _model(table, models.UUIDField(primary_key=True, default=uuid4), fields)
