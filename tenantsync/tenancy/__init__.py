"""Whose house is it: where a tenant lives, who is there, and how a transaction gets inside."""
