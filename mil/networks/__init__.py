"""Networks that others trained: built, their weights fetched, renamed, and loaded whole or refused."""
