"""Tasks: what dbtasks adds to Django's Task, TaskContext and TaskResult.

Owns policies, payloads, and the registry of tasks. Never touches the database.

Read in this order: lengths, payload, policy, registry, context, result, task.
"""
