"""What a task is: our additions to Django's Task, TaskContext and TaskResult.

Owns policies, payloads, and which functions are tasks. Never touches the database.

Read in this order: lengths, payload, policy, registry, context, result, task.
"""
