"""Store items: the database, the columns in memory, and the sealed segments."""
