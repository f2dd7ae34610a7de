"""How long the names in a row may be, in characters.

Owns these limits. Never checks a name: longer ones are refused by whoever takes them from a user.
"""

MAX_PATH = 255
MAX_QUEUE = 100
MAX_BACKEND = 64
MAX_WORKER = 128
MAX_SPEC = 200
MAX_ZONE = 64
MAX_RETAIN = 64
