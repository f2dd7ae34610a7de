"""Print the running Python and Django; fail unless they are the two that the arguments name.

A version that ends with "t" is a free-threaded Python, which must run without the GIL: an extension
module that is not made for it turns the GIL on, silently.
"""

import sys

import django

wanted = sys.argv[1:3]
found = [f"{version[0]}.{version[1]}" for version in (sys.version_info, django.VERSION)]
has_gil = getattr(sys, "_is_gil_enabled", lambda: True)()
found[0] += "" if has_gil else "t"
gil = "" if has_gil else " without GIL"
print(f"Python {sys.version.split()[0]}{gil}, Django {django.__version__}")
if found != wanted:
    sys.exit(f"Wanted Python {wanted[0]} and Django {wanted[1]}.")
