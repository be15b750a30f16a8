"""Many slides by many processes: units of work, who does them, and what survives whatever they do."""
