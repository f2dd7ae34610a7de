"""Tasks: what dbtasks adds to Django's Task, TaskContext and TaskResult.

Owns policies, payloads, and the registry of tasks. Never touches the database.

Read in this order: lengths, queues, payload, policy, secrets, registry, context, result, carried,
task, stored.
"""
