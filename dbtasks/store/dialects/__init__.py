"""The store's SQL, as far as databases differ.

Owns one module for each of them, with the same functions. Never decides which rows may change.

Read in this order: postgresql, mysql, sqlite.
"""
