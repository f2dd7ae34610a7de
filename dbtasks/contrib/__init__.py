"""Doors to other servers. Owns nothing itself; never imported by the rest of the package."""
