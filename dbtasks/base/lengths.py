"""The maximum lengths of names in a row, in characters.

Owns these limits. Never checks a name: the code that receives it from a user does.
"""

MAX_PATH = 255
MAX_QUEUE = 100
MAX_BACKEND = 64
MAX_WORKER = 128
MAX_SPEC = 200
MAX_ZONE = 64
MAX_RETAIN = 64
