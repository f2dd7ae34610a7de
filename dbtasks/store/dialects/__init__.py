"""The store's SQL where databases differ.

Owns one module for each database, with the same functions. Never decides which rows may change.

Read in this order: postgresql, mysql, sqlite.
"""
