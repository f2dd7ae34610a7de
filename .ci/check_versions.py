"""Print the running Python and Django; fail unless they are the two that the arguments name."""

import sys

import django

wanted = sys.argv[1:3]
found = [f"{version[0]}.{version[1]}" for version in (sys.version_info, django.VERSION)]
print(f"Python {sys.version.split()[0]}, Django {django.__version__}")
if found != wanted:
    sys.exit(f"Wanted Python {wanted[0]} and Django {wanted[1]}.")
