"""The admin, by Django's client and in a browser."""
