"""``manage.py serve``: the site on Granian, and a task runner beside it.

Owns the processes of a site: the web server, the runner, and their reload when code changes. Never
serves requests or runs tasks in the process that supervises them, and never loads new code into an
old process.

Read in this order: address, variables, watch, web, apps, management.
"""
