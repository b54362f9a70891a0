"""Lets the services share files of SQLite: readers beside a writer, long waits, and no lock that is upgraded halfway."""
from sqlalchemy import event
from sqlalchemy.engine import Engine

# Nova takes the write lock at once. Placement nests independent transactions, so it must not.
IMMEDIATE = False


@event.listens_for(Engine, "connect")
def _settle(connection, _record):
    cursor = connection.cursor()
    for pragma in ("busy_timeout=30000", "journal_mode=WAL", "synchronous=OFF"):
        cursor.execute("PRAGMA " + pragma)
    cursor.close()


@event.listens_for(Engine, "before_cursor_execute", retval=True)
def _begin(_connection, _cursor, statement, parameters, _context, _many):
    return ("BEGIN IMMEDIATE" if IMMEDIATE and statement == "BEGIN" else statement), parameters
